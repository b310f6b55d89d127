"""Reading a feature store."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchtune_speech.errors import InputError
from torchtune_speech.features._average import average_frames, averaged_length

FORMAT_VERSION = 1
STORE_FILE = "store.json"
INDEX_FILE = "index.parquet"
SHARD_GLOB = "shard-*.safetensors"


def read_store_info(path: str | Path) -> dict[str, Any]:
    """Read and check ``store.json`` of a feature store.

    Args:
        path: folder of the store.

    Returns:
        ``{"format_version", "fingerprint", "dtype"}``.

    Raises:
        InputError: if the folder or the file is missing or unreadable, or was written by a newer
            version of this package.
    """
    path = Path(path)
    file = path / STORE_FILE
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; run extract_features to make a feature store")
    if not file.is_file():
        raise InputError(
            f"{path}: not a feature store ({STORE_FILE} is missing); give the output_dir of an "
            "extract_features run"
        )
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version = info["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not readable ({error}); extract the features again") from error
    if version > FORMAT_VERSION:
        raise InputError(
            f"{file}: format_version is {version} but this version of torchtune-speech reads up "
            f"to {FORMAT_VERSION}; upgrade torchtune-speech"
        )
    return info


def check_fingerprint(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    what: str,
    cure: str = "use the feature store that belongs to it, or extract the features again",
) -> None:
    """Refuse frames that another encoder, layer or averaging made.

    The ``id`` does not count where both have the same digest of weights: the folder of a model may
    be renamed.

    Args:
        expected: fingerprint that is needed, of a checkpoint say.
        found: fingerprint that is there, of a feature store say.
        what: what carries ``found``, the start of the error line; a path mostly.
        cure: what to do, the end of the error line.

    Raises:
        InputError: naming every field that differs, if any does.
    """
    fields = [f for f in {**expected, **found} if expected.get(f) != found.get(f)]
    if "weights" not in fields and expected.get("weights") and "id" in fields:
        fields.remove("id")
    if fields:
        differences = ", ".join(
            f"{f} is {found.get(f)!r} where {expected.get(f)!r} is needed" for f in fields
        )
        raise InputError(f"{what}: fingerprint does not fit: {differences}; {cure}")


class FeatureStore:
    """Random access to the encoder frames of many utterances, memory-mapped.

    Tensors are views of the shard files, no copy is made (unless frames are averaged at reading);
    do not write to them. A store may be sent to worker processes by fork or by pickling: each
    process opens shards for itself when it first needs them.

    Args:
        path: folder of the store, the ``output_dir`` of an ``extract_features`` run.
        frame_average: average this many encoder frames into one. ``None`` (the default) takes the
            frames as stored; a number asks for that averaging in total, which is done at reading
            when the store holds single frames, and is refused when it holds other averages.

    Raises:
        InputError: if the folder is missing, is no store, is unfinished, comes from a newer
            version, or holds other averages than ``frame_average``.

    Example:
        >>> store = FeatureStore("runs/nano/features")
        >>> frames_td = store["train/00001.wav"]
        >>> store.num_frames("train/00001.wav") == len(frames_td)
        True
    """

    def __init__(self, path: str | Path, frame_average: int | None = None) -> None:
        self.path = Path(path)
        info = read_store_info(self.path)
        stored_average = info["fingerprint"]["frame_average"]
        self.frame_average = stored_average if frame_average is None else frame_average
        if not isinstance(self.frame_average, int) or self.frame_average < 1:
            raise InputError(
                f"frame_average: {frame_average!r}; give a whole number of 1 or more, or null"
            )
        if stored_average not in (1, self.frame_average):
            raise InputError(
                f"{self.path}: frame_average is {stored_average} in the store, so "
                f"frame_average={frame_average} cannot be had from it; ask for {stored_average}, "
                "or extract the features again with frame_average: 1"
            )
        self._average_now = self.frame_average // stored_average
        self.dtype: str = info["dtype"]
        self._torch_dtype: torch.dtype = getattr(torch, self.dtype)
        self.fingerprint: dict[str, Any] = {
            **info["fingerprint"],
            "frame_average": self.frame_average,
        }
        self.dim: int = self.fingerprint["dim"]
        self.frames_per_second: float = self.fingerprint["frames_per_second"] / self.frame_average
        self._load_index()
        self._open_shards: dict[int, Tensor] = {}  # number -> all elements of the file

    def _load_index(self) -> None:
        file = self.path / INDEX_FILE
        if not file.is_file():
            raise InputError(
                f"{self.path}: unfinished feature store ({INDEX_FILE} is missing); run "
                "extract_features again with the same output_dir, it continues where it stopped"
            )
        try:
            columns = ["id", "shard", "frames", "seconds", "checksum"]
            table = pq.read_table(file, columns=columns, read_dictionary=["shard"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{file}: not readable ({error}); run extract_features again on the same output_dir"
            ) from error
        shards = table["shard"].unify_dictionaries().combine_chunks()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shards_n = shards.indices.to_numpy()
        self._frames_n = table["frames"].to_numpy()
        self._seconds_n = table["seconds"].to_numpy()
        self._checksums_n = table["checksum"].to_numpy()
        self._rows: dict[str, int] = {k: row for row, k in enumerate(table["id"].to_pylist())}
        # Where an utterance begins in its file, in elements; known once the shard is open.
        self._starts_n = np.full(len(self._rows), -1)

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        """Whether the store holds frames under this key."""
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._rows)

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self._rows)

    def _row(self, key: str) -> int:
        try:
            return self._rows[key]
        except KeyError:
            raise InputError(
                f"{self.path}: no features for {key!r}; run extract_features on the manifest that "
                "names it, with this output_dir"
            ) from None

    def num_frames(self, key: str) -> int:
        """Number of frames of an utterance as they are read, that is after averaging."""
        return averaged_length(int(self._frames_n[self._row(key)]), self._average_now)

    def seconds(self, key: str) -> float:
        """Duration of the audio of an utterance in seconds (after any speed perturbation)."""
        return float(self._seconds_n[self._row(key)])

    def checksum(self, key: str) -> int:
        """CRC-32 of the frames of an utterance as they are stored, before averaging at reading."""
        return self._checksums_n.item(self._row(key))

    def __getitem__(self, key: str) -> Tensor:
        """Frames of an utterance, shape [t, dim], in the dtype of the store.

        Raises:
            InputError: if the key is not in the store, or its shard is missing or damaged.
        """
        row = self._row(key)
        number = self._shards_n.item(row)
        try:
            elements = self._open_shards.get(number)
            if elements is None:
                elements = self._open_shard(number)
            # A view by hand: safetensors' own way to a tensor takes ten times as long.
            shape = (self._frames_n.item(row), self.dim)
            frames_td = elements.as_strided(shape, (self.dim, 1), self._starts_n.item(row))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{self.path / self._shard_names[number]}: cannot read {key!r} ({error}); run "
                f"torchtune-speech verify {self.path}"
            ) from error
        return average_frames(frames_td, self._average_now)

    def _open_shard(self, number: int) -> Tensor:
        """Map a shard's file as one flat tensor, and note where its utterances begin.

        Format: https://huggingface.co/docs/safetensors/index#format
        """
        file = self.path / self._shard_names[number]
        with safe_open(file, framework="pt"):
            pass  # has checked that header and file are whole and fit each other
        with open(file, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
        item_bytes = self._torch_dtype.itemsize
        for key, tensor in header.items():
            row = self._rows.get(key)  # __metadata__ is no utterance
            if row is None or self._shards_n[row] != number:
                continue
            begin, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
            shape, size = [int(self._frames_n[row]), self.dim], (end - begin) // item_bytes
            if size != shape[0] * shape[1] or begin % item_bytes:
                raise RuntimeError(f"it holds {tensor}, the index says {shape} {self.dtype}")
            self._starts_n[row] = begin // item_bytes
        size = file.stat().st_size // item_bytes
        elements = torch.from_file(str(file), shared=False, size=size, dtype=self._torch_dtype)
        self._open_shards[number] = elements
        return elements

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, which opens the shards for itself."""
        return {**self.__dict__, "_open_shards": {}}
