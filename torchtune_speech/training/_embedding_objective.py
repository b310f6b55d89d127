"""Loss of a step without the LLM: how near speech vectors are to the embeddings of what is said."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

from torchtune_speech.data import TranscriptBatch
from torchtune_speech.models import ProjectorWithTable
from torchtune_speech.modules import (
    absolute_error_sum,
    cosine_distance_sum,
    ctc_loss_sum,
    ctc_possible,
    fast_autocast,
    vocabulary_contrast_sum,
    word_and_pad_squared_error,
)
from torchtune_speech.training._objective import autocast, to_device
from torchtune_speech.training._process import Process

PARTS = ("squared_error", "pad_squared_error", "absolute", "cosine", "contrast", "ctc")


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingLoss:
    """What the loss of a step consists of.

    Each part is a mean, of which ``loss`` is the weighted sum:

    - squared_error: over the transcripts' tokens and the first pad behind each, and over the
      elements of a vector;
    - pad_squared_error: likewise, over the later pads;
    - absolute: of the absolute difference, over all positions, weighted, and over elements;
    - cosine: of one less the cosine between vector and target, over all positions, weighted;
    - contrast: of the cross-entropy of the right token among all, weighted likewise, in nats;
    - ctc: over the labels of the utterances that can hold theirs, in nats.

    Args:
        squared_error: weight of that part. Default 0, which skips it, as of all parts.
        pad_squared_error: weight.
        absolute: weight.
        cosine: weight.
        contrast: weight.
        ctc: weight; above 0 the projector needs a CTC head.
        temperature: of the contrast. Default 0.05.
        pad_weight: what a pad counts in absolute, cosine and contrast, where a token of the
            transcript counts 1. Default 1.

    Source: the first stages of https://arxiv.org/abs/2601.20417 (squared errors and cosine) and
    https://arxiv.org/abs/2607.01960 (the others)
    """

    squared_error: float = 0.0
    pad_squared_error: float = 0.0
    absolute: float = 0.0
    cosine: float = 0.0
    contrast: float = 0.0
    ctc: float = 0.0
    temperature: float = 0.05
    pad_weight: float = 1.0

    @property
    def weights(self) -> dict[str, float]:
        """Part to weight, for the parts that count."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) > 0}


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingStepLoss:
    """What a step gave, over all processes.

    Args:
        loss: weighted sum of the parts.
        parts: name to mean, see :class:`EmbeddingLoss`; without those that had nothing to learn.
        ctc_skipped: utterances that are too short for their CTC labels.
        tokens: tokens of the transcripts.
        vectors: speech vectors, pads included.
        frames: encoder frames.
    """

    loss: float
    parts: Mapping[str, float]
    ctc_skipped: int
    tokens: int
    vectors: int
    frames: int


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingSums:
    """Sums of a step over all processes, on the device: reading them waits for it.

    Args:
        losses: of each part that counts, float64 ``[parts]``.
        divisors: what each is divided by, float64 ``[parts]``.
        counts: CTC utterances skipped, tokens, vectors, frames, float64 ``[4]``.
        weights: part to weight.
    """

    losses: Tensor
    divisors: Tensor
    counts: Tensor
    weights: Mapping[str, float]

    def read(self) -> EmbeddingStepLoss:
        """Wait for the step, and take the means."""
        sums = zip(self.weights, self.losses.tolist(), self.divisors.tolist(), strict=True)
        parts = {name: total / count for name, total, count in sums if count > 0}
        skipped, tokens, vectors, frames = (int(n) for n in self.counts.tolist())
        loss = sum(self.weights[name] * mean for name, mean in parts.items())
        return EmbeddingStepLoss(loss, parts, skipped, tokens, vectors, frames)


def embedding_forward_backward(
    model: ProjectorWithTable,
    batches: Sequence[TranscriptBatch],
    process: Process,
    loss: EmbeddingLoss,
    *,
    dtype: torch.dtype = torch.float32,
    scaler: GradScaler | None = None,
) -> EmbeddingSums:
    """Accumulate the gradient of a step's mean loss.

    The means are over all batches and processes, so that neither accumulation nor the number of
    processes changes them. The projector is whole in each process; its gradients are summed over
    them here.

    Args:
        model: projector and table; the projector's gradients are added to.
        batches: this process's batches of the step.
        process: this process.
        loss: what the loss consists of.
        dtype: precision of the matrix products; below float32 by autocast.
        scaler: multiplies the loss before the backward pass, as float16 needs it; None or a
            disabled one does not.

    Returns:
        The losses and counts of the step.
    """
    counts = process.sum_tensor(*_counts(model.projector, batches, loss))
    divisors = _divisors(loss, counts)
    totals = torch.zeros(len(loss.weights), dtype=torch.float64, device=process.device)
    for batch in batches:
        if not batch["frame_lengths"].numel():  # no row was left for this process
            continue
        batch = to_device(batch, process.device)
        with autocast(process.device, dtype):
            sums = embedding_loss_sums(model, batch, loss)
        totals += torch.stack([s.detach() for s in sums.values()])
        total = sum(
            loss.weights[name] * sums[name] / divisor
            for name, divisor in zip(sums, divisors.clamp(min=1e-9), strict=True)
        )
        (scaler.scale(total) if scaler is not None else total).backward()
    if scaler is not None:
        scaler.scale(totals.new_zeros(()))  # it sets itself up here, also in a process without rows
    _sum_gradients(model.projector, process)
    return EmbeddingSums(process.all_reduce(totals), divisors, counts[4:], loss.weights)


