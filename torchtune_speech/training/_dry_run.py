"""What a run would be: parameters, memory and the first steps, with nothing loaded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from torchtune_speech import config
from torchtune_speech.data import AudioCut, Plan, Sample, Step, fill, plan_sources, text_twin
from torchtune_speech.models import SpeechLLM
from torchtune_speech.training._build import meta_speech_llm
from torchtune_speech.training._check import (
    check_ctc_compress,
    check_ctc_head,
    check_kept,
    check_pad_token,
    check_projector,
    check_settings,
    check_stage_1,
    check_text_only,
    target_settings,
)
from torchtune_speech.training._checkpoint import is_checkpoint
from torchtune_speech.training._loader import build_plan, resolve_max_steps
from torchtune_speech.training._memory import (
    ACTIVATIONS,
    FROZEN,
    GATHERED,
    GRADIENTS,
    STATE,
    TRAINED,
    predict_memory,
    rows_at_a_time,
)
from torchtune_speech.training._optim import check_learning_rates, trainable_groups
from torchtune_speech.training._process import compute_dtype
from torchtune_speech.training._run import kept_fingerprint

# Sentences of EuroParl-ST and CoVoST 2, passages of Spoken-SQuAD.
_SECONDS, _SECONDS_SQA = (2, 20), (20, 120)
_FRAMES_PER_SECOND = 50  # before they are averaged: SeamlessM4T-v2, and our filter bank
_FRAME_AVERAGE = 3  # of an unknown feature store
_TOKENS_PER_SECOND = 4  # of a transcript
_PROMPT_TOKENS, _ANSWER_TOKENS = 35, 15
_SYNTHETIC_SAMPLES = 20_000


def dry_run(cfg: DictConfig, trained: Sequence[str]) -> None:
    """Print :func:`dry_run_report`, once whatever the number of processes.

    Args:
        cfg: configuration of a training recipe.
        trained: parameter groups that the recipe trains.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        print(dry_run_report(cfg, trained, int(os.environ.get("WORLD_SIZE", 1))))


