"""Convolution over time, with a stride, in which no utterance sees another."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_speech.errors import InputError
from torchtune_speech.modules._packing import stacked_length
from torchtune_speech.modules._transfer import copy_to_device


def packed_conv1d(
    frames_td: Tensor,
    lengths_u: Tensor,
    weight_odk: Tensor,
    bias_o: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    """Convolve each utterance over time, as if it were alone between zeros.

    Vector j of an utterance sees the ``kernel`` frames around frames ``j * stride`` to
    ``j * stride + stride - 1``, so that a length of L gives ``ceil(L / stride)`` vectors and every
    frame is seen. It is ``conv1d`` with ``(kernel - stride) // 2`` zeros on the left and as many
    on the right as the last vector needs.

    All utterances are convolved in one row, each in a room of its own with the zeros it needs.
    Rooms are whole numbers of strides, so that one stride serves all.

    Args:
        frames_td: packed frames, ``[t, d]``.
        lengths_u: frames of each utterance, ``[u]``, adding up to ``t``; on the CPU for speed.
        weight_odk: weight of a convolution, ``[o, d, kernel]``.
        bias_o: its bias, ``[o]``. Default None.
        stride: frames from one vector to the next, at most ``kernel``. Default 1.

    Returns:
        Packed vectors, ``[sum(ceil(length / stride)), o]``, connected to the graph even if empty.

    Example:
        >>> ones = torch.ones(1, 1, 3)
        >>> packed_conv1d(torch.ones(6, 1), torch.tensor([4, 2]), ones)[:, 0]
        tensor([2., 3., 3., 2., 2., 2.])
    """
    kernel = weight_odk.shape[-1]
    lengths_u = lengths_u.to("cpu", torch.long)
    vectors_u = stacked_length(lengths_u, stride)
    # In strides: the last vector's window ends within the room.
    rooms_u = (vectors_u + stacked_length(kernel, stride) - 1) * (lengths_u > 0)
    starts_u = rooms_u.cumsum(0) - rooms_u
    place_t = _spread(lengths_u, starts_u * stride + (kernel - stride) // 2)
    row_length = max(int(rooms_u.sum()) * stride, kernel)  # of no frames: one window of zeros
    row = frames_td.new_zeros(row_length, frames_td.shape[1])
    row = row.index_copy(0, copy_to_device(place_t, frames_td.device), frames_td)
    row = F.conv1d(row.t()[None], weight_odk, bias_o, stride)[0].t()
    return row.index_select(0, copy_to_device(_spread(vectors_u, starts_u), row.device))


def _spread(lengths_u: Tensor, starts_u: Tensor) -> Tensor:
    """Places ``start, start + 1, ...`` of each utterance, one utterance after another."""
    shift_u = starts_u - (lengths_u.cumsum(0) - lengths_u)
    shift_t = torch.repeat_interleave(shift_u, lengths_u)
    return torch.arange(len(shift_t), device=shift_t.device) + shift_t


class PackedConv1d(nn.Conv1d):
    """Strided convolution over packed utterances: :func:`packed_conv1d` with its weights.

    Args:
        in_dim: width of the frames.
        out_dim: width of the vectors.
        kernel_size: frames that a vector sees.
        stride: frames from one vector to the next.

    Raises:
        InputError: if ``stride`` is above ``kernel_size``: frames between would be dropped.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, stride: int = 1) -> None:
        if stride > kernel_size:
            raise InputError(
                f"projector.strides: {stride} is above the kernel of {kernel_size}, which would "
                "drop frames; give a stride of at most the kernel"
            )
        super().__init__(in_dim, out_dim, kernel_size, stride)

    def output_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of vectors of an utterance of so many frames: ``ceil(frames / stride)``."""
        return stacked_length(frames, self.stride[0])

    def forward(self, frames_td: Tensor, lengths_u: Tensor) -> Tensor:
        """Convolve.

        Args:
            frames_td: packed frames, ``[t, in_dim]``.
            lengths_u: frames of each utterance, ``[u]``.

        Returns:
            Packed vectors, ``[sum(output_length(lengths_u)), out_dim]``.
        """
        return packed_conv1d(frames_td, lengths_u, self.weight, self.bias, self.stride[0])