def embedding_loss_sums(
    model: ProjectorWithTable, batch: TranscriptBatch, loss: EmbeddingLoss
) -> dict[str, Tensor]:
    """Summed parts of the loss of a batch.

    Args:
        model: projector and table.
        batch: on the model's device, with an utterance at least.
        loss: which parts are wanted.

    Returns:
        Part to float32 scalar, in the order of ``loss.weights``.
    """
    wanted = loss.weights
    with fast_autocast(batch["frames"].device.type):
        output = model.projector(
            batch["frames"], batch["frame_lengths"], return_ctc="ctc" in wanted
        )
    vectors_nd, ctc_logits = output if "ctc" in wanted else (output, None)
    labels_n = batch["target_tokens"]
    targets_nd = model.table[labels_n].float()
    weights_n = 1 - (1 - loss.pad_weight) * batch["is_pad"].float()
    sums: dict[str, Tensor] = {}
    if "squared_error" in wanted or "pad_squared_error" in wanted:
        both = word_and_pad_squared_error(vectors_nd, targets_nd, batch["is_late_pad"])
        sums["squared_error"], sums["pad_squared_error"] = both
    if "absolute" in wanted:
        sums["absolute"] = absolute_error_sum(vectors_nd, targets_nd, weights_n)
    if "cosine" in wanted:
        sums["cosine"] = cosine_distance_sum(vectors_nd, targets_nd, weights_n)
    if "contrast" in wanted:
        sums["contrast"] = vocabulary_contrast_sum(
            vectors_nd, model.unit_table, labels_n, weights_n, loss.temperature
        )
    if "ctc" in wanted:
        lengths_u = model.projector.ctc_length(batch["frame_lengths"])
        sums["ctc"], _ = ctc_loss_sum(
            ctc_logits, lengths_u, batch["ctc_targets"], batch["ctc_target_lengths"]
        )
    return {name: sums[name] for name in wanted}


def _counts(
    projector: nn.Module, batches: Sequence[TranscriptBatch], loss: EmbeddingLoss
) -> list[float]:
    """Words and first pads, later pads, pads, CTC labels; then what :class:`EmbeddingSums` has."""
    totals = [0] * 8
    for batch in batches:
        vectors, lengths_u = batch["is_pad"].numel(), batch["ctc_target_lengths"]
        pads, late = int(batch["is_pad"].sum()), int(batch["is_late_pad"].sum())
        labels = skipped = 0
        if loss.ctc > 0:
            frames_u = projector.ctc_length(batch["frame_lengths"])
            possible_u = ctc_possible(frames_u, batch["ctc_targets"], lengths_u)
            labels = int(lengths_u[possible_u].sum())
            skipped = int(((lengths_u > 0) & ~possible_u).sum())
        of_batch = (vectors - late, late, pads, labels, skipped, vectors - pads, vectors)
        of_batch = (*of_batch, int(batch["frame_lengths"].sum()))
        totals = [a + b for a, b in zip(totals, of_batch, strict=True)]
    return totals


def _divisors(loss: EmbeddingLoss, counts: Tensor) -> Tensor:
    """What the sum of each part that counts is divided by."""
    words_and_first, late, pads, labels, _, tokens, *_ = counts
    weighted = tokens + loss.pad_weight * pads
    divisors = dict.fromkeys(PARTS, weighted) | {
        "squared_error": words_and_first,
        "pad_squared_error": late,
        "ctc": labels,
    }
    return torch.stack([divisors[name] for name in loss.weights])


def _sum_gradients(module: nn.Module, process: Process) -> None:
    """Sum the gradients over processes; one that computed nothing adds zeros."""
    if process.world_size == 1:
        return
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for work in [dist.all_reduce(p.grad, async_op=True) for p in trained]:
        work.wait()
