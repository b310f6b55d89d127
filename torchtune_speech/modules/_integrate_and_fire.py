"""From frames to tokens in order: frames add up to a token each time CTC expects a new one."""

import torch
from torch import Tensor

from torchtune_speech.modules._transfer import copy_to_device


def new_token_probs(ctc_logits_tv: Tensor, lengths_u: Tensor, blank: int = 0) -> Tensor:
    """Probability that each frame begins a new CTC symbol.

    ``sum over symbols k of p_t(k) * (1 - p_{t-1}(k))``, since a symbol that the frame before has,
    too, is not another one. Their sum over an utterance is the expected number of symbols.

    Args:
        ctc_logits_tv: packed CTC logits, ``[t, v]``.
        lengths_u: frames of each utterance, ``[u]``, adding up to ``t``; on the CPU for speed.
        blank: index of the blank. Default 0.

    Returns:
        Probabilities, float32 ``[t]``.

    Source: the collapsing of repeats in CTC, Graves et al. 2006, section 3
    https://www.cs.toronto.edu/~graves/icml_2006.pdf

    Example:
        >>> sure = 20 * torch.eye(3)[[0, 1, 1, 0, 1, 2]]  # blank, 1, 1, blank, 1, 2
        >>> new_token_probs(sure, torch.tensor([6])).round()
        tensor([0., 1., 0., 0., 1., 1.])
    """
    probs_tv = ctc_logits_tv.float().softmax(-1)
    before_tv = torch.cat([torch.zeros_like(probs_tv[:1]), probs_tv[:-1]])
    lengths_u = lengths_u.to("cpu", torch.long)
    starts_u = (lengths_u.cumsum(0) - lengths_u)[lengths_u > 0]
    before_tv = before_tv.index_fill(0, copy_to_device(starts_u, probs_tv.device), 0.0)
    new_tv = probs_tv * (1 - before_tv)
    return new_tv.sum(-1) - new_tv[:, blank]


def integrate_and_fire(
    frames_td: Tensor, weights_t: Tensor, lengths_u: Tensor, slots_u: Tensor
) -> Tensor:
    """Sum frames into slots: slot k takes what makes the running sum of weights go from k to k + 1.

    A frame whose weight crosses a whole number is shared by the two slots. Slots that the weights
    never reach are zero, weights beyond the last slot are dropped.

    Args:
        frames_td: packed frames, ``[t, d]``.
        weights_t: weight of each frame, 0 to 1, ``[t]``, such as :func:`new_token_probs`.
        lengths_u: frames of each utterance, ``[u]``, adding up to ``t``; on the CPU for speed.
        slots_u: slots of each utterance, ``[u]``.

    Returns:
        Packed slots, ``[sum(slots_u), d]``.

    Source: continuous integrate-and-fire, section 3.1 of https://arxiv.org/abs/1905.11235

    Example:
        >>> frames = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
        >>> weights = torch.tensor([0.5, 1.0, 0.0, 1.0])
        >>> integrate_and_fire(frames, weights, torch.tensor([4]), torch.tensor([4]))[:, 0]
        tensor([1.5000, 5.0000, 4.0000, 0.0000])
    """
    lengths_u, slots_u = lengths_u.to("cpu", torch.long), slots_u.to("cpu", torch.long)
    num_slots, device = int(slots_u.sum()), frames_td.device
    if not num_slots:
        return frames_td.new_zeros(0, frames_td.shape[1])
    first_u = slots_u.cumsum(0) - slots_u
    first_t = copy_to_device(first_u.repeat_interleave(lengths_u), device)
    slots_t = copy_to_device(slots_u.repeat_interleave(lengths_u), device)
    before_t, after_t = _running_sums(weights_t, lengths_u)
    slot_t = before_t.detach().floor()
    in_first_t = torch.minimum(after_t, slot_t + 1) - before_t
    in_next_t = (after_t - slot_t - 1).clamp(min=0)
    out_nd = frames_td.new_zeros(num_slots, frames_td.shape[1])
    for number_t, share_t in ((slot_t.long(), in_first_t), (slot_t.long() + 1, in_next_t)):
        # A weight of zero instead of a mask: a mask's size would have to be waited for on a GPU.
        share_t = (share_t * (number_t < slots_t)).to(frames_td.dtype)
        place_t = first_t + torch.minimum(number_t, slots_t - 1).clamp(min=0)
        out_nd = out_nd.index_add(0, place_t, frames_td * share_t[:, None])
    return out_nd


def _running_sums(weights_t: Tensor, lengths_u: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of each utterance's weights before and after each frame, ``[t]`` in double precision.

    In single precision what an utterance gets would depend on those before it in the batch.
    """
    after_t = weights_t.double().cumsum(0)
    before_t = torch.cat([after_t.new_zeros(1), after_t[:-1]])
    starts_t = (lengths_u.cumsum(0) - lengths_u).repeat_interleave(lengths_u)
    base_t = before_t.index_select(0, copy_to_device(starts_t, weights_t.device))
    return before_t - base_t, after_t - base_t
