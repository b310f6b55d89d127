"""Peak memory of a training step: what is predicted beside what is measured.

The prediction (`training.predict_memory`) runs a step on tensors without content. Measured is a
real step, the second, with weights of any content and the same batch: on a CPU by adding up the
allocations that torch's profiler sees, from the first weight on; on a GPU by
`torch.cuda.max_memory_allocated`. Three stages, layers recomputed or kept.

    python benchmarks/memory.py                            # the LLM of the nano world
    python benchmarks/memory.py --size 100m                # 300 million, 128,256 tokens; minutes
    python benchmarks/memory.py --size 8b                  # predicted only
    python benchmarks/memory.py --size 8b --device cuda
"""

import argparse
import gc
import itertools
from typing import Any

import torch
from common import DTYPES, SIZES, compute_dtype, parser, print_table, write_section
from omegaconf import DictConfig, OmegaConf
from torch.profiler import ProfilerActivity, profile

from torchtune_speech import config, training
from torchtune_speech.config import config_path
from torchtune_speech.data import Batch

FRAME_DIM = 1024
STAGES = {
    "projector": ("projector",),
    "lora_finetune_text": ("lora",),
    "multimodal_fuse": ("projector", "lora"),
}
# Width of the projector's layers, length and number of rows that are computed at a time.
SETTINGS: dict[str, dict[str, Any]] = {
    "100m": {"projector": 384, "row": 512, "rows": 1},
    "nano": {"projector": 192, "row": 512, "rows": 2},
}


def main() -> None:
    """Predict, measure, print and write."""
    arguments = parser(__doc__, sizes=("nano", "100m", "8b"), takes=("device", "dtype"))
    arguments.add_argument("--rows", type=int, help="rows of a batch; default: the setting's")
    arguments.add_argument("--row", type=int, help="length of a row; default: the setting's")
    options = arguments.parse_args()
    measured = options.size != "8b" or options.device != "cpu"
    table = {}
    for stage, trained in STAGES.items():
        cfg = stage_config(stage, options)
        for recomputed in (True, False):
            batch = training.planned_batch(cfg, meta_projector(cfg))
            found = predict_and_measure(cfg, trained, batch, recomputed, measured)
            table[f"{stage}, layers {'recomputed' if recomputed else 'kept'}"] = found
    report(table, options)


def stage_config(stage: str, options: argparse.Namespace) -> DictConfig:
    """The 8B's configuration of a stage, in another size if asked for."""
    cfg = OmegaConf.load(config_path(f"llama3_1_8b/{stage}"))
    cfg.device = options.device
    if options.dtype or options.size != "8b":
        dtype = compute_dtype(options)
        cfg.dtype = next(name for name, known in DTYPES.items() if known == dtype)
    if options.size != "8b":
        given, shape = SETTINGS[options.size], SIZES[options.size]
        lora = {} if stage == "projector" else {"lora_rank": 8, "lora_alpha": 16}
        build = "lora_speech_llama3_1" if lora else "speech_llama3_1"
        cfg.model = {"_component_": f"torchtune_speech.models.{build}", **lora, **shape}
        if "projector" in cfg:
            cfg.projector |= {"out_dim": shape["embed_dim"], "embed_dim": given["projector"]}
            cfg.projector.num_heads = given["projector"] // 64
        cfg.max_seq_len = given["row"]
        cfg.rows_per_step, cfg.gradient_accumulation_steps = given["rows"], 1
    if options.row:
        cfg.max_seq_len = options.row
    if options.rows:
        cfg.rows_per_step, cfg.gradient_accumulation_steps = options.rows, 1
    return cfg


def meta_projector(cfg: DictConfig) -> torch.nn.Module | None:
    """The projector without memory."""
    with torch.device("meta"):
        return config.instantiate(cfg.get("projector"))


def predict_and_measure(
    cfg: DictConfig, trained: tuple[str, ...], batch: Batch, recomputed: bool, measured: bool
) -> dict[str, Any]:
    """Bytes of a stage."""
    predicted = training.predict_memory(
        cfg, trained, activation_checkpointing=recomputed, batch=batch
    )
    found: dict[str, Any] = {
        "predicted": predicted.total,
        "phase": predicted.phase,
        "parts": dict(predicted.parts),
    }
    if measured:
        found["measured"] = measure(cfg, trained, batch, recomputed)
        found["ratio"] = round(predicted.total / found["measured"], 3)
    return found


def measure(cfg: DictConfig, trained: tuple[str, ...], batch: Batch, recomputed: bool) -> int:
    """Most bytes that were allocated at a time, from building the model to the second step."""
    gc.collect()
    if cfg.device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        two_steps(cfg, trained, batch, recomputed)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        two_steps(cfg, trained, batch, recomputed)
    events = profiler.profiler.kineto_results.events()
    return max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))


def two_steps(cfg: DictConfig, trained: tuple[str, ...], batch: Batch, recomputed: bool) -> None:
    """Any weights, and two steps as the recipe takes them."""
    dtype, process = training.compute_dtype(cfg.dtype), training.start_process(cfg.device)
    model = training.meta_speech_llm(cfg.model, meta_projector(cfg), dtype)
    if recomputed:
        training.recompute_layers(model)
    model.to_empty(device=process.device)
    for p in model.parameters():
        torch.nn.init.constant_(p, 0.01)  # content takes time and changes no size
    with process.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):
                module.rope_init()
    groups = training.trainable_groups(model.train(), *trained)
    optimizer = training.build_optimizer(cfg.optimizer, groups)
    batches = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}]
    batches *= min(cfg.gradient_accumulation_steps, 2)
    for _ in range(2):
        training.forward_backward(
            model, batches, process, dtype=dtype, ctc_weight=cfg.get("ctc_weight", 0)
        )
        training.clip_gradients(groups, cfg.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def report(table: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table and write the section."""
    rows = []
    for name, found in table.items():
        cells = [
            f"{found[k] / 2**20:,.0f}" if k in found else "-" for k in ("predicted", "measured")
        ]
        rows.append([name, *cells, found.get("ratio", "-"), found["phase"]])
    print_table(["", "predicted, MiB", "measured, MiB", "ratio", "fullest in"], rows)
    section = "memory" if options.size == "nano" else f"memory_{options.size}"
    write_section(options, section, {"table": table})


if __name__ == "__main__":
    main()
