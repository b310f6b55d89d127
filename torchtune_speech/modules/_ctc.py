"""Connectionist temporal classification over packed utterances."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.modules._packing import pad_packed
from torchtune_speech.modules._transfer import copy_to_device


def ctc_loss_sum(
    logits_nv: Tensor,
    lengths_u: Tensor,
    targets_flat: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """CTC loss, summed over the utterances that :func:`ctc_possible` finds fit for it.

    The others (no transcript, or too short for it) add nothing to loss and gradient, instead of
    teaching blanks or an infinite loss. The sum lets the caller divide by a count over all
    accumulation steps and processes.

    Args:
        logits_nv: unnormalised scores, packed, ``[n, v]``; computed in fp32.
        lengths_u: vectors of each utterance, ``[u]``, adding up to ``n``. Kept on the CPU, like
            ``target_lengths``, it spares a GPU a synchronisation.
        targets_flat: symbols of all targets, concatenated; none may be the blank.
        target_lengths: symbols of each target, ``[u]``; 0 where the transcript is not known.
        blank: id of the blank.

    Returns:
        Loss in nats summed over utterances (fp32, no dimension), and the number of utterances in
        it.

    Source: Graves et al., https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    device = logits_nv.device
    if lengths_u.numel() == 0:  # logits may be there: of a dummy frame that keeps FSDP in step
        return 0.0 * logits_nv.float().sum(), torch.zeros((), dtype=torch.long, device=device)
    padded, _ = pad_packed(logits_nv.float().log_softmax(-1), lengths_u)
    targets_flat = copy_to_device(targets_flat, device)
    losses_u = F.ctc_loss(  # reads the lengths on the CPU, wherever they are
        padded.transpose(0, 1),
        targets_flat,
        lengths_u,
        target_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    lengths_u = copy_to_device(lengths_u, device)
    target_lengths = copy_to_device(target_lengths, device)
    possible_u = ctc_possible(lengths_u, targets_flat, target_lengths)
    return torch.where(possible_u, losses_u, 0.0).sum(), possible_u.sum()


def ctc_possible(lengths_u: Tensor, targets_flat: Tensor, target_lengths: Tensor) -> Tensor:
    """Which utterances have a target and can hold it.

    An utterance needs a vector for every symbol and one more between equal neighbours.

    Args:
        lengths_u: vectors of each utterance, ``[u]``.
        targets_flat: symbols of all targets, concatenated, on the same device.
        target_lengths: symbols of each target, ``[u]``, on the same device.

    Returns:
        A mask, ``[u]``.

    Example:
        >>> ctc_possible(torch.tensor([3, 3, 9]), torch.tensor([1, 2, 1, 1, 1, 2]),
        ...              torch.tensor([3, 3, 0]))
        tensor([ True, False, False])
    """
    return (target_lengths > 0) & (lengths_u >= _vectors_needed(targets_flat, target_lengths))


def _vectors_needed(targets_flat: Tensor, target_lengths: Tensor) -> Tensor:
    """Shortest utterance that can hold each target: its symbols and the repeats among them."""
    utterance = torch.repeat_interleave(target_lengths, output_size=targets_flat.numel())
    repeats = (targets_flat[1:] == targets_flat[:-1]) & (utterance[1:] == utterance[:-1])
    return target_lengths.index_add(0, utterance[1:], repeats.to(target_lengths.dtype))


def ctc_greedy(logits_nv: Tensor, lengths_u: Tensor, blank: int = 0) -> list[list[int]]:
    """Best symbol of every vector, repeats merged, blanks dropped.

    Args:
        logits_nv: scores, packed, ``[n, v]``.
        lengths_u: vectors of each utterance, ``[u]``.
        blank: id of the blank.

    Returns:
        The symbols of each utterance.

    Example:
        >>> logits = torch.eye(3)[[1, 1, 0, 1, 2, 2, 1]]
        >>> ctc_greedy(logits, torch.tensor([4, 3]))
        [[1, 1], [2, 1]]
    """
    # The result is read on the CPU: one copy, then nothing waits for the device again.
    symbols_n, lengths_u = logits_nv.argmax(-1).cpu(), lengths_u.cpu()
    utterance_n = torch.repeat_interleave(lengths_u, output_size=len(symbols_n))
    keep_n = symbols_n != blank
    keep_n[1:] &= (symbols_n[1:] != symbols_n[:-1]) | (utterance_n[1:] != utterance_n[:-1])
    counts_u = torch.zeros_like(lengths_u).index_add(0, utterance_n, keep_n.to(lengths_u.dtype))
    return [part.tolist() for part in symbols_n[keep_n].split(counts_u.tolist())]
