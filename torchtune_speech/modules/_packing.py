"""Utterances of different lengths in one tensor: packed, padded, grouped by length, stacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from torchtune_speech.modules._transfer import copy_to_device

Frames = TypeVar("Frames", int, Tensor)


def pad_packed(
    frames_td: Tensor, lengths_u: Tensor, max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Lay packed utterances out as a right-padded batch.

    Args:
        frames_td: all utterances one after another, ``[t, d]``.
        lengths_u: frames of each utterance, ``[u]``, adding up to ``t``. Kept on the CPU it
            spares a GPU the synchronisation that ``max_length`` spares as well.
        max_length: padded length; the longest utterance by default.

    Returns:
        Frames ``[u, l, d]``, zero in the padding, and a boolean mask ``[u, l]``, True on real
        frames.

    Example:
        >>> padded, mask = pad_packed(torch.arange(1.0, 4.0)[:, None], torch.tensor([1, 2]))
        >>> padded[:, :, 0].tolist()
        [[1.0, 0.0], [2.0, 3.0]]
        >>> mask.tolist()
        [[True, False], [True, True]]
    """
    if max_length is None:
        max_length = int(lengths_u.max()) if lengths_u.numel() else 0
    num_utterances, (num_frames, dim) = lengths_u.numel(), frames_td.shape
    index_t = _padded_index(lengths_u, max_length, num_frames)
    index_t = copy_to_device(index_t, frames_td.device)
    flat = frames_td.new_zeros(num_utterances * max_length, dim)
    padded_uld = flat.index_copy(0, index_t, frames_td).view(num_utterances, max_length, dim)
    mask_ul = torch.arange(max_length, device=lengths_u.device) < lengths_u[:, None]
    return padded_uld, copy_to_device(mask_ul, frames_td.device)


def _padded_index(lengths_u: Tensor, max_length: int, num_frames: int) -> Tensor:
    """Row of each packed frame in the flattened padded batch, ``[t]``."""
    starts_u = lengths_u.cumsum(0) - lengths_u
    rows_u = torch.arange(lengths_u.numel(), device=lengths_u.device) * max_length
    shift_t = torch.repeat_interleave(rows_u - starts_u, lengths_u, output_size=num_frames)
    return torch.arange(num_frames, device=lengths_u.device) + shift_t


