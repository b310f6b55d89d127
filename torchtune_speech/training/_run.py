"""Small steps that all training recipes take in the same way."""

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torchtune.utils import get_logger, log_rank_zero

from torchtune_speech.data import Plan, SpeechDataset, Step, TranscriptDataset, data_fingerprint
from torchtune_speech.errors import InputError
from torchtune_speech.models import embedding_digest, read_hf_config
from torchtune_speech.training._checkpoint import (
    adapter_digest,
    find_checkpoint,
    list_checkpoints,
    read_stage,
)
from torchtune_speech.training._compile import compiled_graphs
from torchtune_speech.training._embedding_objective import EmbeddingStepLoss, EmbeddingSums
from torchtune_speech.training._objective import StepLoss, StepSums

_log = get_logger("INFO")
_EDGE = 2**16  # bytes
_SMALLEST_SCALE = 1.0  # float16 gradients that overflow at this scale are broken, not scaled badly


class TrainingError(InputError):
    """Training cannot go on; the message says where it stands and what to do."""


def resume_point(output_dir: str | Path, resume: bool) -> Path | None:
    """The checkpoint to continue from.

    Args:
        output_dir: folder of the run.
        resume: whether the user asked to continue.

    Returns:
        The newest checkpoint, or None to start afresh.

    Raises:
        InputError: if the folder holds checkpoints and ``resume`` is not set, so that a second run
            never mixes with the first.
    """
    found = list_checkpoints(output_dir)
    if found and not resume:
        raise InputError(
            f"{output_dir}: holds checkpoints up to {found[-1].name}; set resume=true to go on, "
            "or name another output_dir"
        )
    if resume:
        what = (
            f"going on from {found[-1].name}" if found else "no checkpoint there, starting afresh"
        )
        log_rank_zero(_log, f"{output_dir}: resume=true, {what}")
    return find_checkpoint(found[-1]) if found else None


