"""From mixture weights to the sources of a plan."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchtune_speech.data._plan import Source
from torchtune_speech.data._sample import Sample
from torchtune_speech.errors import InputError

Weights = Mapping[str, float] | str | None
Key = tuple[str, str, str]  # task, domain, target language
Groups = dict[Key, list[int]]


def plan_sources(samples: Sequence[Sample], mixture: Mapping | None) -> list[Source]:
    """Group samples into the sources that a plan draws from.

    Args:
        samples: the data set.
        mixture: None for one shuffled pass over everything; else ``task`` (task to weight), and
            optionally ``domain`` (domain to weight, or ``uniform``) and ``language`` (task to
            target language to weight, or task to ``uniform``). What is not weighted counts by its
            number of samples. A step is drawn from one task, domain and target language: the task
            first, then the domain where domains are weighted, then the language among those that
            the domain has.

    Returns:
        The sources, with weights that sum to 1.

    Raises:
        InputError: if a weight names something that the data does not hold.

    Example:
        >>> languages = {"st": {"de": 0.4, "it": 0.6}}
        >>> plan_sources(samples, {"task": {"asr": 0.3, "st": 0.7}, "language": languages})
    """
    if mixture is None:
        return [Source("all", 1.0, np.arange(len(samples)), any(s.is_speech for s in samples))]
    names = set(mixture) if isinstance(mixture, Mapping) else set()
    if "task" not in names or names - {"task", "domain", "language"}:
        raise InputError(f"mixture: needs task, and may have domain and language; found {mixture}")
    if not isinstance(mixture.get("language") or {}, Mapping):
        raise InputError(
            f"mixture.language: {mixture['language']!r}; give tasks, and of each the weights "
            "of its languages, or 'uniform'"
        )
    groups: Groups = {}
    for i, s in enumerate(samples):
        groups.setdefault((s.task, s.domain, s.target_lang), []).append(i)
    task, domain = ("task", 0, mixture["task"]), ("domain", 1, mixture.get("domain"))
    _check_names(groups, *task)
    _check_names(groups, *domain)
    _check_names(groups, "language", 0, mixture.get("language"))
    sources = []
    for name, share in _shares(groups, *task).items():
        of_task = {k: v for k, v in groups.items() if k[0] == name}
        language = (f"language.{name}", 2, (mixture.get("language") or {}).get(name))
        _check_names(of_task, *language)
        # Without weights of their own, domains must not change those of the languages.
        order = [language, domain] if domain[2] is None else [domain, language]
        for key, part in _split(of_task, order):
            numbers = np.array(groups[key])
            label = "/".join(filter(None, key))
            sources.append(Source(label, share * part, numbers, samples[numbers[0]].is_speech))
    return [source for source in sources if source.weight > 0]


def _split(
    groups: Groups, order: Sequence[tuple[str, int, Weights]]
) -> Iterator[tuple[Key, float]]:
    if not order:
        (key,) = groups
        yield key, 1.0
        return
    for value, share in _shares(groups, *order[0]).items():
        inner = {k: v for k, v in groups.items() if k[order[0][1]] == value}
        for key, part in _split(inner, order[1:]):
            yield key, share * part


def _shares(groups: Groups, field: str, part: int, weights: Weights) -> dict[str, float]:
    """Weights of the values that are there, summing to 1; a task need not have every domain."""
    sizes: Counter[str] = Counter()
    for key, members in groups.items():
        sizes[key[part]] += len(members)
    if weights == "uniform":
        weights = dict.fromkeys(sizes, 1.0)
    present = {k: v for k, v in (weights or {}).items() if k in sizes} or sizes
    total = sum(present.values())
    if total <= 0:
        raise InputError(
            f"mixture.{field}: {dict(weights)} leaves nothing of {sorted(sizes)}; "
            "give one of them a positive weight"
        )
    return {k: v / total for k, v in present.items()}


def _check_names(groups: Groups, field: str, part: int, weights: Any) -> None:
    if weights is None or weights == "uniform":
        return
    if not isinstance(weights, Mapping):
        raise InputError(f"mixture.{field}: {weights!r}; give each name a weight, or 'uniform'")
    present = {key[part] for key in groups}
    for name, weight in weights.items():
        if field != "language" and (not isinstance(weight, (int, float)) or weight < 0):
            raise InputError(f"mixture.{field}.{name}: {weight!r}; give a number, 0 or more")
        if name not in present and weight != 0:
            raise InputError(
                f"mixture.{field}: no samples for {name!r}, only for {sorted(present)}; "
                "remove it there, or add such samples"
            )