def stacked_length(frames: Frames, stack: int) -> Frames:
    """Number of vectors that ``frames`` frames become when stacked by ``stack``: the ceiling."""
    return -(-frames // stack)


def stack_packed(frames_td: Tensor, lengths_u: Tensor, stack: int) -> Tensor:
    """Join every ``stack`` consecutive frames of an utterance into one vector.

    The last vector of an utterance is filled with zeros, so that no speech is dropped and no
    vector holds frames of two utterances.

    Args:
        frames_td: packed frames, ``[t, d]``.
        lengths_u: frames of each utterance, ``[u]``; on the CPU for speed.
        stack: frames in one vector; 1 returns the frames as they are.

    Returns:
        Packed vectors, ``[sum(ceil(length / stack)), stack * d]``.
    """
    if stack == 1:
        return frames_td
    num_frames, dim = frames_td.shape
    rooms_u = stacked_length(lengths_u, stack) * stack
    num_rooms = int(rooms_u.sum())
    shift_u = (rooms_u.cumsum(0) - rooms_u) - (lengths_u.cumsum(0) - lengths_u)
    shift_t = torch.repeat_interleave(shift_u, lengths_u, output_size=num_frames)
    index_t = torch.arange(num_frames, device=lengths_u.device) + shift_t
    rooms = frames_td.new_zeros(num_rooms, dim)
    rooms = rooms.index_copy(0, copy_to_device(index_t, frames_td.device), frames_td)
    return rooms.view(num_rooms // stack, stack * dim)


def length_groups(
    lengths: Sequence[int], max_padding: float = 0.15, min_frames: int = 512
) -> list[list[int]]:
    """Group utterances of similar length, longest first.

    Args:
        lengths: frames of each utterance.
        max_padding: largest share of padding in a group.
        min_frames: padded frames that a group must reach before another is opened: below that,
            the padding costs less than one more pass.

    Returns:
        Utterance numbers of each group; utterances without frames are in none.
    """
    groups: list[list[int]] = []
    padded = real = 0  # frames of the group that is being filled, with and without padding
    order = sorted((u for u, length in enumerate(lengths) if length), key=lambda u: -lengths[u])
    for utterance in order:
        length = lengths[utterance]
        longest = lengths[groups[-1][0]] if groups else 0
        wasteful = real + length < (1 - max_padding) * (padded + longest)
        if not groups or (padded >= min_frames and wasteful):
            groups.append([])
            longest, padded, real = length, 0, 0
        groups[-1].append(utterance)
        padded, real = padded + longest, real + length
    return groups


@dataclass(frozen=True)
class Packing:
    """Where utterances lie in packed frames, and how to lay them out for what needs rows.

    Layers work on packed frames ``[t, d]``. Only what looks across frames (attention) needs to
    know where an utterance ends, and asks this object: it is the one place to change for another
    layout (such as variable-length attention kernels).

    Args:
        lengths_u: frames of each utterance, ``[u]``, on the CPU.
        positions_t: position of each frame in its utterance, ``[t]``.
        utterance_t: number of the utterance that each frame belongs to, ``[t]``.
        shapes: utterances and padded length of each length group.
        masks: a boolean mask ``[u, 1, 1, l]`` for each group, True on real frames; None where all
            its utterances have the same length.
        pad_index: packed frame for each padded place, all groups flattened one after another.
            Padding repeats the last frame of its own utterance, so that nothing another utterance
            holds, not even NaN, can reach it. None where the packed order is the padded one.
        unpad_index: padded place of each packed frame, ``[t]``.
    """

    lengths_u: Tensor
    positions_t: Tensor
    utterance_t: Tensor
    shapes: tuple[tuple[int, int], ...]
    masks: tuple[Tensor | None, ...]
    pad_index: Tensor | None
    unpad_index: Tensor | None

    @classmethod
    def from_lengths(
        cls,
        lengths_u: Tensor,
        device: torch.device | str = "cpu",
        max_padding: float = 0.15,
        min_frames: int | None = None,
    ) -> "Packing":
        """Plan the layout of one batch; everything is computed on the CPU, then moved.

        Args:
            lengths_u: frames of each utterance, ``[u]``.
            device: where the frames are.
            max_padding: see :func:`length_groups`.
            min_frames: see :func:`length_groups`; by default 512 on a CPU and 16,384 elsewhere,
                where one more pass costs more than padding.

        Returns:
            The layout.
        """
        if min_frames is None:
            min_frames = 512 if torch.device(device).type == "cpu" else 16_384
        lengths_u = lengths_u.to("cpu", torch.long)
        starts_u = lengths_u.cumsum(0) - lengths_u
        utterance_t = torch.repeat_interleave(lengths_u)
        positions_t = torch.arange(len(utterance_t), device="cpu") - starts_u[utterance_t]
        places, masks = [], []  # of each group, [u, l]
        for members in length_groups(lengths_u.tolist(), max_padding, min_frames):
            members_u1 = torch.tensor(sorted(members), device="cpu")[:, None]
            last_u1 = lengths_u[members_u1] - 1
            positions_l = torch.arange(int(last_u1.max()) + 1, device="cpu")
            places.append(starts_u[members_u1] + positions_l.minimum(last_u1))
            masks.append(positions_l <= last_u1)
        pad_index = unpad_index = None
        if len(masks) > 1 or not all(mask.all() for mask in masks):
            pad_index = torch.cat([place.flatten() for place in places])
            real = torch.cat([mask.flatten() for mask in masks])
            unpad_index = torch.empty_like(positions_t)
            unpad_index[pad_index[real]] = real.nonzero().squeeze(1)
            pad_index = copy_to_device(pad_index, device)
            unpad_index = copy_to_device(unpad_index, device)
        return cls(
            lengths_u=lengths_u,
            positions_t=copy_to_device(positions_t, device),
            utterance_t=copy_to_device(utterance_t, device),
            shapes=tuple(tuple(mask.shape) for mask in masks),
            masks=tuple(
                None if m.all() else copy_to_device(m[:, None, None], device) for m in masks
            ),
            pad_index=pad_index,
            unpad_index=unpad_index,
        )

    def pad(self, frames_td: Tensor) -> list[Tensor]:
        """Packed frames ``[t, d]`` to one padded batch ``[u, l, d]`` a length group."""
        if self.pad_index is not None:
            frames_td = frames_td.index_select(0, self.pad_index)
        parts = frames_td.split([rows * length for rows, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def unpad(self, groups: Sequence[Tensor]) -> Tensor:
        """One padded batch ``[u, l, d]`` a length group back to packed frames ``[t, d]``."""
        flat = torch.cat([group.flatten(0, 1) for group in groups])
        return flat if self.unpad_index is None else flat.index_select(0, self.unpad_index)

    def spaced_index(self, gap: int) -> Tensor:
        """Place of each frame in one row with ``gap`` free places after each utterance, ``[t]``."""
        return torch.arange(len(self.utterance_t), device=self.utterance_t.device) + (
            gap * self.utterance_t
        )