def is_due(done: int, every: int | None, last: bool) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now.

    Args:
        done: steps done.
        every: steps in between; None for at the end only.
        last: whether this is the end.

    Returns:
        True if so.
    """
    return last or (every is not None and done % every == 0)


def clip_gradients(
    groups: Mapping[str, Mapping[str, nn.Parameter]], max_norm: float | None
) -> Tensor:
    """Clip the norm of all gradients together.

    Args:
        groups: trained parameters.
        max_norm: largest norm; None only measures.

    Returns:
        The norm before clipping, on the device.
    """
    parameters = [p for group in groups.values() for p in group.values()]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def update(
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    sums: StepSums | EmbeddingSums,
    step: Step,
    dataset: SpeechDataset | TranscriptDataset,
    *,
    clip_grad_norm: float | None,
    on_nonfinite: str = "fail",
    scaler: GradScaler | None = None,
) -> tuple[StepLoss | EmbeddingStepLoss, float]:
    """Clip the gradients, take the optimizer's step if all is finite, and read the losses.

    With a fused optimizer the device itself decides whether the step is taken, and the host waits
    for the device only once a step: at the end of this function, when all work has been handed
    out.

    Args:
        optimizer: of the parameters.
        groups: trained parameters; their gradients are gone afterwards.
        sums: losses of the step.
        step: the step.
        dataset: where its samples come from.
        clip_grad_norm: largest norm of all gradients together; None for no clipping.
        on_nonfinite: what to do when loss or gradient norm is not finite: ``fail``, or ``skip``
            the step, as if it had not been drawn. Weights and optimizer stay as they were.
        scaler: what multiplied the loss; None or a disabled one for nothing. Gradients that
            overflow then are no failure: the step is skipped, and the next has a smaller scale.

    Returns:
        The losses, and the gradient norm before clipping.

    Raises:
        TrainingError: if loss or gradient norm is not finite, under ``fail``.
    """
    scaled = scaler is not None and scaler.is_enabled()
    if scaled:
        scaler.unscale_(optimizer)
    norm = clip_gradients(groups, clip_grad_norm)
    finite = sums.losses.sum().isfinite() & norm.isfinite()
    if _is_fused(optimizer):
        # What torch's GradScaler sets, too: a fused step does nothing where this is 1.
        optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses, grad_norm = sums.read(), norm.item()
    overflowed = False
    if scaled:
        overflowed = math.isfinite(losses.loss) and scaler.get_scale() > _SMALLEST_SCALE
        scaler.update()
    if not overflowed and not (math.isfinite(losses.loss) and math.isfinite(grad_norm)):
        _fail_or_skip(losses, grad_norm, step, dataset, on_nonfinite)
    return losses, grad_norm


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is one kernel that obeys ``found_inf``.

    Sharded parameters would want that number as a DTensor; there the host looks at it.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return all(group.get("fused") for group in optimizer.param_groups) and not any(
        isinstance(p, DTensor) for p in parameters
    )


def _fail_or_skip(
    losses: StepLoss | EmbeddingStepLoss,
    grad_norm: float,
    step: Step,
    dataset: SpeechDataset | TranscriptDataset,
    on_nonfinite: str,
) -> None:
    some = ", ".join(dataset.samples[i].id for i in step.samples[:5])
    what = (
        f"step {step.number + 1}: loss {losses.loss}, gradient norm {grad_norm} "
        f"(samples {some}, ...)"
    )
    if on_nonfinite == "fail":
        raise TrainingError(
            f"{what}; look at these samples, lower the learning rate, or set "
            "on_nonfinite=skip, and set resume=true"
        )
    log_rank_zero(_log, f"{what}; skipped", logging.WARNING)


def step_metrics(
    losses: StepLoss,
    step: Step,
    dataset: SpeechDataset,
    *,
    grad_norm: float,
    seconds: float,
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """The numbers of a step for ``metrics.jsonl``.

    Args:
        losses: of the step.
        step: the step.
        dataset: where its samples come from.
        grad_norm: before clipping.
        seconds: wall-clock time of the step.
        rates: learning rates, ``lr_<group>``.

    Returns:
        The metrics; ``fill`` is the share of computed positions that held tokens. A step that was
        skipped, since its loss or gradient was not finite, has the ids of its samples in
        ``skipped_samples``. ``compiled_graphs`` is there where something was compiled: it should
        rise in the first steps only. Under sigma, ``loss_ce`` and ``loss_nmse`` are the parts of
        the loss before their weights.
    """
    parts = {}
    if losses.nmse is not None:
        parts = {"loss_ce": losses.ce, "loss_nmse": losses.nmse}
    if losses.ctc is not None:
        parts |= {"ctc_loss": losses.ctc, "ctc_skipped": losses.ctc_skipped}
    return {
        "loss": losses.loss,
        **parts,
        "grad_norm": grad_norm,
        **rates,
        "source": f"{step.source}{' (text twins)' if step.is_twin else ''}",
        "epoch": step.epoch,
        "samples": len(step.samples),
        "tokens": losses.tokens,
        "supervised_tokens": losses.supervised_tokens,
        "fill": losses.tokens / max(losses.slots, 1),
        "seconds": seconds,
        "tokens_per_second": losses.tokens / seconds,
        **({"compiled_graphs": graphs} if (graphs := compiled_graphs()) else {}),
        **_skipped(losses, step, dataset, grad_norm),
    }


def embedding_step_metrics(
    losses: EmbeddingStepLoss,
    step: Step,
    dataset: TranscriptDataset,
    *,
    grad_norm: float,
    seconds: float,
    rates: Mapping[str, float],
    scaler: GradScaler,
) -> dict[str, Any]:
    """The numbers of a step without the LLM for ``metrics.jsonl``.

    Args:
        losses: of the step.
        step: the step.
        dataset: where its samples come from.
        grad_norm: before clipping.
        seconds: wall-clock time of the step.
        rates: learning rates, ``lr_<group>``.
        scaler: of the loss; its scale after the step is told where it is enabled.

    Returns:
        The metrics: each part of the loss as ``loss_<part>``, before its weight; the others as
        in :func:`step_metrics`.
    """
    return {
        "loss": losses.loss,
        **{f"loss_{name}": mean for name, mean in losses.parts.items()},
        **({"ctc_skipped": losses.ctc_skipped} if "ctc" in losses.parts else {}),
        "grad_norm": grad_norm,
        **rates,
        **({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}),
        "source": step.source,
        "epoch": step.epoch,
        "samples": len(step.samples),
        "tokens": losses.tokens,
        "vectors": losses.vectors,
        "frames": losses.frames,
        "seconds": seconds,
        "frames_per_second": losses.frames / seconds,
        **_skipped(losses, step, dataset, grad_norm),
    }


def _skipped(
    losses: StepLoss | EmbeddingStepLoss,
    step: Step,
    dataset: SpeechDataset | TranscriptDataset,
    grad_norm: float,
) -> dict[str, list[str]]:
    if math.isfinite(losses.loss) and math.isfinite(grad_norm):
        return {}
    return {"skipped_samples": [dataset.samples[i].id for i in step.samples]}


def fingerprints(
    dataset: SpeechDataset | TranscriptDataset,
    plan: Plan,
    llm_dir: str | Path,
    *,
    table_only: bool = False,
    frozen_adapter: str | Path | None = None,
) -> dict[str, Any]:
    """What a run was trained on.

    Args:
        dataset: training data.
        plan: of its steps.
        llm_dir: folder of the LLM.
        table_only: of the LLM only its embedding table matters, and nothing else is read: the
            checkpoint then fits every LLM with this table, one with merged LoRA too.
        frozen_adapter: LoRA that is trained through. Default None: none is, or it is trained.

    Returns:
        Fingerprints of the data, of the lengths it is packed by, of the feature store (None
        without), of what decided which speech vectors are kept (None for all), of the LLM and of
        its frozen LoRA (None without).
    """
    lengths = (np.asarray(n, dtype="<i8") for n in (dataset.lengths, plan.twin_lengths))
    return {
        "data": data_fingerprint(dataset.samples),
        "lengths": hashlib.sha256(b"".join(n.tobytes() for n in lengths)).hexdigest(),
        "store": dict(dataset.store.fingerprint) if dataset.store is not None else None,
        "kept": kept_fingerprint(dataset),
        "llm": (table_fingerprint if table_only else llm_fingerprint)(llm_dir),
        "adapter": None if frozen_adapter is None else adapter_digest(frozen_adapter),
    }


def kept_fingerprint(dataset: SpeechDataset | TranscriptDataset) -> dict[str, Any] | None:
    """What decided which speech vectors a data set keeps.

    Args:
        dataset: the data.

    Returns:
        See :class:`KeptPositions`; None where all are kept.
    """
    kept = getattr(dataset, "kept", None)
    return None if kept is None else dict(kept.fingerprint)


def table_fingerprint(llm_dir: str | Path) -> dict[str, str]:
    """Folder name of the LLM, and a digest of its embedding table.

    Args:
        llm_dir: folder of the LLM.

    Returns:
        ``name`` and ``embeddings``, see :func:`embedding_digest`.

    Raises:
        InputError: if the folder, or the file that holds the table, is missing or damaged.
    """
    read_hf_config(llm_dir)
    return {"name": Path(llm_dir).resolve().name, "embeddings": embedding_digest(llm_dir)}


def llm_fingerprint(llm_dir: str | Path) -> dict[str, str]:
    """Folder name of the LLM, and digests of what is in it.

    Args:
        llm_dir: folder of the LLM.

    Returns:
        ``name``; ``digest`` of the config, weight names, shapes and file sizes; ``weights``, a
        digest of the first and last 64 KiB of each file's weights, which differ between models of
        one shape (to read them all would take minutes for a large model); ``embeddings``, see
        :func:`embedding_digest`, where that table can be read.

    Raises:
        InputError: if the folder is no Hugging Face model with safetensors.
    """
    read_hf_config(llm_dir)
    files = sorted(Path(llm_dir).glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{llm_dir}: no *.safetensors there; download the model's safetensors files"
        )
    digest = hashlib.sha256((Path(llm_dir) / "config.json").read_bytes())
    weights = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as f:
            header = int.from_bytes(f.read(8), "little")
            if header > size - 8:  # such as the text file that git-lfs leaves in a file's place
                raise InputError(
                    f"{file}: not a safetensors file, or cut short; download the model again"
                )
            digest.update(f"{file.name}/{size}".encode() + f.read(header))
            weights.update(f.read(_EDGE))
            f.seek(max(size - _EDGE, 8 + header))
            weights.update(f.read())
    return {
        "name": Path(llm_dir).resolve().name,
        "digest": digest.hexdigest(),
        "weights": weights.hexdigest(),
        **_embeddings(llm_dir),
    }


def _embeddings(llm_dir: str | Path) -> dict[str, str]:
    try:
        return {"embeddings": embedding_digest(llm_dir)}
    except InputError:  # what reads the weights will say so
        return {}


def warn_if_incoherent(projector_checkpoint: str | Path | None, max_wer: float = 0.5) -> None:
    """Warn before fusing a projector that cannot yet be understood: no fusion mends that.

    Args:
        projector_checkpoint: run or checkpoint of stage A, or of stage 1 of SpeechMapper, whose
            WER is that by nearest tokens; None is nothing to warn of.
        max_wer: word error rate on its dev set above which the warning is given. Default 0.5.
    """
    if projector_checkpoint is None:
        return
    metrics = read_stage(projector_checkpoint).get("metrics", {})
    stage, part = ("1", "nearest_token") if "nearest_token" in metrics else ("A", "asr")
    wer = metrics.get(part, {}).get("wer")
    if wer is not None and wer > max_wer:
        _log.warning(
            "%s: its projector had a WER of %.2f on its dev set; train stage %s longer first, "
            "fusion will not mend it",
            projector_checkpoint,
            wer,
            stage,
        )
