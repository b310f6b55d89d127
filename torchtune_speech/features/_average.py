"""Averaging of neighbouring encoder frames."""

from typing import overload

import torch
from torch import Tensor


@overload
def averaged_length(frames: int, k: int) -> int: ...
@overload
def averaged_length(frames: Tensor, k: int) -> Tensor: ...
def averaged_length(frames: int | Tensor, k: int) -> int | Tensor:
    """Number of frames that are left of ``frames`` when every ``k`` are averaged into one.

    Args:
        frames: number of frames, or an integer tensor of such numbers.
        k: how many neighbouring frames become one.

    Returns:
        ``frames / k`` rounded up, since the remainder forms a last, shorter average.
    """
    return (frames + k - 1) // k


def average_frames(frames_td: Tensor, k: int) -> Tensor:
    """Average every ``k`` neighbouring frames; the remainder is a last, shorter average.

    The mean is taken in float32 whatever the dtype of the frames, and no frame is dropped.

    Args:
        frames_td: frames of one utterance, shape [t, d].
        k: how many neighbouring frames become one; 1 returns ``frames_td`` itself.

    Returns:
        Frames of shape [averaged_length(t, k), d] in the dtype of ``frames_td``.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> average_frames(torch.tensor([[0.0], [2.0], [7.0]]), 2)
        tensor([[1.],
                [7.]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k == 1:
        return frames_td
    whole = frames_td.shape[0] // k * k
    frames = frames_td.float()
    averages = [frames[:whole].unflatten(0, (whole // k, k)).mean(1)]
    if whole < frames_td.shape[0]:
        averages.append(frames[whole:].mean(0, keepdim=True))
    return torch.cat(averages).to(frames_td.dtype)
