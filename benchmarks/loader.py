"""Batches a second: how fast rows of tokens and frames are prepared, with and without workers.

What training reads, from files to batches: a manifest of speech translation (2 to 20 seconds) with
transcripts, a tokenizer in Llama-3's format, a feature store (1024 wide, bf16), the plan with each
speech step followed by its text twins, rows of 4,096 tokens, two a step. A token is counted when it
holds something, padding never. The clock runs from the first step to the last: starting workers is
not in it. On a GPU the batches are copied there from pinned memory, as in training.

    python benchmarks/loader.py
    python benchmarks/loader.py --device cuda --workers 0 1 2 4 8
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, print_table, synchronize, write_section
from store import DIM, write_store
from synthetic import SyntheticDataset
from torchtune.models.llama3 import llama3_tokenizer

from torchtune_speech import training
from torchtune_speech.data import PromptTemplates, SpeechDataset, StepBatches
from torchtune_speech.datasets import speech_dataset
from torchtune_speech.nano._tokenizer import write_tokenizer

TEMPLATES = "mcif_fixed"
WORDS = ["".join(w) for w in itertools.product(*(["ba", "de", "ki", "lo", "mu", "sa"],) * 4)]


def main() -> None:
    """Write the data, check, measure, print and write."""
    arguments = parser(__doc__, takes=("device", "repeats"))
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--utterances", type=int, default=1500, help="(%(default)s)")
    arguments.add_argument("--steps", type=int, default=24, help="that are timed (%(default)s)")
    arguments.add_argument("--row", type=int, default=4096, help="tokens of a row (%(default)s)")
    arguments.add_argument("--rows-per-step", type=int, default=2, help="(%(default)s)")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_data(Path(folder), options)
        check_equal(dataset, options)
        times: dict[int, list[float]] = {n: [] for n in options.workers}
        for _ in range(options.repeats):
            for workers, taken in times.items():
                seconds, tokens, size = run(dataset, workers, options)
                taken.append(seconds)
    report({n: statistics.median(taken) for n, taken in times.items()}, tokens, size, options)


def write_data(folder: Path, options: argparse.Namespace) -> SpeechDataset:
    """A manifest, a store and a tokenizer whose words are one token each, and the data set."""
    made = SyntheticDataset(options.utterances, vocab_size=len(WORDS), frame_dim=DIM)
    write_store(folder / "features", made.frames)
    rng = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS, words))

    rows = [
        {
            "id": str(i),
            "task": "st",
            "audio": f"clips/{i:08d}.mp3",
            "target_lang": "de",
            "source_text": text(made.source[i]),
            "target": text(made.target[i]),
        }
        for i in range(len(made))
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = PromptTemplates.from_yaml(TEMPLATES).pool("st", "de")
    write_tokenizer(folder, [*(f" {word}" for word in WORDS), *WORDS, *prompts, "user assistant"])
    return speech_dataset(
        str(folder / "manifest.jsonl"),
        tokenizer=llama3_tokenizer(str(folder / "tokenizer.model"), str(folder / "tokenizer.json")),
        max_seq_len=options.row,
        features=str(folder / "features"),
        templates=TEMPLATES,
    )


def loader_of(
    dataset: SpeechDataset, workers: int, steps: int, options: argparse.Namespace
) -> torch.utils.data.DataLoader:
    """The loader that the fuse recipe makes."""
    plan = training.build_plan(
        dataset, max_seq_len=options.row, rows_per_step=options.rows_per_step, paired=True
    )
    batches = StepBatches(dataset, seq_len=options.row, rows_per_step=options.rows_per_step)
    return training.step_loader(
        plan, batches, steps=steps, num_workers=workers, device=options.device
    )


def check_equal(dataset: SpeechDataset, options: argparse.Namespace) -> None:
    """Batches do not depend on who prepares them, and hold what the data set gives, in order."""
    loaders = [loader_of(dataset, workers, 2, options) for workers in (0, 1)]
    for (step, ours), (_, theirs) in zip(*loaders, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            same = [torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor)]
            if not all(same) or a["ids"] != b["ids"]:
                raise SystemExit("a worker's batches differ from those of the main process")
        items = [dataset.item(i, twin=step.is_twin) for i in step.samples]
        (batch,) = ours
        expected = [token for item in items for token in item["tokens"]]
        if batch["tokens"][batch["document_ids"] > 0].tolist() != expected:
            raise SystemExit("the batch's tokens are not those of its samples")
        frames = [f.float() for item in items for f in item["frames"]]
        if frames and not torch.equal(batch["frames"].float(), torch.cat(frames)):
            raise SystemExit("the batch's frames are not those of its samples")


def run(
    dataset: SpeechDataset, workers: int, options: argparse.Namespace
) -> tuple[float, int, float]:
    """Seconds, tokens and megabytes of the steps after the first."""
    device = torch.device(options.device)
    tokens, size, began = 0, 0, 0.0
    for _, batches in loader_of(dataset, workers, options.steps + 1, options):
        for batch in batches:
            tokens += int((batch["document_ids"] > 0).sum())
            size += sum(v.nbytes for v in batch.values() if isinstance(v, torch.Tensor))
            training.to_device(batch, device)
        if not began:
            synchronize(device)
            tokens, size, began = 0, 0, time.perf_counter()
    synchronize(device)
    return time.perf_counter() - began, tokens, size / 1e6


def report(
    seconds: dict[int, float], tokens: int, size_mb: float, options: argparse.Namespace
) -> None:
    """Print the table and write the section."""
    rows: Sequence[Sequence[Any]] = [
        [str(n), tokens / taken, options.steps / taken, size_mb / options.steps]
        for n, taken in seconds.items()
    ]
    print_table(["workers", "tokens/s", "steps/s", "MB/step"], rows)
    figures = {
        "tokens_per_s": {str(n): tokens / taken for n, taken in seconds.items()},
        "mb_per_step": size_mb / options.steps,
    }
    write_section(options, "loader", figures)


if __name__ == "__main__":
    main()
