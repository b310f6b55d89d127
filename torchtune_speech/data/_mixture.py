"""From mixture weights to the sources of a plan."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from torchtune_speech.data._manifest import Sample
from torchtune_speech.data._plan import Source
from torchtune_speech.errors import InputError

Weights = Mapping[str, float] | str | None


def plan_sources(samples: Sequence[Sample], mixture: Mapping | None) -> list[Source]:
    """Group samples into the sources that a plan draws from.

    Args:
        samples: the data set.
        mixture: None for one shuffled pass over everything; else ``task`` (task to weight), and
            optionally ``domain`` (domain to weight, or ``uniform``) and ``language`` (task to
            target language to weight, or task to ``uniform``). What is not weighted counts by its
            number of samples. A step is drawn from one task, domain and target language.

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
    unknown = set(mixture) - {"task", "domain", "language"}
    if unknown or "task" not in mixture:
        raise InputError(
            f"mixture: needs task, and may have domain and language; found {sorted(mixture)}"
        )
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, s in enumerate(samples):
        groups.setdefault((s.task, s.domain, s.target_lang), []).append(i)
    shares: dict[tuple[str, str, str], float] = {}
    for task, task_share in _shares("task", mixture["task"], _sizes(groups, 0)).items():
        of_task = {k: v for k, v in groups.items() if k[0] == task}
        domain_weights = _present(mixture.get("domain"), _sizes(of_task, 1))
        for domain, share in _shares("domain", domain_weights, _sizes(of_task, 1)).items():
            of_domain = {k: v for k, v in of_task.items() if k[1] == domain}
            weights = (mixture.get("language") or {}).get(task)
            for lang, lang_share in _shares(
                f"language.{task}", weights, _sizes(of_domain, 2)
            ).items():
                shares[task, domain, lang] = task_share * share * lang_share
    return [
        Source(
            "/".join(p for p in key if p),
            share,
            np.array(groups[key]),
            samples[groups[key][0]].is_speech,
        )
        for key, share in shares.items()
        if share > 0
    ]


def _sizes(groups: Mapping[tuple[str, str, str], list[int]], part: int) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for key, members in groups.items():
        sizes[key[part]] += len(members)
    return sizes


def _present(weights: Weights, sizes: Counter[str]) -> Weights:
    """Domain weights hold for all tasks, but a task need not have every domain."""
    if not isinstance(weights, Mapping):
        return weights
    return {k: v for k, v in weights.items() if k in sizes} or None


def _shares(field: str, weights: Weights, sizes: Counter[str]) -> dict[str, float]:
    if weights is None:
        weights = sizes
    elif weights == "uniform":
        weights = dict.fromkeys(sizes, 1.0)
    missing = [k for k, v in weights.items() if v > 0 and k not in sizes]
    if missing:
        raise InputError(f"mixture.{field}: no samples for {missing}; the data has {sorted(sizes)}")
    total = sum(weights.values())
    if total <= 0:
        raise InputError(f"mixture.{field}: the weights sum to {total}; give positive ones")
    return {k: v / total for k, v in weights.items()}
