"""What a run without the LLM would be: parameters, memory and the first steps of its plan."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from torchtune_speech import config
from torchtune_speech.data import (
    Plan,
    Sample,
    Step,
    TranscriptBatch,
    TranscriptDataset,
    fill,
    plan_sources,
)
from torchtune_speech.errors import InputError
from torchtune_speech.models import ProjectorWithTable, read_hf_config
from torchtune_speech.training._check import (
    check_embedding_loss,
    check_mapper,
    check_settings,
)
from torchtune_speech.training._dry_run import (
    frame_rate,
    gib,
    missing_files,
    synthetic_note,
    table_lines,
)
from torchtune_speech.training._embedding_objective import (
    EmbeddingLoss,
    embedding_loss_sums,
)
from torchtune_speech.training._loader import resolve_max_steps
from torchtune_speech.training._memory import (
    ACTIVATIONS,
    FROZEN,
    GRADIENTS,
    STATE,
    TRAINED,
    StepMemory,
    rows_at_a_time,
    trace_step,
)
from torchtune_speech.training._optim import check_learning_rates, trainable_groups
from torchtune_speech.training._process import compute_dtype
from torchtune_speech.training._transcript_normalizer import transcript_normalizer

_SECONDS = (2, 35)  # of an utterance of LibriSpeech
_SAMPLE_S = 10
_SYNTHETIC_SAMPLES = 20_000


def embeddings_dry_run(cfg: DictConfig) -> None:
    """Print :func:`embeddings_dry_run_report`, once whatever the number of processes.

    Args:
        cfg: configuration of recipe `speechmapper`.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        print(embeddings_dry_run_report(cfg, int(os.environ.get("WORLD_SIZE", 1))))