def dry_run_report(
    cfg: DictConfig, trained: Sequence[str], world_size: int = 1, steps: int = 6
) -> str:
    """Build the model on the meta device and plan the first steps.

    Args:
        cfg: configuration of a training recipe.
        trained: parameter groups that the recipe trains.
        world_size: number of processes.
        steps: steps of the plan to show.

    Returns:
        Tables of parameters, memory and steps. The steps come from the data; where manifest,
        feature store or tokenizer are absent, from synthetic lengths.

    Raises:
        InputError: if the configuration is wrong, or the data that is there is.
    """
    check_settings(cfg)
    dtype = compute_dtype(cfg.dtype)  # which this machine need not support
    with torch.device("meta"):
        projector = config.instantiate(cfg.get("projector"))
    model = meta_speech_llm(cfg.model, projector, dtype)
    check_learning_rates(cfg.learning_rate, trainable_groups(model, *trained))
    if model.projector is not None:
        if _needs_ctc(cfg):
            weights = [key for key in ("ctc_weight", "ctc_only_steps") if key in cfg]
            check_ctc_head(model.projector, " and ".join(weights))
        check_ctc_compress(model.projector, cfg.ctc_weight, "ctc_weight")
    parts = [
        ["dry run: built on the meta device, nothing loaded, nothing written"],
        ["parameters", *_parameter_table(cfg, model, trained)],
        [
            f"memory of one process{f' of {world_size}' if world_size > 1 else ''}, predicted",
            *_memory_table(cfg, trained, world_size),
        ],
        _plan_table(cfg, model, trained, steps),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def parameter_counts(model: SpeechLLM) -> dict[str, int]:
    """Number of parameters by part.

    Args:
        model: the model.

    Returns:
        ``llm``, ``projector``, ``lora`` and ``trainable``.
    """
    counts = dict.fromkeys(("llm", "projector", "lora", "trainable"), 0)
    for name, p in model.named_parameters():
        part = (
            "projector" if name.startswith("projector.") else "lora" if ".lora_" in name else "llm"
        )
        counts[part] += p.numel()
        counts["trainable"] += p.numel() if p.requires_grad else 0
    return counts


def _parameter_table(cfg: DictConfig, model: SpeechLLM, trained: Sequence[str]) -> list[str]:
    counts = parameter_counts(model)
    total = sum(counts.values()) - counts["trainable"]
    origin = {"llm": cfg.model, "projector": cfg.get("projector"), "lora": cfg.model}
    rows = []
    for part, count in counts.items():
        if part == "trainable":
            note = f"{count / total:.2%} of {total:,}"
        elif not count:
            note = "none"
        else:
            state = "trained, float32" if part in trained else f"frozen, {cfg.dtype}"
            note = f"{state}; {origin[part]._component_}"
        rows.append((part, f"{count:,}", note))
    return table_lines(rows)


def _memory_table(cfg: DictConfig, trained: Sequence[str], world_size: int) -> list[str]:
    recomputed, kept = (
        predict_memory(cfg, trained, activation_checkpointing=value, world_size=world_size)
        for value in (True, False)
    )
    rows = rows_at_a_time(cfg, world_size)
    notes = {
        FROZEN: f"{cfg.dtype}, matrices {quantize}"
        if (quantize := cfg.get("quantize"))
        else cfg.dtype,
        TRAINED: "float32",
        GRADIENTS: "float32",
        STATE: cfg.optimizer._component_,
        ACTIVATIONS: f"{rows} x {cfg.max_seq_len:,} tokens at a time",
        GATHERED: "two layers, and what is in none",
    }
    lines = [("", "recomputed", "kept", "decoder layers: activation_checkpointing true, false")]
    for part, size in recomputed.parts.items():
        if size or kept.parts[part]:
            lines.append((part, gib(size), gib(kept.parts[part]), notes[part]))
    phases = f"at the fullest moment: {recomputed.phase}, {kept.phase}"
    lines.append(("total", gib(recomputed.total), gib(kept.total), phases))
    return table_lines(lines)


def gib(size: int) -> str:
    """A number of bytes in gibibytes."""
    return f"{size / 2**30:.2f} GiB"


def _needs_ctc(cfg: DictConfig) -> bool:
    return cfg.ctc_weight > 0 or cfg.get("ctc_only_steps", 0) > 0


def _plan_table(cfg: DictConfig, model: SpeechLLM, trained: Sequence[str], steps: int) -> list[str]:
    missing = missing_files(cfg)
    if missing:
        plan, lengths = _synthetic_plan(cfg, model)
        note = synthetic_note(missing, None if model.projector is None else frame_rate(cfg))
    else:
        plan, lengths, note = _real_plan(cfg, model, trained)
    total = resolve_max_steps(plan, max_steps=cfg.max_steps, epochs=cfg.epochs)
    # Epochs of synthetic data say nothing.
    of_total = "" if missing and cfg.max_steps is None else f" of {total:,}"
    shown = [step for step, _ in zip(plan, range(steps), strict=False)]
    header = ("step", "source", "rows", "samples", "tokens", "full")
    rows = [header, *(_step_row(step, plan, lengths) for step in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [f"first {len(shown)}{of_total} steps of the plan", f"  {note}"]
    for row in rows:
        cells = [
            c.ljust(w) if i == 1 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells))
    return lines


def _step_row(step: Step, plan: Plan, lengths: np.ndarray) -> tuple[str, ...]:
    lengths = plan.twin_lengths if step.is_twin else lengths
    return (
        str(step.number + 1),
        f"{step.source}{' (text twins)' if step.is_twin else ''}",
        str(len(step.rows)),
        str(len(step.samples)),
        f"{lengths[step.samples].sum():,}",
        f"{fill(step, lengths, plan.max_seq_len):.1%}",
    )


def missing_files(cfg: DictConfig) -> list[str]:
    """Files and folders that the data and tokenizer nodes name and that are not there.

    Args:
        cfg: configuration of a training recipe.

    Returns:
        Their paths.
    """
    manifest = cfg.dataset.get("manifest") or []
    paths = [manifest] if isinstance(manifest, str) else list(manifest)
    paths += [cfg.dataset.get("features"), cfg.dataset.get("kept"), cfg.tokenizer.get("path")]
    return [str(p) for p in paths if p and not Path(p).exists()]


def frame_rate(cfg: DictConfig) -> float:
    """Frames a second that are reckoned with where there is no feature store.

    Args:
        cfg: configuration of a training recipe.

    Returns:
        50, averaged as ``dataset`` says, or as the packaged extraction does that would write this
        store; by 3 where neither is known.
    """
    average = cfg.dataset.get("frame_average")
    for name in config.config_names("extract_features"):
        extraction = OmegaConf.load(config.config_path(name))
        if extraction.output_dir == cfg.dataset.get("features"):
            average = average or extraction.frame_average
    return _FRAMES_PER_SECOND / (average or _FRAME_AVERAGE)


def synthetic_note(missing: Sequence[str], frames_per_second: float | None) -> str:
    """What a plan without data is made of.

    Args:
        missing: what is not there.
        frames_per_second: of the speech; None for text.

    Returns:
        The line.
    """
    more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
    rate = f" ({frames_per_second:.3g} frames a second)" if frames_per_second else ""
    files = ", ".join(missing[:2])
    return f"SYNTHETIC lengths{rate}, since the data is not there: {files}{more}"


def _real_plan(
    cfg: DictConfig, model: SpeechLLM, trained: Sequence[str]
) -> tuple[Plan, np.ndarray, str]:
    speech = {} if model.projector is None else {"output_length": model.projector.output_length}
    targets = (cfg.get(key) for key in ("pad_token", "normalizer"))
    speech |= target_settings(cfg.get("sigma", 0), *targets)
    dataset = config.instantiate(
        cfg.dataset,
        tokenizer=config.instantiate(cfg.tokenizer),
        max_seq_len=cfg.max_seq_len,
        **speech,
    )
    if model.projector is None:
        check_text_only(dataset)
    else:
        check_projector(
            model.projector,
            dataset,
            needs_ctc=_needs_ctc(cfg),
            only_speech=tuple(trained) == ("projector",),
        )
        checkpoint = cfg.projector_checkpoint
        if checkpoint is not None and not is_checkpoint(checkpoint):
            checkpoint = None  # of a stage that is still to come
        check_kept(checkpoint, kept_fingerprint(dataset))
        check_stage_1(cfg, dataset, checkpoint)
    if dataset.targets is not None and (Path(cfg.llm_dir) / "config.json").is_file():
        check_pad_token(cfg.pad_token, dataset.targets.pad_token, cfg.llm_dir)
    plan = build_plan(
        dataset,
        max_seq_len=cfg.max_seq_len,
        rows_per_step=cfg.rows_per_step,
        mixture=cfg.get("mixture"),
        paired=cfg.get("paired", False),
        seed=cfg.seed,
    )
    return plan, dataset.lengths, f"{len(dataset):,} samples, {dataset.lengths.sum():,} tokens"


def _synthetic_plan(cfg: DictConfig, model: SpeechLLM) -> tuple[Plan, np.ndarray]:
    samples, rng = _synthetic_samples(cfg, model), np.random.default_rng(0)
    is_qa = np.array([s.task in ("sqa", "qa") for s in samples])
    is_speech = np.array([s.is_speech for s in samples])
    low, high = (np.where(is_qa, b, a) for a, b in zip(_SECONDS, _SECONDS_SQA, strict=True))
    seconds = rng.uniform(low, high)
    text = (seconds * _TOKENS_PER_SECOND).astype(int)
    other = _PROMPT_TOKENS + np.where(is_qa, _ANSWER_TOKENS, text)
    lengths = other + text
    if model.projector is not None:
        frames = (seconds * frame_rate(cfg)).astype(int)
        vectors = model.projector.output_length(torch.from_numpy(frames)).numpy()
        lengths = other + np.where(is_speech, vectors, text)
    twins = np.where([text_twin(s) is not None for s in samples], other + text, 0)
    kept = np.flatnonzero(lengths <= cfg.max_seq_len)
    plan = Plan(
        plan_sources([samples[i] for i in kept], cfg.get("mixture")),
        lengths[kept],
        twin_lengths=twins[kept],
        paired=cfg.get("paired", False),
        max_seq_len=cfg.max_seq_len,
        rows_per_step=cfg.rows_per_step,
        seed=cfg.seed,
    )
    return plan, lengths[kept]


def _synthetic_samples(cfg: DictConfig, model: SpeechLLM) -> list[Sample]:
    """As many samples of each task, domain and language that the mixture names."""
    mixture: Any = cfg.get("mixture") or {}
    default = ("mt", "qa") if model.projector is None else ("asr", "st")
    domains = mixture.get("domain")
    kinds = []
    for task in mixture.get("task") or default:
        languages = (mixture.get("language") or {}).get(task)
        if languages is None or isinstance(languages, str):
            languages = ("en",) if task == "asr" else ("de", "it", "zh")
        names = ("",) if domains is None or isinstance(domains, str) else domains
        kinds += [(task, domain, lang) for domain in names for lang in languages]
    return [
        Sample(
            id=str(i),
            task=task,
            target="-",
            source_text="-",
            domain=domain,
            target_lang=lang,
            audio=() if model.projector is None or task in ("mt", "qa") else (AudioCut("-"),),
        )
        for i in range(_SYNTHETIC_SAMPLES)
        for task, domain, lang in [kinds[i % len(kinds)]]
    ]


def table_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A name to the left, sizes to the right, and a note.

    Args:
        rows: name, sizes, note.

    Returns:
        Lines of aligned columns.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for name, *sizes, note in rows:
        cells = [cell.rjust(width) for cell, width in zip(sizes, widths[1:], strict=True)]
        lines.append("  " + "  ".join([name.ljust(widths[0]), *cells, note]).rstrip())
    return lines
