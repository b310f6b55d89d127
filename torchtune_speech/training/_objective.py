"""Loss of a step: normalised by supervised tokens over batches and processes."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.data import Batch
from torchtune_speech.models import SpeechLLM, block_causal_mask
from torchtune_speech.modules import ctc_loss_sum, ctc_possible
from torchtune_speech.training._process import Process


@dataclasses.dataclass(frozen=True, slots=True)
class StepLoss:
    """What a step's forward and backward passes gave, over all processes.

    Args:
        loss: mean cross-entropy of the supervised tokens, in nats.
        ctc: mean CTC loss per label of the utterances in it, in nats; None without CTC.
        ctc_skipped: utterances that are too short for their CTC target.
        supervised_tokens: number of supervised tokens.
        tokens: number of tokens without padding, placeholders included.
        slots: number of positions computed, padding included.
    """

    loss: float
    ctc: float | None
    ctc_skipped: int
    supervised_tokens: int
    tokens: int
    slots: int


def forward_backward(
    model: SpeechLLM,
    batches: Sequence[Batch],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    ctc_weight: float = 0.0,
) -> StepLoss:
    """Accumulate the gradient of a step's mean loss.

    The mean is over the supervised tokens of all batches and processes, so that neither
    accumulation nor the number of processes changes it. Parameters whose modules took no part
    (the projector in a text step) keep their gradient at None.

    Args:
        model: the model; its gradients are added to.
        batches: this process's batches of the step.
        process: this process.
        dtype: precision of the matrix products; below float32 by autocast.
        ctc_weight: weight of the projector's CTC loss. Default 0, which skips it.

    Returns:
        The losses and counts of the step.
    """
    counts = _counts(batches, model.projector.ctc_length if ctc_weight > 0 else None)
    supervised, labels, skipped, tokens, slots = (int(n) for n in process.sum(*counts))
    use_ctc = ctc_weight > 0 and labels > 0
    # Read at the end of the step only: reading a number waits for the device.
    totals = torch.zeros(2, dtype=torch.float64, device=process.device)
    for batch in batches:
        batch = to_device(batch, process.device)
        with autocast(process.device, dtype):
            ce_sum, ctc_sum = batch_loss(model, batch, with_ctc=use_ctc)
        loss = ce_sum / max(supervised, 1)
        totals[0] += ce_sum.detach()
        if ctc_sum is not None:
            loss = loss + ctc_weight * ctc_sum / max(labels, 1)
            totals[1] += ctc_sum.detach()
        # FSDP averages gradients over processes; the sums above want adding up.
        (loss * process.world_size).backward()
    ce_total, ctc_total = process.sum(*totals.tolist())
    ctc = ctc_total / max(labels, 1)
    return StepLoss(
        loss=ce_total / max(supervised, 1),
        ctc=ctc if use_ctc else None,
        ctc_skipped=skipped,
        supervised_tokens=supervised,
        tokens=tokens,
        slots=slots,
    )


def ctc_forward_backward(
    model: SpeechLLM,
    batches: Sequence[Batch],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    embedding_weight: float = 0.0,
    blank_token: int | None = None,
) -> StepLoss:
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
        The losses and counts of the step; ``loss`` is the CTC loss.
    """
    vectors = sum(b["speech_index"].numel() for b in batches)
    counts = _counts(batches, model.projector.ctc_length)
    *counts, vectors = (int(n) for n in process.sum(*counts, vectors))
    supervised, labels, skipped, tokens, slots = counts
    total = torch.zeros((), dtype=torch.float64, device=process.device)
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
        loss = ctc_sum / max(labels, 1)
        if embedding_weight > 0:
            loss = loss + embedding_weight * distance_sum / max(vectors, 1)
        total += ctc_sum.detach()
        (loss * process.world_size).backward()
    ctc = process.sum(total.item())[0] / max(labels, 1)
    return StepLoss(
        loss=ctc,
        ctc=ctc,
        ctc_skipped=skipped,
        supervised_tokens=supervised,
        tokens=tokens,
        slots=slots,
    )


def batch_loss(
    model: SpeechLLM, batch: Batch, with_ctc: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Summed losses of a batch.

    Args:
        model: the model.
        batch: on the model's device.
        with_ctc: also the projector's CTC loss.

    Returns:
        Cross-entropy summed over the supervised tokens, and CTC loss summed over the utterances
        that can hold their labels (None when not asked for, or when the batch has no speech).
    """
    speech = {k: batch[k] for k in ("frames", "frame_lengths", "speech_index")}
    with_ctc = with_ctc and batch["frames"] is not None
    select = batch["select"]
    output = model(
        batch["tokens"],
        **speech,
        mask=block_causal_mask(batch["document_ids"]),
        input_pos=batch["input_pos"],
        select=select,
        return_ctc=with_ctc,
    )
    logits, ctc_logits = output if with_ctc else (output, None)
    ce_sum = F.cross_entropy(logits.float(), batch["labels"].flatten()[select], reduction="sum")
    return ce_sum, _ctc_sum(model, batch, ctc_logits) if with_ctc else None


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
    """Supervised tokens, CTC labels, utterances too short for theirs, tokens, positions."""
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
    return supervised, labels, skipped, tokens, sum(b["tokens"].numel() for b in batches)
