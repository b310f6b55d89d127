"""Where long audio is cut: at fixed places, or where it is silent."""

import math

import numpy as np
from torch import Tensor

from torchtune_speech.errors import InputError

# (offset, duration) in seconds.
Window = tuple[float, float]

# The fixed windows' last one is no shorter than this share of the others.
_SHORTEST = 1 / 3
_HOP_S, _SMOOTH_S = 0.05, 0.2
# So far below the middle of the recording, quiet is quiet.
_DEEPEST_DB = 40.0


def fixed_windows(
    duration_s: float, window_s: float = 30.0, overlap_s: float = 0.0
) -> list[Window]:
    """Windows of one length, one after the other.

    Where a last window of less than a third would be left, it shares what is left with the one
    before: a model that learnt from sentences makes little of a second's end of speech.

    Args:
        duration_s: length of the audio, in seconds.
        window_s: length of a window, in seconds.
        overlap_s: what two neighbours have in common, in seconds.

    Returns:
        Offset and duration of each window, in seconds, to the millisecond.

    Raises:
        InputError: if the windows are no longer than their overlap.

    Example:
        >>> fixed_windows(65.0)
        [(0.0, 30.0), (30.0, 17.5), (47.5, 17.5)]
    """
    _check_window(window_s)
    if not 0 <= overlap_s < window_s:
        raise InputError(
            f"overlap: {overlap_s:g} s of windows of {window_s:g} s; make it 0 or more, and "
            "shorter than the window"
        )
    windows, start = [], 0.0
    while duration_s - start > window_s:
        rest = duration_s - start - window_s + overlap_s  # the next window and what follows
        length = window_s
        if rest < window_s * _SHORTEST + overlap_s:
            length = min(window_s, (duration_s - start + overlap_s) / 2)
        windows.append((start, length))
        start += length - overlap_s
    windows.append((start, duration_s - start))
    return [(round(offset, 3), round(length, 3)) for offset, length in windows]


def silence_windows(
    waveform: Tensor,
    sampling_rate: int,
    max_s: float = 30.0,
    min_s: float | None = None,
    cut_cost_db: float = 20.0,
) -> list[Window]:
    """Windows whose borders lie where the audio is quietest.

    All ways to cut are compared by dynamic programming: the loudness at the cuts, in decibel over
    the quietest place of the recording, is summed up, and each cut costs something of its own, so
    that there are few of them.

    Args:
        waveform: mono audio, ``[samples]``.
        sampling_rate: in Hz.
        max_s: longest window, in seconds.
        min_s: shortest window, in seconds (of audio that is long enough). Default: 2, or half of
            ``max_s`` where that is less.
        cut_cost_db: what a cut costs besides its loudness, in decibel.

    Returns:
        Offset and duration of each window, in seconds, to the millisecond; they follow each other
        without gap or overlap.

    Raises:
        InputError: if ``max_s`` is not above 0, or ``min_s`` more than half of it: not all audio
            could be cut then.

    Example:
        >>> silence_windows(load_audio("talk.flac"), 16_000)[:2]
        [(0.0, 21.35), (21.35, 28.9)]
    """
    _check_window(max_s)
    min_s = min(2.0, max_s / 2) if min_s is None else min_s
    if not 0 < min_s <= max_s / 2:
        raise InputError(
            f"window: {min_s:g} to {max_s:g} s; the shortest may be half of the longest at most"
        )
    duration_s = len(waveform) / sampling_rate
    if duration_s <= max_s:
        return [(0.0, round(duration_s, 3))]
    hop = round(_HOP_S * sampling_rate)
    hop_s = hop / sampling_rate
    cost = _loudness_db(waveform, hop) + cut_cost_db
    longest = max(int(max_s / hop_s), 2)
    cuts = _cheapest_cuts(cost, min(math.ceil(min_s / hop_s), longest // 2), longest)
    edges = [0.0, *(cut * hop_s for cut in cuts), duration_s]
    return [
        (round(start, 3), round(end - start, 3))
        for start, end in zip(edges, edges[1:], strict=False)
    ]


def _check_window(window_s: float) -> None:
    if not 0 < window_s < math.inf:
        raise InputError(f"window: {window_s:g} s; give a length above 0, such as 30")


def _loudness_db(waveform: Tensor, hop: int) -> np.ndarray:
    """Loudness around each multiple of the hop, over that of the quietest, in decibel, ``[n]``."""
    samples = waveform.numpy().astype(np.float64)
    count = math.ceil(len(samples) / hop)
    samples = np.pad(samples, (0, count * hop - len(samples)))
    power = (samples[: count * hop].reshape(count, hop) ** 2).mean(axis=1)
    width = max(round(_SMOOTH_S / _HOP_S), 1)
    # Place n lies between hops n - 1 and n: as many of them on either side.
    sums = np.concatenate([[0.0], power.cumsum()])
    first = np.clip(np.arange(count + 1) - width // 2, 0, count)
    last = np.clip(np.arange(count + 1) + width // 2, 0, count)
    mean = (sums[last] - sums[first]) / np.maximum(last - first, 1)
    level = 10 * np.log10(np.maximum(mean, 1e-10))
    # A patch of digital silence is no better a place than a pause, and must not look so.
    level = np.maximum(level, np.median(level) - _DEEPEST_DB)
    return level - level.min()


def _cheapest_cuts(cost: np.ndarray, shortest: int, longest: int) -> list[int]:
    """Places of the cuts, of which two neighbours are ``shortest`` to ``longest`` apart."""
    end = len(cost) - 1
    best = np.full(end + 1, np.inf)
    best[0] = 0.0
    before = np.zeros(end + 1, dtype=np.int64)
    for place in range(shortest, end + 1):
        first, last = max(place - longest, 0), place - shortest
        start = first + int(best[first : last + 1].argmin())
        best[place] = best[start] + (0.0 if place == end else cost[place])
        before[place] = start
    cuts, place = [], int(before[end])
    while place > 0:
        cuts.append(place)
        place = int(before[place])
    return cuts[::-1]
