"""SpecAugment: stretches of time and bands of frequency hidden from training."""

from typing import Literal

import torch
from torch import Tensor


def spec_augment(
    frames_td: Tensor,
    *,
    time_masks: int = 2,
    time_width: int = 20,
    freq_masks: int = 2,
    freq_width: int = 15,
    max_time_fraction: float = 0.2,
    stack: int = 1,
    seed: int,
    fill: float | Literal["mean"] = 0.0,
) -> Tensor:
    """Mask random stretches of one utterance.

    The width of each mask is uniform between nothing and the width given, its place uniform among
    those where it fits; masks may overlap. The same seed gives the same masks on every machine.

    Args:
        frames_td: frames of one utterance, ``[t, d]``.
        time_masks: number of stretches of time.
        time_width: longest stretch in frames.
        freq_masks: number of bands.
        freq_width: widest band in bins.
        max_time_fraction: longest stretch as a share of the utterance, so that short utterances
            keep their words.
        stack: copies of the frequency axis in a frame. Two mel frames stacked into one 160-dim
            frame are ``stack=2``: the same mel bins are masked in both halves.
        seed: of this utterance in this epoch.
        fill: what masked elements become: a number (0 for normalised features), or ``"mean"``, the
            utterance's mean of each dimension.

    Returns:
        A new tensor ``[t, d]``.

    Raises:
        ValueError: if ``stack`` does not divide ``d``, or a number is below 0.

    Source: https://arxiv.org/abs/1904.08779; the share bounds the stretches as in
    https://arxiv.org/abs/1912.05533
    """
    num_frames, dim = frames_td.shape
    for name, number in (
        ("time_masks", time_masks),
        ("time_width", time_width),
        ("freq_masks", freq_masks),
        ("freq_width", freq_width),
        ("max_time_fraction", max_time_fraction),
    ):
        if number < 0:
            raise ValueError(f"{name} ({number}) must be 0 or more")
    if isinstance(fill, str) and fill != "mean":
        raise ValueError(f"fill ({fill!r}) must be a number or 'mean'")
    if dim % stack:
        raise ValueError(f"stack ({stack}) must divide the width of the frames ({dim})")
    generator = torch.Generator("cpu").manual_seed(seed)
    time_width = min(time_width, int(max_time_fraction * num_frames))
    mask_t = _random_stretches(num_frames, time_masks, time_width, generator)
    mask_d = _random_stretches(dim // stack, freq_masks, freq_width, generator).repeat(stack)
    mask_td = (mask_t[:, None] | mask_d).to(frames_td.device)
    if fill == "mean":
        value = frames_td.float().mean(0).to(frames_td.dtype)
    else:
        value = torch.tensor(fill, dtype=frames_td.dtype, device=frames_td.device)
    return torch.where(mask_td, value, frames_td)


def _random_stretches(size: int, count: int, width: int, generator: torch.Generator) -> Tensor:
    """True where at least one of ``count`` random stretches of a line lies, ``[size]``."""
    draws_2c = torch.rand(2, count, dtype=torch.float64, generator=generator, device="cpu")
    widths_c = (draws_2c[0] * (min(width, size) + 1)).long()
    starts_c = (draws_2c[1] * (size - widths_c + 1)).long()
    places_s1 = torch.arange(size, device="cpu")[:, None]
    return ((places_s1 >= starts_c) & (places_s1 < starts_c + widths_c)).any(1)
