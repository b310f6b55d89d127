"""What a run would be: parameters, memory and the first steps, with nothing loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from torchtune_speech import config
from torchtune_speech.data import Plan, Source, fill
from torchtune_speech.errors import InputError
from torchtune_speech.models import SpeechLLM
from torchtune_speech.training._build import meta_speech_llm
from torchtune_speech.training._loader import build_plan
from torchtune_speech.training._optim import check_learning_rates, trainable_groups


def dry_run(cfg: DictConfig, trained: Sequence[str], steps: int = 5) -> str:
    """Build the model on the meta device and plan the first steps.

    Args:
        cfg: configuration of a training recipe.
        trained: parameter groups that the recipe trains.
        steps: steps of the plan to show.

    Returns:
        The text to print.
    """
    # Not torchtune's get_dtype: it refuses bf16 where the machine at hand cannot compute in it.
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[cfg.dtype]
    with torch.device("meta"):
        projector = config.instantiate(cfg.get("projector"))
    model = meta_speech_llm(cfg.model, projector, dtype)
    groups = trainable_groups(model, *trained)
    check_learning_rates(cfg.learning_rate, groups)
    plan, lengths, note = _plan(cfg, model)
    lines = ["", "parameters", *_table(parameter_counts(model))]
    lines += ["", "memory of one process, estimated", *_memory_table(cfg, model, dtype)]
    lines += ["", f"first steps of the plan ({note})"]
    lines += [_describe(step, plan, lengths) for step, _ in zip(plan, range(steps), strict=False)]
    return "\n".join(lines)


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


def memory_estimate(
    model: SpeechLLM, *, tokens: int, dtype: torch.dtype, activation_checkpointing: bool
) -> dict[str, int]:
    """Bytes that a training step needs in one process.

    Args:
        model: the model, with its trainable parameters marked.
        tokens: positions of one batch (rows times row length).
        dtype: of the frozen weights and the activations.
        activation_checkpointing: whether layers are recomputed.

    Returns:
        Part to bytes. Activations count what the backward pass of a decoder layer keeps: four
        vectors of the width, queries, keys, values and attention output, and three of the
        feed-forward width for each token.
    """
    size = dtype.itemsize
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    layer = model.decoder.layers[0]
    width, ffn = model.decoder.tok_embeddings.embedding_dim, layer.mlp.w1.weight.shape[0]
    kept = (8 * width + 3 * ffn) * size
    layers = len(model.decoder.layers)
    per_token = width * size * layers + kept if activation_checkpointing else kept * layers
    return {
        "frozen weights": frozen,
        "trainable weights (float32)": 4 * trainable,
        "gradients (float32)": 4 * trainable,
        "optimizer state (float32, two moments)": 8 * trainable,
        "activations": per_token * tokens,
    }


def _memory_table(cfg: DictConfig, model: SpeechLLM, dtype: torch.dtype) -> list[str]:
    rows = -(-cfg.rows_per_step // cfg.gradient_accumulation_steps)
    parts = memory_estimate(
        model,
        tokens=rows * cfg.max_seq_len,
        dtype=dtype,
        activation_checkpointing=cfg.activation_checkpointing,
    )
    parts["total"] = sum(parts.values())
    return _table({k: f"{v / 2**30:.2f} GiB" for k, v in parts.items()})


def _plan(cfg: DictConfig, model: SpeechLLM) -> tuple[Plan, np.ndarray, str]:
    shape = {"max_seq_len": cfg.max_seq_len, "rows_per_step": cfg.rows_per_step, "seed": cfg.seed}
    mixture, paired = cfg.get("mixture"), cfg.get("paired", False)
    try:
        dataset = _dataset(cfg, model)
    except (InputError, OSError) as error:
        plan, lengths = _synthetic_plan(model, paired=paired, **shape)
        return plan, lengths, f"SYNTHETIC lengths, since the data is not there: {error}"
    plan = build_plan(dataset, mixture=mixture, paired=paired, **shape)
    return plan, dataset.lengths, f"{len(dataset)} samples"


def _dataset(cfg: DictConfig, model: SpeechLLM) -> Any:
    speech = {} if model.projector is None else {"output_length": model.projector.output_length}
    tokenizer = config.instantiate(cfg.tokenizer)
    return config.instantiate(
        cfg.dataset, tokenizer=tokenizer, max_seq_len=cfg.max_seq_len, **speech
    )


def _synthetic_plan(
    model: SpeechLLM, *, paired: bool, max_seq_len: int, **shape: int
) -> tuple[Plan, np.ndarray]:
    """Lengths as in EuroParl-ST and CoVoST: speech of 2 to 20 s, text of 10 to 80 tokens."""
    rng = np.random.default_rng(0)
    text = rng.integers(30, 180, 20_000)
    seconds = rng.uniform(2, 20, 20_000)
    # SeamlessM4T gives 50 frames a second, averaged by 3.
    frames = (seconds * 50 / 3).astype(int)
    speech = (
        0
        if model.projector is None
        else np.array([model.projector.output_length(int(f)) for f in frames])
    )
    lengths = np.minimum(text + speech, max_seq_len)
    sources = [Source("synthetic", 1.0, np.arange(len(lengths)), model.projector is not None)]
    twins = np.minimum(text + 40, lengths) if paired else None
    return Plan(
        sources, lengths, twin_lengths=twins, paired=paired, max_seq_len=max_seq_len, **shape
    ), lengths


def _describe(step: Any, plan: Plan, lengths: np.ndarray) -> str:
    kind = f"{step.source}{' (text twins)' if step.is_twin else ''}"
    share = "" if step.is_twin else f", {fill(step, lengths, plan.max_seq_len):.1%} full"
    count = f"{len(step.rows)} rows, {len(step.samples)} samples"
    return f"  step {step.number + 1}: {kind}, {count}{share}"


def _table(values: Mapping[str, Any]) -> list[str]:
    shown = {k: f"{v:,}" if isinstance(v, int) else v for k, v in values.items()}
    return [f"  {k:<40}{v:>18}" for k, v in shown.items()]