def embeddings_dry_run_report(cfg: DictConfig, world_size: int = 1, steps: int = 6) -> str:
    """Build projector and table on the meta device, and plan the first steps.

    Args:
        cfg: configuration of recipe `speechmapper`.
        world_size: number of processes.
        steps: steps of the plan to show.

    Returns:
        Tables of parameters, memory and steps. The steps come from the data; where manifest,
        feature store or tokenizer are absent, from synthetic lengths.

    Raises:
        InputError: if the configuration is wrong, or the data that is there is.
    """
    check_settings(cfg)
    model = _meta_model(cfg)
    dataset = None if missing_files(cfg) else _dataset(cfg, model.projector)
    check_mapper(
        model.projector,
        dataset,
        ctc_weight=_loss_of(cfg).ctc,
        llm_dir=cfg.llm_dir,
        vocab_size=cfg.vocab_size,
        pad_token=cfg.pad_token,
    )
    check_learning_rates(cfg.learning_rate, trainable_groups(model, "projector"))
    others = f" of {world_size}" if world_size > 1 else ""
    parts = [
        ["dry run: built on the meta device, nothing loaded, nothing written"],
        ["parameters", *_parameter_table(cfg, model)],
        [f"memory of one process{others}, predicted", *_memory_table(cfg, world_size)],
        _plan_table(cfg, dataset, steps),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def predict_embeddings_memory(cfg: DictConfig, world_size: int = 1) -> StepMemory:
    """Peak memory of a training step without the LLM, from the configuration alone.

    Projector, gradients and optimizer state are whole in each process. See
    :func:`predict_memory` for how it is found and what is not counted.

    Args:
        cfg: configuration of recipe `speechmapper`.
        world_size: number of processes.

    Returns:
        The prediction, for a full batch of utterances of ten seconds.
    """
    model = _meta_model(cfg)
    batch = _full_batch(cfg, model.projector, world_size)
    peaks = trace_step(cfg, model, ("projector",), batch, _loss)
    phase = max(peaks, key=lambda name: sum(peaks[name].values()))
    return StepMemory(peaks[phase], phase)


def _meta_model(cfg: DictConfig) -> ProjectorWithTable:
    dtype = compute_dtype(cfg.dtype, scaled_loss=True)
    with torch.device("meta"):
        projector = config.instantiate(cfg.projector)
    shape = _table_shape(cfg, projector)
    embeddings = torch.empty(shape, dtype=dtype, device="meta")
    model = ProjectorWithTable(projector, embeddings)
    if _loss_of(cfg).contrast > 0:
        model.unit_table = nn.Parameter(embeddings.clone(), requires_grad=False)
    return model


def _table_shape(cfg: DictConfig, projector: nn.Module) -> tuple[int, int]:
    """Of the embedding table: what the LLM's ``config.json`` says, where it is there."""
    if (Path(cfg.llm_dir) / "config.json").is_file():
        llm = read_hf_config(cfg.llm_dir)
        return llm["vocab_size"], llm["hidden_size"]
    if cfg.vocab_size is None:
        raise InputError(
            f"vocab_size: null, and {cfg.llm_dir} is not there to tell it; give the rows of the "
            "embedding table for a dry run without it"
        )
    return cfg.vocab_size, projector.out_dim


def _loss_of(cfg: DictConfig) -> EmbeddingLoss:
    return check_embedding_loss(
        cfg.loss, temperature=cfg.contrast_temperature, pad_weight=cfg.pad_weight
    )


def _loss(cfg: DictConfig, model: ProjectorWithTable, batch: TranscriptBatch) -> Tensor:
    loss = _loss_of(cfg)
    sums = embedding_loss_sums(model, batch, loss)
    return sum(loss.weights[name] * value for name, value in sums.items())


def _full_batch(cfg: DictConfig, projector: nn.Module, world_size: int) -> TranscriptBatch:
    """As many utterances as fill the rows that a process computes at a time."""
    per_row = max(1, int(cfg.max_frames / (_SAMPLE_S * frame_rate(cfg))))
    utterances, frames = rows_at_a_time(cfg, world_size) * per_row, cfg.max_frames // per_row
    vectors = utterances * int(projector.output_length(frames))
    labels = int(projector.ctc_length(frames)) // 4
    return TranscriptBatch(
        frames=torch.zeros(utterances * frames, projector.in_dim),
        frame_lengths=torch.full((utterances,), frames),
        target_tokens=torch.zeros(vectors, dtype=torch.long),
        is_pad=torch.zeros(vectors, dtype=torch.bool),
        is_late_pad=torch.zeros(vectors, dtype=torch.bool),
        ctc_targets=(torch.arange(utterances * labels) % 2) + 1,
        ctc_target_lengths=torch.full((utterances,), labels),
        ids=[],
    )


def _parameter_table(cfg: DictConfig, model: ProjectorWithTable) -> list[str]:
    projector = sum(p.numel() for p in model.projector.parameters())
    rows, width = model.table.shape
    copies = "twice, as it is and with rows of length 1" if model.unit_table is not None else ""
    note = f"frozen, {cfg.dtype}; {rows:,} x {width:,}" + (f", {copies}" if copies else "")
    return table_lines(
        [
            ("embedding table", f"{model.table.numel():,}", note),
            ("projector", f"{projector:,}", f"trained, float32; {cfg.projector._component_}"),
            ("llm", "0", "not needed"),
        ]
    )


def _memory_table(cfg: DictConfig, world_size: int) -> list[str]:
    memory = predict_embeddings_memory(cfg, world_size)
    rows = rows_at_a_time(cfg, world_size)
    notes = {
        FROZEN: f"{cfg.dtype}, the embedding table",
        TRAINED: "float32",
        GRADIENTS: "float32",
        STATE: cfg.optimizer._component_,
        ACTIVATIONS: f"{rows} x {cfg.max_frames:,} frames at a time",
    }
    lines = [(part, gib(size), notes[part]) for part, size in memory.parts.items() if size]
    lines.append(("total", gib(memory.total), f"at the fullest moment: {memory.phase}"))
    return table_lines(lines)


def _dataset(cfg: DictConfig, projector: nn.Module) -> TranscriptDataset:
    return config.instantiate(
        cfg.dataset,
        tokenizer=config.instantiate(cfg.tokenizer),
        pad_token=cfg.pad_token,
        output_length=projector.output_length,
        normalize=transcript_normalizer(cfg.normalizer),
        max_frames=cfg.max_frames,
    )


def _plan_table(cfg: DictConfig, dataset: TranscriptDataset | None, steps: int) -> list[str]:
    missing = missing_files(cfg)
    if dataset is None:
        rng = np.random.default_rng(0)
        seconds = rng.uniform(*_SECONDS, _SYNTHETIC_SAMPLES)
        rate = frame_rate(cfg)
        lengths = (seconds * rate).astype(np.int32)
        lengths = lengths[lengths <= cfg.max_frames]
        samples = [Sample(id=str(i), task="asr", target="-") for i in range(len(lengths))]
        note = synthetic_note(missing, rate)
    else:
        samples, lengths = dataset.samples, dataset.lengths
        note = f"{len(dataset):,} samples, {lengths.sum():,} frames"
    plan = Plan(
        plan_sources(samples, None if missing else cfg.mixture),
        lengths,
        max_seq_len=cfg.max_frames,
        rows_per_step=cfg.rows_per_step,
        seed=cfg.seed,
    )
    total = resolve_max_steps(plan, max_steps=cfg.max_steps, epochs=cfg.epochs)
    of_total = "" if missing and cfg.max_steps is None else f" of {total:,}"
    shown = [step for step, _ in zip(plan, range(steps), strict=False)]
    rows = [("step", "rows", "samples", "frames", "full", "")]
    rows += [_step_row(step, lengths, cfg.max_frames) for step in shown]
    return [f"first {len(shown)}{of_total} steps of the plan", f"  {note}", *table_lines(rows)]


def _step_row(step: Step, lengths: np.ndarray, max_frames: int) -> Sequence[str]:
    return (
        str(step.number + 1),
        str(len(step.rows)),
        str(len(step.samples)),
        f"{lengths[step.samples].sum():,}",
        f"{fill(step, lengths, max_frames):.1%}",
        step.source,
    )
