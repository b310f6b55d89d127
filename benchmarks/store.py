"""Reading frames from the feature store beside plain safetensors, and opening a large store.

Utterances of 2 to 20 seconds (16.7 frames a second, 1024 wide, bf16) are read in random order and
copied into one buffer, as a batch would take them: by `FeatureStore`, and by `safe_open` with the
right handle already in hand, which nothing on top of safetensors can beat. The same for utterances
of 2 seconds, where what a read costs besides its bytes weighs most. Files are in the page cache:
the figures are of the reader, not of the disk.

    python benchmarks/store.py
    python benchmarks/store.py --utterances 20000 --rows 6000000
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import parser, print_table, seconds, take_turns, write_section
from safetensors import safe_open
from synthetic import FRAMES_PER_SECOND, SyntheticDataset
from torch import Tensor

from torchtune_speech.features import FeatureStore, FeatureWriter, finalize_store

DIM = 1024
FINGERPRINT = {"encoder": "noise", "dim": DIM, "frames_per_second": FRAMES_PER_SECOND}
SHARD_MB = 128
SHORT_S = 2.0


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__, takes=("repeats",))
    arguments.add_argument("--utterances", type=int, default=3000, help="to read (%(default)s)")
    arguments.add_argument(
        "--rows", type=int, default=1_000_000, help="of the index to open (%(default)s)"
    )
    options = arguments.parse_args()
    mixed = SyntheticDataset(options.utterances, vocab_size=100).frames
    short = np.full(options.utterances, int(SHORT_S * FRAMES_PER_SECOND))
    section: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, lengths in (("mixed", mixed), ("short", short)):
            write_store(Path(folder, name), lengths)
            section[name] = compare(Path(folder, name), options)
        open_cost = cost_of_opening(Path(folder, "large"), options.rows)
    report(section, open_cost, options)


def write_store(folder: Path, lengths: Sequence[int]) -> None:
    """A store of noise in several shards, one utterance for each number of frames."""
    noise = torch.randn(max(lengths), DIM).bfloat16()
    with FeatureWriter(folder, FINGERPRINT, shard_mb=SHARD_MB) as writer:
        for number, frames in enumerate(lengths):
            writer.add(
                f"clips/{number:08d}.mp3", noise[:frames], seconds=frames / FRAMES_PER_SECOND
            )
    finalize_store(folder)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Speed of both readers; they must have read the same."""
    store = FeatureStore(folder)
    keys = np.random.default_rng(0).permutation(store.keys()).tolist()
    handles = handles_of(folder)
    buffer = torch.empty(max(map(store.num_frames, keys)), DIM, dtype=torch.bfloat16)
    for key in keys:
        if not torch.equal(store[key], handles[key].get_tensor(key)):
            raise SystemExit(f"{key}: the two readers differ")
    runs = {
        "store": lambda: read_all(store.__getitem__, keys, buffer),
        "safetensors": lambda: read_all(lambda key: handles[key].get_tensor(key), keys, buffer),
    }
    taken = take_turns(runs, options.repeats)
    size = sum(map(store.num_frames, keys)) * DIM * 2
    return {
        "ratio": taken["safetensors"] / taken["store"],
        "reads_per_s": len(keys) / taken["store"],
        "gb_per_s": size / taken["store"] / 1e9,
        "shards": len(list(folder.glob("shard-*"))),
    }


def handles_of(folder: Path) -> dict[str, Any]:
    """Key to the open file that holds it."""
    opened = [safe_open(file, framework="pt") for file in sorted(folder.glob("shard-*"))]
    return {key: handle for handle in opened for key in handle.keys()}  # noqa: SIM118


def read_all(read: Callable[[str], Tensor], keys: Sequence[str], buffer: Tensor) -> None:
    """Read every utterance and copy it, so that its bytes are touched."""
    for key in keys:
        frames_td = read(key)
        buffer[: len(frames_td)].copy_(frames_td)


def cost_of_opening(folder: Path, rows: int) -> dict[str, float]:
    """Seconds and memory of opening a store with many rows, in a process of its own."""
    write_store(folder, [4])
    write_index(folder, rows)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(open_store, (folder,))


def write_index(folder: Path, rows: int) -> None:
    """An index as `finalize_store` writes it; its shards are never opened."""
    numbers = np.arange(rows)
    table = pa.table(
        {
            "id": [f"clips/common_voice_en_{n:08d}.mp3" for n in numbers],
            "shard": [f"shard-00000-{n // 4000:05d}.safetensors" for n in numbers],
            "frames": pa.array(np.full(rows, 100), pa.int32()),
            "seconds": np.full(rows, 6.0),
            "checksum": pa.array(numbers, pa.uint32()),
        }
    )
    pq.write_table(table, folder / "index.parquet")


def open_store(folder: Path) -> dict[str, float]:
    """Open a store; megabytes are those of the process, when it is open and at most until then."""
    before = memory_mb()
    store = FeatureStore(folder)
    after, rows = memory_mb(), len(store)
    del store
    return {
        "rows": rows,
        "seconds": min(seconds(lambda: FeatureStore(folder)) for _ in range(3)),
        "mb": after["VmRSS"] - before["VmRSS"],
        "peak_mb": after["VmHWM"] - before["VmRSS"],
    }


def memory_mb() -> dict[str, float]:
    """Memory of this process now and at most, in megabytes; Linux only, elsewhere 0."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = {k: int(v.split()[0]) / 1e3 for k, v in (x.split(":", 1) for x in lines) if "Vm" in k}
    return {name: found.get(name, 0.0) for name in ("VmRSS", "VmHWM")}


def report(
    found: Mapping[str, Mapping[str, float]],
    open_cost: Mapping[str, float],
    options: argparse.Namespace,
) -> None:
    """Print the tables and write the section."""
    print_table(
        ["reading", "of safetensors", "reads/s", "GB/s", "shards"],
        [
            [name, row["ratio"], row["reads_per_s"], row["gb_per_s"], row["shards"]]
            for name, row in (("2 to 20 s", found["mixed"]), ("2 s", found["short"]))
        ],
    )
    print_table(["opening", "rows", "s", "MB", "peak MB"], [["store", *open_cost.values()]])
    mixed = found["mixed"]
    write_section(
        options,
        "store",
        {
            "ratio_vs_safetensors": mixed["ratio"],
            "ratio_vs_safetensors_2s": found["short"]["ratio"],
            "reads_per_s": mixed["reads_per_s"],
            "gb_per_s": mixed["gb_per_s"],
            "open": dict(open_cost),
        },
    )


if __name__ == "__main__":
    main()
