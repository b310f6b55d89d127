"""Refusing the keys of a config that nothing reads."""

from collections.abc import Iterable, Mapping

from omegaconf import DictConfig

from torchtune_speech.errors import InputError, did_you_mean

# Read by `parse` itself, for every recipe.
_ALWAYS_KNOWN = frozenset({"traceback"})


def check_keys(cfg: DictConfig | Mapping[str, object], known: Iterable[str]) -> None:
    """Refuses a config with a top-level key that the recipe does not know.

    A misspelt key would otherwise be ignored and the run would silently use the default.

    Args:
        cfg: The whole config of a recipe.
        known: The keys the recipe reads, its `KEYS`.

    Raises:
        InputError: Naming every unknown key and the nearest known one.

    Example:
        >>> check_keys(cfg, KEYS)
        InputError: config: unknown key 'batchsize'; did you mean 'batch_size'?
    """
    known = sorted(known)
    unknown = [str(key) for key in cfg if key not in known and key not in _ALWAYS_KNOWN]
    if not unknown:
        return
    named = ", ".join(repr(key) for key in unknown)
    hint = did_you_mean(unknown[0], known) or f"; the recipe knows {', '.join(known)}"
    raise InputError(f"config: unknown key{'s' * (len(unknown) > 1)} {named}{hint}")
