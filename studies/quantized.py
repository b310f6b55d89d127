"""The frozen LLM in fewer bits: what does it cost in loss, what does it save?

    python studies/quantized.py loss --run runs/nano --steps 100
    python studies/quantized.py memory       # stage C of the 8B, one row of 4,096 tokens; no files

The first trains LoRA on text (stage B) through the same LLM in float32, bf16, NF4 and float8, on
the same steps. It prints the mean loss of the LLM as it is (20 steps at a learning rate of zero),
that of the last steps of the training, and the time of a training step, start-up left out. It needs
the data and the LLM of the nano world, no audio:

    python -m torchtune_speech.nano world --out runs/nano/data
    python -m torchtune_speech.nano llm --data runs/nano/data --out runs/nano/llm
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from omegaconf import OmegaConf

from torchtune_speech import config, training
from torchtune_speech.files import read_jsonl
from torchtune_speech.models import QUANTIZATIONS, weight_bytes

VARIANTS = {
    "float32": ("fp32", "null"),
    "bf16": ("bf16", "null"),
    "nf4, the rest float32": ("fp32", "nf4"),
    "nf4, the rest bf16": ("bf16", "nf4"),
    "float8, the rest float32": ("fp32", "float8"),
    "float8, the rest bf16": ("bf16", "float8"),
}
_FROZEN_STEPS = 20
_WARM_UP = 10  # steps whose time is not counted


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("loss", help="what it costs in loss, on the nano world")
    command.add_argument("--run", type=Path, default=Path("runs/nano"), help="(%(default)s)")
    command.add_argument("--steps", type=int, default=100, help="of stage B (%(default)s)")
    command.set_defaults(study=study_loss)
    command = commands.add_parser("memory", help="what it saves, on the meta device")
    command.add_argument("--config", default="llama3_1_8b/multimodal_fuse", help="(%(default)s)")
    command.set_defaults(study=study_memory)
    options = parser.parse_args()
    options.study(options)


def study_memory(options: argparse.Namespace) -> None:
    """Bytes of the weights for each kind, and the predicted memory of a step with them."""
    cfg = OmegaConf.load(config.config_path(options.config))
    print("| quantize | frozen weights | of these, the layers | a step in all, predicted |")
    print("|---|---|---|---|")
    for kind in (None, *QUANTIZATIONS):
        cfg.quantize, cfg.gradient_accumulation_steps = kind, cfg.rows_per_step
        with torch.device("meta"):
            projector = config.instantiate(cfg.get("projector"))
        model = training.meta_speech_llm(cfg.model, projector, torch.bfloat16, kind)
        trained = tuple(cfg.learning_rate)
        training.trainable_groups(model, *trained)
        sizes = {n: weight_bytes(p) for n, p in model.named_parameters() if not p.requires_grad}
        layers = sum(size for name, size in sizes.items() if ".layers." in name)
        step = training.predict_memory(cfg, trained, activation_checkpointing=True)
        cells = (sum(sizes.values()), layers, step.total)
        print(f"| {kind or 'null'} | {' | '.join(f'{n / 2**30:.2f} GiB' for n in cells)} |")


def study_loss(options: argparse.Namespace) -> None:
    """Train through each and print a table."""
    if not (options.run / "llm" / "config.json").is_file():
        sys.exit(f"{options.run}/llm: not there; see --help for the two commands that make it")
    last = max(1, options.steps // 5)
    print(f"| weights | frozen LLM | stage B, last {last} of {options.steps} steps | a step |")
    print("|---|---|---|---|")
    for name, (dtype, quantize) in VARIANTS.items():
        words = [f"dtype={dtype}", f"quantize={quantize}"]
        frozen = stage_b(options.run, _FROZEN_STEPS, *words, "learning_rate.lora.lr=0")
        trained = stage_b(options.run, options.steps, *words)
        losses = [mean(row["loss"] for row in rows) for rows in (frozen, trained[-last:])]
        seconds = median(row["seconds"] for row in trained[_WARM_UP:] or trained)
        print(
            f"| {name} | {losses[0]:.4f} | {losses[1]:.4f} | {1000 * seconds:.0f} ms |", flush=True
        )


def stage_b(run: Path, steps: int, *words: str) -> list[dict[str, Any]]:
    """The metrics of a run of stage B, started for the purpose.

    Args:
        run: folder with ``data`` and ``llm``.
        steps: steps to train.
        *words: ``key=value``.

    Returns:
        ``loss`` (nats) and ``seconds`` of each step, among others.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "B"
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("tune"), "run", "lora_finetune_text"),
                *("--config", "nano/lora_finetune_text", f"output_dir={out}"),
                *(f"llm_dir={run / 'llm'}", f"dataset.manifest={run / 'data' / 'text.jsonl'}"),
                *("eval_dataset=null", f"max_steps={steps}", *words),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return list(read_jsonl(out / "metrics.jsonl"))


if __name__ == "__main__":
    main()
