"""From frames to tokens in order: one vector for each symbol that CTC hears."""

import torch
from torch import Tensor

from torchtune_speech.modules._transfer import copy_to_device


def ctc_compress(
    frames_td: Tensor,
    ctc_logits_tv: Tensor,
    lengths_u: Tensor,
    slots_u: Tensor,
    blank: int = 0,
) -> Tensor:
    """Average the frames of each symbol of CTC's best path, and drop those of blanks.

    Slot k of an utterance is the mean of the frames of its symbol k, as greedy decoding collapses
    them. Slots behind the last symbol are zero, symbols beyond the last slot are dropped. Which
    frames are averaged has no gradient; the frames have.

    Args:
        frames_td: packed frames, ``[t, d]``.
        ctc_logits_tv: CTC logits of the same frames, ``[t, v]``.
        lengths_u: frames of each utterance, ``[u]``, adding up to ``t``; on the CPU for speed.
        slots_u: slots of each utterance, ``[u]``.
        blank: index of the blank. Default 0.

    Returns:
        Packed slots, ``[sum(slots_u), d]``.

    Source: CTC-based compression, https://arxiv.org/abs/2102.01578 (there blanks are averaged and
    kept, too)

    Example:
        >>> frames = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
        >>> heard = torch.eye(3)[[0, 1, 1, 0, 2]]  # blank, 1, 1, blank, 2
        >>> ctc_compress(frames, heard, torch.tensor([5]), torch.tensor([3]))[:, 0]
        tensor([ 3., 16.,  0.])
    """
    lengths_u, slots_u = lengths_u.to("cpu", torch.long), slots_u.to("cpu", torch.long)
    num_slots, device = int(slots_u.sum()), frames_td.device
    if not num_slots:
        return frames_td[:0]  # not new zeros: those would be cut from the graph
    symbol_t, number_t = _best_path(ctc_logits_tv, lengths_u, blank)
    first_t = copy_to_device((slots_u.cumsum(0) - slots_u).repeat_interleave(lengths_u), device)
    room_t = copy_to_device(slots_u.repeat_interleave(lengths_u), device)
    # A weight of zero instead of a mask: a mask's size would have to be waited for on a GPU.
    # In bfloat16 a count would end at 256, and a sum little later.
    wide = torch.promote_types(frames_td.dtype, torch.float32)
    counts_t = ((symbol_t != blank) & (number_t < room_t)).to(wide)
    place_t = first_t + number_t.clamp(min=0).minimum(room_t - 1)
    sums_nd = counts_t.new_zeros(num_slots, frames_td.shape[1])
    sums_nd = sums_nd.index_add(0, place_t, frames_td.to(wide) * counts_t[:, None])
    counts_n = counts_t.new_zeros(num_slots).index_add(0, place_t, counts_t)
    return (sums_nd / counts_n.clamp(min=1)[:, None]).to(frames_td.dtype)


def _best_path(ctc_logits_tv: Tensor, lengths_u: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Each frame's likeliest symbol, and how many symbols its utterance had before it, ``[t]``.

    Frames of one symbol in a row have one number; that of a blank says nothing.
    """
    device = ctc_logits_tv.device
    symbol_t = ctc_logits_tv.detach().argmax(-1)
    starts_u = lengths_u.cumsum(0) - lengths_u
    before_t = torch.cat([symbol_t[:1], symbol_t[:-1]])
    occupied_u = copy_to_device(starts_u[lengths_u > 0], device)
    before_t = before_t.index_fill(0, occupied_u, blank)  # an utterance begins anew
    begins_t = (symbol_t != blank) & (symbol_t != before_t)
    total_t = begins_t.cumsum(0)
    starts_t = copy_to_device(starts_u.repeat_interleave(lengths_u), device)
    before_utterance_t = (total_t - begins_t.long()).index_select(0, starts_t)
    return symbol_t, total_t - before_utterance_t - 1
