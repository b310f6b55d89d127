"""What the benchmarks share: sizes, the machine, turns, tables and the file of results."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from torchtune_speech.files import write_json
from torchtune_speech.models import LLAMA3_1_8B

RESULTS = Path(__file__).parent / "results"

# Arguments of `speech_llama3_1`. nano is the LLM of the nano world; 100m has a body (layers) of 104
# million parameters under the vocabulary of Llama 3.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 1_920,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 192,
        "intermediate_dim": 512,
        "max_seq_len": 2_048,
        "norm_eps": 1e-5,
        "rope_base": 500_000,
        "scale_factor": 8,
    },
    "100m": {
        "vocab_size": 128_256,
        "num_layers": 12,
        "num_heads": 12,
        "num_kv_heads": 4,
        "embed_dim": 768,
        "intermediate_dim": 3_072,
        "max_seq_len": 8_192,
        "norm_eps": 1e-5,
        "rope_base": 500_000,
        "scale_factor": 8,
    },
    "8b": {k: v for k, v in LLAMA3_1_8B.items() if k != "tie_embeddings"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parser(
    doc: str, *, sizes: Sequence[str] = (), takes: Sequence[str] = ("device", "dtype", "repeats")
) -> argparse.ArgumentParser:
    """A command line with options that benchmarks share.

    Args:
        doc: docstring of the benchmark; its first line is shown.
        sizes: values of ``--size``, the default first; none for no such option.
        takes: which of ``device``, ``dtype`` and ``repeats`` the benchmark reads.

    Returns:
        The parser, with these and ``--out``.
    """
    made = argparse.ArgumentParser(description=doc.split("\n")[0])
    if sizes:
        made.add_argument("--size", choices=sizes, default=sizes[0], help="(%(default)s)")
    if "device" in takes:
        made.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    if "dtype" in takes:
        help_text = "default: bf16 where the device has it, else fp32"
        made.add_argument("--dtype", choices=DTYPES, help=help_text)
    if "repeats" in takes:
        help_text = "of each measurement (%(default)s)"
        made.add_argument("--repeats", type=int, default=5, help=help_text)
    made.add_argument(
        "--out", type=Path, help="file of results; default: benchmarks/results/{cpu,gpu}.json"
    )
    return made


def compute_dtype(options: argparse.Namespace) -> torch.dtype:
    """The dtype asked for, or the fast one of the device.

    Args:
        options: of :func:`parser`.

    Returns:
        bfloat16 on GPUs and on CPUs with instructions for it; float32 elsewhere, where bfloat16
        is emulated and several times slower.
    """
    if options.dtype:
        return DTYPES[options.dtype]
    fast = options.device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Wall-clock time of one call, in seconds."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def take_turns(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str | torch.device = "cpu",
    warmup: int = 1,
) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that a busy moment hits all of them.

    Args:
        runs: name to what is measured.
        repeats: how often each is measured.
        device: where they compute.
        warmup: calls of each before.

    Returns:
        Name to median, in seconds.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: statistics.median(taken) for name, taken in times.items()}


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and commit: what a figure must be read with.

    Args:
        options: of :func:`parser`; all of them are kept too.

    Returns:
        JSON data.
    """
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    del shown["out"]
    return {
        "machine": _machine(_device(options)),
        "threads": torch.get_num_threads(),
        "versions": {
            name: metadata.version(name)
            for name in ("torch", "torchtune", "torchao", "transformers")
        },
        "commit": _commit(),
        "options": shown,
    }


def write_section(options: argparse.Namespace, name: str, section: Mapping[str, Any]) -> Path:
    """Put a benchmark's figures into the file of results; those of others stay.

    Args:
        options: of :func:`parser`.
        name: of the benchmark.
        section: its figures; the setting is added.

    Returns:
        The file.
    """
    kind = "cpu" if _device(options) == "cpu" else "gpu"
    out = options.out or RESULTS / f"{kind}.json"
    known = json.loads(out.read_text()) if out.exists() else {}
    write_json(out, known | {name: {**section, "setting": setting(options)}})
    print(f"written to {os.path.relpath(out)}")
    return out


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a header, numbers to the right.

    Args:
        header: names of the columns.
        rows: cells; floats are shown with three significant digits.
    """
    cells = [list(header), *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        numbers = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip(), flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _device(options: argparse.Namespace) -> str:
    return getattr(options, "device", "cpu")


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    flags = next((x.split() for x in lines if x.startswith("flags")), [])
    simd = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return " ".join([model or platform.machine(), f"({os.cpu_count()} cores)", *simd])


def _commit() -> str:
    """The commit, and whether something else than results has changed since."""
    ask = ["git", "-C", str(RESULTS.parents[1])]
    changes = ["status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results"]
    try:
        commit, changed = (
            subprocess.run([*ask, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("-dirty" if changed else "")
