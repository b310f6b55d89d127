"""Writing a feature store."""

import contextlib
import json
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchtune_speech.errors import InputError
from torchtune_speech.features._average import average_frames
from torchtune_speech.features._store import (
    FORMAT_VERSION,
    INDEX_FILE,
    SHARD_GLOB,
    STORE_FILE,
    check_fingerprint,
    read_store_info,
)
from torchtune_speech.files import atomic_write, write_json

# Keeps the header of a shard well under the 100 MB that safetensors allows.
MAX_UTTERANCES_PER_SHARD = 100_000

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.string()),
        ("frames", pa.int32()),
        ("seconds", pa.float64()),
        ("checksum", pa.uint32()),
    ]
)


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor as they lie in the file."""
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy())


def read_shard_index(file: Path) -> list[dict[str, Any]]:
    """Rows of the index that a shard carries in its own header.

    Args:
        file: a shard.

    Returns:
        One row per utterance with the fields of ``index.parquet``.

    Raises:
        InputError: if the file is truncated or not a shard.
    """
    try:
        with safe_open(file, framework="pt") as shard:
            rows = json.loads(shard.metadata()["index"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file}: not a readable shard ({error}); delete it and run extract_features again"
        ) from error
    return [
        {"id": key, "shard": file.name, "frames": frames, "seconds": seconds, "checksum": checksum}
        for key, (frames, seconds, checksum) in rows.items()
    ]


def stored_seconds(path: str | Path) -> dict[str, float]:
    """What the complete shards of a store hold, finished or not.

    Args:
        path: folder of the store; need not exist.

    Returns:
        Key and duration in seconds of every utterance; the empty dict for a new store.

    Raises:
        InputError: if a shard is damaged.
    """
    shards = sorted(Path(path).glob(SHARD_GLOB))
    return {row["id"]: row["seconds"] for file in shards for row in read_shard_index(file)}


def check_store(path: str | Path, fingerprint: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Check that frames can be added to a store, writing nothing.

    Args:
        path: folder of the store; need not exist.
        fingerprint: fingerprint of the frames, with ``frame_average``.
        dtype: dtype of the stored frames.

    Raises:
        InputError: if the folder holds a store of another fingerprint, dtype or version, or shards
            of an unknown store.
    """
    path = Path(path)
    if not (path / STORE_FILE).exists():
        if path.exists() and (not path.is_dir() or any(path.glob(SHARD_GLOB))):
            raise InputError(
                f"{path}: is not a feature store; choose another output_dir or delete it"
            )
        return
    info = read_store_info(path)
    cure = "use the settings it was made with, or another output_dir"
    check_fingerprint(fingerprint, info["fingerprint"], str(path), cure)
    if info["dtype"] != (name := str(dtype).removeprefix("torch.")):
        raise InputError(
            f"{path}: dtype is {info['dtype']} in the store but {name} is wanted; use the same "
            "dtype or another output_dir"
        )


def finalize_store(path: str | Path) -> int:
    """Merge what the shards say of themselves into ``index.parquet``.

    To be called once, when all processes have closed their writers. Until then the store counts
    as unfinished and is refused by readers (or, when it was finished before, looks as it did).

    Args:
        path: folder of the store.

    Returns:
        The number of utterances in the store.

    Raises:
        InputError: if the store holds nothing, a shard is damaged, or a key occurs twice.
    """
    path = Path(path)
    read_store_info(path)
    rows = [row for file in sorted(path.glob(SHARD_GLOB)) for row in read_shard_index(file)]
    if not rows:
        raise InputError(f"{path}: no shards in this feature store; run extract_features again")
    rows.sort(key=lambda row: row["id"])
    for row, following in zip(rows, rows[1:], strict=False):
        if row["id"] == following["id"]:
            raise InputError(
                f"{path}: {row['id']!r} is both in {row['shard']} and {following['shard']}; "
                "delete one of the two and run extract_features again"
            )
    for leftover in path.glob(".shard-*"):  # of processes that were killed while writing
        leftover.unlink()
    with atomic_write(path / INDEX_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), temporary)
    return len(rows)


def _write_shard(
    file: Path, tensors: dict[str, Tensor], seconds: Mapping[str, float]
) -> tuple[int, int]:
    """Write a shard with its part of the index; return its frames and the bytes of them."""
    index = {
        key: (len(frames_td), seconds[key], tensor_checksum(frames_td))
        for key, frames_td in tensors.items()
    }
    metadata = {"format": "pt", "index": json.dumps(index)}
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return sum(map(len, tensors.values())), sum(t.nbytes for t in tensors.values())


