"""Loss of a step: normalised by supervised tokens over batches and processes."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchtune_speech.data import Batch
from torchtune_speech.models import SpeechLLM, block_causal_mask
from torchtune_speech.modules import ctc_loss_sum, ctc_possible
from torchtune_speech.training._process import Process

_SPEECH = ("frames", "frame_lengths", "speech_index", "keep_index")


@dataclasses.dataclass(frozen=True, slots=True)
class StepLoss:
    """What a step's forward and backward passes gave, over all processes.

    Args:
        loss: mean cross-entropy of the supervised tokens, in nats; with sigma its sum with the
            normalised squared error, each times its weight.
        ce: that cross-entropy; None in a step without it.
        nmse: mean squared error of the speech vectors, in units of ``error_unit``, by which
            :func:`forward_backward` divides it; None without sigma, or without speech.
        ctc: mean CTC loss per label of the utterances in it, in nats; None without CTC.
        ctc_skipped: utterances that are too short for their CTC target.
        supervised_tokens: number of supervised tokens.
        tokens: number of tokens without padding, placeholders included.
        slots: number of positions computed, padding included.
    """

    loss: float
    ce: float | None
    nmse: float | None
    ctc: float | None
    ctc_skipped: int
    supervised_tokens: int
    tokens: int
    slots: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepSums:
    """Sums of a step over all processes, on the device: reading them waits for it.

    Args:
        losses: cross-entropy and CTC loss, in nats, and normalised squared error, float64
            ``[3]``.
        counts: supervised tokens, CTC labels, utterances too short for theirs, tokens, positions,
            target tokens of speech vectors, float64 ``[6]``.
        with_ctc: whether the step has a CTC loss.
        only_ctc: whether it has no other.
        sigma: weight of the normalised squared error; the cross-entropy has the rest to 1.
    """

    losses: Tensor
    counts: Tensor
    with_ctc: bool
    only_ctc: bool = False
    sigma: float = 0.0

    def read(self) -> StepLoss:
        """Wait for the step, and take the means."""
        losses, counts = self.losses.tolist(), [int(n) for n in self.counts.tolist()]
        supervised, labels, skipped, tokens, slots, vectors = counts
        sums = zip(losses, (supervised, labels, vectors), strict=True)
        ce, ctc, nmse = (total / max(count, 1) for total, count in sums)
        loss = (1 - self.sigma) * ce + self.sigma * nmse if self.sigma > 0 else ce
        return StepLoss(
            loss=ctc if self.only_ctc else loss,
            ce=None if self.only_ctc else ce,
            nmse=nmse if self.sigma > 0 and vectors else None,
            ctc=ctc if self.with_ctc and labels else None,
            ctc_skipped=skipped,
            supervised_tokens=supervised,
            tokens=tokens,
            slots=slots,
        )


def forward_backward(
    model: SpeechLLM,
    batches: Sequence[Batch],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    ctc_weight: float = 0.0,
    sigma: float = 0.0,
    error_unit: float = 1.0,
) -> StepSums:
    """Accumulate the gradient of a step's mean loss.

    The loss is ``(1 - sigma) * CE + sigma * NMSE``: cross-entropy of the supervised tokens, and
    squared error between speech vectors and the embeddings of what is said, divided by
    ``error_unit``, which holds the projector to the words while it adapts to one task. Each is a
    mean over all batches and processes, so that neither accumulation nor the number of processes
    changes it. Parameters whose modules took no part (the projector in a text step) keep their
    gradient at None. The host does not wait for the device.

    The NMSE is one mean over all speech vectors, words and pads alike, since the LLM reads them
    alike. Stage 1 of version 1 has two means of equal weight, one over the words with the first pad
    behind them, one over the later pads; with about as many of these as of those, this one mean is
    nearly the same. Version 2's parts are single means over all positions, in which a pad may count
    less. Here there is no weight beside sigma.

    Args:
        model: the model; its gradients are added to.
        batches: this process's batches of the step.
        process: this process.
        dtype: precision of the matrix products; below float32 by autocast.
        ctc_weight: weight of the projector's CTC loss. Default 0, which skips it.
        sigma: 0 to 1; above 0 the batches need target tokens. Default 0: the cross-entropy alone,
            and no more work.
        error_unit: squared error of an element that counts as 1. Default 1; see
            :func:`embedding_mean_square`.

    Returns:
        The losses and counts of the step.

    Raises:
        ValueError: if a batch with speech has no target tokens under sigma.

    Source: stage 2 of SpeechMapper, https://arxiv.org/abs/2601.20417
    """
    counts = process.sum_tensor(
        *_counts(batches, model.projector.ctc_length if ctc_weight > 0 else None)
    )
    supervised, labels, *_, vectors = counts.clamp(min=1)
    with_ctc = ctc_weight > 0 and any(batch["frames"] is not None for batch in batches)
    totals = torch.zeros(3, dtype=torch.float64, device=process.device)
    for batch in batches:
        batch = to_device(batch, process.device)
        with autocast(process.device, dtype):
            ce_sum, ctc_sum, error_sum = batch_loss(
                model, batch, with_ctc=with_ctc, with_error=sigma > 0
            )
        loss = ce_sum / supervised
        totals[0] += ce_sum.detach()
        if sigma > 0:
            loss = (1 - sigma) * loss
        if error_sum is not None:
            error_sum = error_sum / error_unit
            loss = loss + sigma * error_sum / vectors
            totals[2] += error_sum.detach()
        if ctc_sum is not None:
            loss = loss + ctc_weight * ctc_sum / labels
            totals[1] += ctc_sum.detach()
        # FSDP averages gradients over processes; the sums above want adding up.
        (loss * process.world_size).backward()
    return StepSums(process.all_reduce(totals), counts, with_ctc, sigma=sigma)


def ctc_forward_backward(
    model: SpeechLLM,
    batches: Sequence[Batch],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    embedding_weight: float = 0.0,
    blank_token: int | None = None,
) -> StepSums:
    """Accumulate the gradient of a warm-up step of the projector, without running the LLM.

    The CTC loss teaches the projector what is said; the distance to the embeddings of what CTC
    hears (:func:`embedding_distance_sum`) teaches it to say so in the LLM's own alphabet.

    Args:
        model: the model; its projector has a CTC head.
        batches: this process's batches of the step, with speech.
        process: this process.
        dtype: precision of the matrix products; below float32 by autocast.
        embedding_weight: weight of the mean distance. Default 0, which skips it; above, the CTC
            labels must be the LLM's tokens.
        blank_token: what stands for CTC's blank among the embeddings. Default None: zero.

    Returns:
        The losses and counts of the step; its loss is the CTC loss.
    """
    # Of all vectors, kept for the LLM or not: CTC hears them all.
    vectors = sum(int(model.projector.output_length(b["frame_lengths"]).sum()) for b in batches)
    sums = process.sum_tensor(*_counts(batches, model.projector.ctc_length), vectors)
    _, labels, *_, vectors = sums.clamp(min=1)
    totals = torch.zeros(3, dtype=torch.float64, device=process.device)
    for batch in batches:
        batch = to_device(batch, process.device)
        with autocast(process.device, dtype):
            ctc_logits, distance_sum = model(
                batch["tokens"],
                frames=batch["frames"],
                frame_lengths=batch["frame_lengths"],
                only_ctc=True,
                with_distance=embedding_weight > 0,
                blank_token=blank_token,
            )
            ctc_sum = _ctc_sum(model, batch, ctc_logits)
        loss = ctc_sum / labels
        if embedding_weight > 0:
            loss = loss + embedding_weight * distance_sum / vectors
        totals[1] += ctc_sum.detach()
        (loss * process.world_size).backward()
    return StepSums(process.all_reduce(totals), sums[:-1], with_ctc=True, only_ctc=True)


def batch_loss(
    model: SpeechLLM, batch: Batch, with_ctc: bool = False, with_error: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Summed losses of a batch.

    Args:
        model: the model.
        batch: on the model's device.
        with_ctc: also the projector's CTC loss.
        with_error: also the squared error between speech vectors and their target tokens.

    Returns:
        Cross-entropy summed over the supervised tokens, CTC loss summed over the utterances
        that can hold their labels, and squared error summed over the speech vectors (either None
        when not asked for, or when the batch has no speech).

    Raises:
        ValueError: if the squared error is asked for, and a batch with speech has no targets.
    """
    speech = {k: batch[k] for k in _SPEECH}
    has_speech = batch["frames"] is not None
    with_ctc, with_error = with_ctc and has_speech, with_error and has_speech
    if with_error:
        if batch["target_tokens"] is None:
            raise ValueError("sigma is above 0, but the data set was built without targets")
        speech["target_tokens"] = batch["target_tokens"]
    select = batch["select"]
    output = model(
        batch["tokens"],
        **speech,
        mask=block_causal_mask(batch["document_ids"]),
        input_pos=batch["input_pos"],
        select=select,
        labels=batch["labels"].flatten().index_select(0, select),
        return_ctc=with_ctc,
    )
    ctc_logits = error_sum = None
    if with_error:
        ce_sum, ctc_logits, error_sum = output
    elif with_ctc:
        ce_sum, ctc_logits = output
    else:
        ce_sum = output
    return ce_sum, _ctc_sum(model, batch, ctc_logits) if with_ctc else None, error_sum


