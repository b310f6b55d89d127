"""Samples that cannot be used: they do not fit, or their audio has no frames."""

from collections.abc import Callable, Sequence

import numpy as np
from torchtune.utils import get_logger

from torchtune_speech.data._sample import Sample
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore

_log = get_logger("INFO")


def refuse_or_tell(
    samples: Sequence[Sample],
    bad_n: np.ndarray,
    have: Callable[[int], str],
    cure: str,
    on_too_long: str,
    what: str = "samples",
) -> None:
    """Refuse samples that do not fit, or have the log tell that they are skipped.

    Args:
        samples: the samples.
        bad_n: True for those that do not fit, at least one, ``[n]``.
        have: what a sample has, by its number.
        cure: what to do about it.
        on_too_long: ``fail`` or ``skip``.
        what: what does not fit, in the plural.

    Raises:
        InputError: naming the first of them, under ``fail``.
    """
    first = int(np.flatnonzero(bad_n)[0])
    many = f"{bad_n.sum()} of {len(samples)} {what}"
    if on_too_long == "skip":
        _log.warning("skipped %s, among them %s: %s", many, samples[first].id, have(first))
        return
    raise InputError(
        f"sample {samples[first].id}: {have(first)}; {many} do not fit: {cure}, or set "
        "dataset.on_too_long=skip"
    )


def num_frames(store: FeatureStore, sample: Sample, key: str) -> int:
    """Encoder frames of one audio cut of a sample.

    Args:
        store: the feature store.
        sample: the sample, which the error names.
        key: of the cut, see :attr:`AudioCut.key`.

    Returns:
        Their number.

    Raises:
        InputError: if the store does not have the cut.
    """
    if key not in store:
        raise InputError(
            f"sample {sample.id}: audio {key} is not in the feature store; "
            "run extract_features on this manifest"
        )
    return store.num_frames(key)
