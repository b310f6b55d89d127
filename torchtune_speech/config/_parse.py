"""The decorator that makes a function `main(cfg)` a recipe for `tune run`."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchtune_speech.config._errors import one_line_errors
from torchtune_speech.config._packaged import config_names, config_path
from torchtune_speech.errors import InputError

_TRUE = ("true", "True", "1", "yes")


def parse(recipe_main: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """Makes `recipe_main(cfg)` a recipe: reads the config, applies overrides, reports errors.

    `--config NAME` may name a packaged config (`nano/projector`) or a YAML file, which wins; then
    `torchtune.config.parse` merges it with the `key=value` of the command line. Errors that the
    user can mend are printed as one line, see `one_line_errors`; `traceback=true` shows where they
    came from. `--help` prints the recipe's docstring, its configs and its `KEYS`.

    Args:
        recipe_main: The recipe. Its module may hold `KEYS`, key -> one line of help.

    Returns:
        A function without arguments that runs the recipe and exits.

    Example:
        >>> @config.parse
        ... def recipe_main(cfg: DictConfig) -> None:
        ...     config.check_keys(cfg, KEYS)
        ...
        >>> if __name__ == "__main__":
        ...     sys.exit(recipe_main())
    """

    @functools.wraps(recipe_main)
    def wrapper() -> None:
        if {"--help", "-h"} & set(sys.argv[1:]):
            with one_line_errors():
                print(recipe_help(recipe_main.__globals__))
            sys.exit(0)
        arguments = dict(word.partition("=")[::2] for word in sys.argv[1:])
        with one_line_errors(traceback=arguments.get("traceback") in _TRUE):
            _run(recipe_main)

    return wrapper


def _run(recipe_main: Callable[[DictConfig], Any]) -> None:
    # tiktoken would keep a copy of the LLM's tokenizer under its path for good, and read that one
    # after the file has changed.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
    # Not at the top: `torchtune-speech ls` need not wait for torch.
    import torchtune.config

    sys.argv[1:] = _prepare(sys.argv[1:])
    started = False

    @functools.wraps(recipe_main)
    def start(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        _drop_null_components(cfg)
        return recipe_main(cfg)

    try:
        torchtune.config.parse(start)()
    except (ValueError, TypeError) as error:
        # Before the recipe starts these are torchtune's words on the command line; later, bugs.
        if started or isinstance(error, InputError):
            raise
        raise InputError(f"command line: {error}") from error


def _drop_null_components(cfg: DictConfig) -> None:
    """Make `dataset=null` on the command line mean no data set.

    torchtune takes a value given to a component as the component's name.
    """
    for key, node in cfg.items_ex(resolve=False):
        if isinstance(node, DictConfig) and "_component_" in node and node._component_ is None:
            cfg[key] = None


def _prepare(words: list[str]) -> list[str]:
    """Returns the command line as torchtune wants it: the config's path first, then overrides."""
    config = None
    overrides = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            config = next(remaining, None)
        elif word.startswith("--config="):
            config = word.removeprefix("--config=")
        else:
            overrides.append(_quoted(word))
    if not config:
        raise InputError(
            "command line: no config; add --config NAME or PATH (`torchtune-speech ls` lists them)"
        )
    path = Path(config) if Path(config).is_file() else config_path(config)
    _check_mapping(path)
    return ["--config", str(path), *overrides]


def _quoted(word: str) -> str:
    """Returns `key=value` such that a value that is plain text arrives as it was written.

    Values are YAML, where `a: b` is a mapping and ` #` begins a comment, and torchtune splits at
    every `=`. So a sentence, or a value with `=`, is quoted unless it is YAML on purpose.
    """
    key, equals, value = word.partition("=")
    is_text = any(mark in value.strip() for mark in " \t\n=") and value.lstrip()[0] not in "[{'\"!"
    if not equals or not is_text:
        return word
    quoted = json.dumps(value, ensure_ascii=False).replace("=", "\\x3d")
    return f"{key}={quoted}"


def _check_mapping(path: Path) -> None:
    try:
        cfg = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if not isinstance(cfg, DictConfig) or not all(isinstance(key, str) for key in cfg):
        raise InputError(f"{path}: not a config; its top level has to be lines of `key: value`")
    if "config" in cfg:
        raise InputError(f"{path}: 'config' is taken by the command line; name the key otherwise")


def recipe_help(module: Mapping[str, Any]) -> str:
    """Returns what `--help` prints for a recipe.

    Args:
        module: The globals of the recipe's file.

    Returns:
        Its docstring, the configs written for it, and its `KEYS`.
    """
    name = Path(module["__file__"]).stem
    keys: Mapping[str, str] = module.get("KEYS", {})
    configs = config_names(name) or config_names()
    width = max(map(len, [*keys, *configs]), default=0) + 2
    parts = [
        f"usage: tune run [--nproc_per_node N] {name} --config NAME_OR_PATH [key=value ...]",
        inspect.cleandoc(module["__doc__"] or ""),
    ]
    for title, rows in {"configs:": configs, "keys:": keys}.items():
        if rows:
            lines = (f"  {key:<{width}}{text}".rstrip() for key, text in rows.items())
            parts.append("\n".join([title, *lines]))
    return "\n\n".join(part for part in parts if part)