def _ctc_sum(model: SpeechLLM, batch: Batch, ctc_logits: Tensor) -> Tensor:
    lengths = batch["frame_lengths"]
    if lengths.numel() == 0:  # only the dummy frame was projected
        return 0.0 * ctc_logits.float().sum()
    lengths = model.projector.ctc_length(lengths)
    return ctc_loss_sum(ctc_logits, lengths, batch["ctc_targets"], batch["ctc_target_lengths"])[0]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device.

    Args:
        batch: on the CPU.
        device: where to.

    Returns:
        The same batch there.
    """
    # Lengths stay on the CPU: they shape tensors, and reading them back would wait for the device.
    return {
        k: v.to(device, non_blocking=True)
        if isinstance(v, Tensor) and not k.endswith("_lengths")
        else v
        for k, v in batch.items()
    }


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast for dtypes below float32.

    Trainable weights stay float32 and are cast where they are used.

    Args:
        device: where the model computes.
        dtype: precision of the matrix products.

    Returns:
        A context manager.
    """
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _counts(
    batches: Sequence[Batch], ctc_length: Callable[[Tensor], Tensor] | None
) -> tuple[int, ...]:
    """What :class:`StepSums` counts."""
    supervised = sum(b["select"].numel() for b in batches)
    tokens = sum(int((b["document_ids"] > 0).sum()) for b in batches)
    labels = skipped = 0
    for batch in batches:
        if ctc_length is None or batch["frames"] is None:
            continue
        lengths = batch["ctc_target_lengths"]
        possible = ctc_possible(ctc_length(batch["frame_lengths"]), batch["ctc_targets"], lengths)
        labels += int(lengths[possible].sum())
        skipped += int(((lengths > 0) & ~possible).sum())
    slots = sum(b["tokens"].numel() for b in batches)
    vectors = sum(b["target_tokens"].numel() for b in batches if b["target_tokens"] is not None)
    return supervised, labels, skipped, tokens, slots, vectors