class FeatureWriter:
    """Writes the frames of utterances into shards of a feature store, one writer per process.

    A shard is written aside and renamed when whole, and carries its part of the index in its own
    header. So whenever the process is killed, only the utterances since the last whole shard are
    lost, and the next run skips all others (see :func:`stored_seconds`). When all processes are
    done, one of them calls :func:`finalize_store`.

    A full shard is written by a thread while the next one fills, so that up to two shards are in
    memory; when the disk is slower than the encoder, adding waits for it.

    Args:
        path: folder of the store; made if absent.
        fingerprint: the encoder's fingerprint.
        frame_average: how many neighbouring frames are averaged into one before storing.
        dtype: dtype of the stored frames.
        shard_mb: a shard is closed when it holds this many megabytes (1e6 bytes).
        rank: number of this process; shards of different processes have different names.

    Raises:
        InputError: if the folder holds a store of another fingerprint or dtype.

    Example:
        >>> with FeatureWriter("features", encoder.fingerprint(), frame_average=3) as writer:
        ...     writer.add("talk.wav", frames_td, seconds=12.5)
        >>> finalize_store("features")
        1
    """

    def __init__(
        self,
        path: str | Path,
        fingerprint: Mapping[str, Any],
        frame_average: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        shard_mb: float = 512,
        rank: int = 0,
    ) -> None:
        self.path = Path(path)
        self.frame_average = frame_average
        self.dtype = dtype
        self.rank = rank
        self.bytes_written = 0
        self.frames_written = 0
        self._shard_bytes = int(shard_mb * 1e6)
        self._tensors: dict[str, Tensor] = {}
        self._seconds: dict[str, float] = {}
        self._pending_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._written: Future[tuple[int, int]] | None = None
        self.fingerprint = {**fingerprint, "frame_average": frame_average}
        self._open_store()
        self._next_shard = self._first_free_number()

    def _open_store(self) -> None:
        check_store(self.path, self.fingerprint, self.dtype)
        if (self.path / STORE_FILE).exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        info = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        write_json(self.path / STORE_FILE, info)

    def _first_free_number(self) -> int:
        pattern = re.compile(rf"shard-{self.rank:05d}-(\d+)\.safetensors")
        numbers = [
            int(m[1]) for f in self.path.glob(SHARD_GLOB) if (m := pattern.fullmatch(f.name))
        ]
        return max(numbers, default=-1) + 1

    def add(self, key: str, frames_td: Tensor, seconds: float) -> None:
        """Add the frames of one utterance; see :meth:`add_batch`.

        Args:
            key: key of the utterance in the store.
            frames_td: encoder frames before averaging, shape [t, d], on any device.
            seconds: duration of the audio.

        Raises:
            ValueError: if the key waits for the same shard already (:func:`finalize_store` refuses
                one that is in two), or the frames have no or wrong dimensions.
            OSError: if an earlier shard could not be written.
        """
        self.add_batch([key], [frames_td], [seconds])

    def add_batch(
        self, keys: Sequence[str], frames: Sequence[Tensor], seconds: Sequence[float]
    ) -> None:
        """Add the frames of utterances; they are on disk when their shard is full or closed.

        Averaging and rounding take place on the frames' device, from where the batch comes in one
        copy.

        Args:
            keys: keys of the utterances in the store.
            frames: encoder frames before averaging, each of shape [t, d], all on one device.
            seconds: durations of the audio.

        Raises:
            ValueError: as of :meth:`add`.
            OSError: if an earlier shard could not be written.
        """
        if self._written is not None and self._written.done():
            self._wait()
        averaged = []
        for key, frames_td in zip(keys, frames, strict=True):
            self._check(key, frames_td)
            averaged.append(average_frames(frames_td.detach(), self.frame_average).to(self.dtype))
        if not averaged:
            return
        parts = torch.cat(averaged).cpu().split([len(frames_td) for frames_td in averaged])
        for key, part, duration_s in zip(keys, parts, seconds, strict=True):
            # Within a batch as well: the first of two is known only now.
            self._check(key, part)
            # A clone, since safetensors refuses views that share memory.
            self._tensors[key] = part.clone()
            self._seconds[key] = float(duration_s)
            self._pending_bytes += part.nbytes
            full = self._pending_bytes >= self._shard_bytes
            if full or len(self._tensors) >= MAX_UTTERANCES_PER_SHARD:
                self._hand_over()

    def _check(self, key: str, frames_td: Tensor) -> None:
        if key in self._tensors:
            raise ValueError(f"{key!r} was added before")
        dim = self.fingerprint["dim"]
        if frames_td.dim() != 2 or frames_td.shape[0] == 0 or frames_td.shape[1] != dim:
            raise ValueError(f"{key!r}: expected frames [t, {dim}], got {list(frames_td.shape)}")

    def flush(self) -> None:
        """Write what was added since the last shard as a shard of its own, and wait for it.

        Raises:
            OSError: if this shard or the one before could not be written.
        """
        self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        """Let the thread write what was added, once it is done with the shard before."""
        self._wait()
        if not self._tensors:
            return
        file = self.path / f"shard-{self.rank:05d}-{self._next_shard:05d}.safetensors"
        self._written = self._thread.submit(_write_shard, file, self._tensors, self._seconds)
        self._next_shard += 1
        self._pending_bytes = 0
        self._tensors, self._seconds = {}, {}

    def _wait(self) -> None:
        """Wait for the shard in flight; raise what went wrong with it."""
        if self._written is None:
            return
        try:
            frames, size = self._written.result()
        finally:
            self._written = None
        self.frames_written += frames
        self.bytes_written += size

    def discard_if_empty(self) -> None:
        """Remove the folder again if it holds nothing but ``store.json``: no half-made store."""
        if self.path.is_dir() and {f.name for f in self.path.iterdir()} <= {STORE_FILE}:
            shutil.rmtree(self.path)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the last shard, after Ctrl-C too; after an error keep whole shards only."""
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.flush()
            else:
                with contextlib.suppress(Exception):  # the error that led here counts
                    self._wait()
                self.discard_if_empty()
        finally:
            self._thread.shutdown()
