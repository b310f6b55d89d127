"""The speech vectors that reach the LLM, where pads are dropped: a file beside the store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore, check_fingerprint
from torchtune_speech.files import atomic_write

FORMAT = 2  # 1 has no checksums
_METADATA = b"torchtune_speech"
_AGAIN = "run torchtune-speech keep again"


class KeptPositions:
    """Which of an utterance's speech vectors the LLM is given.

    Args:
        path: file that ``torchtune-speech keep`` wrote.

    Attributes:
        fingerprint: what decided: ``projector`` (SHA-256 of its weights), ``pad_token``, and
            ``pads``, the rule. A file of format 1 has no rule: by an older one, vectors that are
            read as another special token than the pad were kept.
        store_fingerprint: of the frames that the projector read.

    Raises:
        InputError: if there is no such file, it is another one, or it is damaged.

    Example:
        >>> kept = KeptPositions("runs/nano/kept.parquet")
        >>> kept.positions("train/00001.wav", vectors=25)
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file; run torchtune-speech keep to write it")
        try:
            table = pq.read_table(self.path)
            info = json.loads((table.schema.metadata or {})[_METADATA])
            newer = info["format"] > FORMAT
            self.fingerprint: dict[str, Any] = info["kept"]
            self.store_fingerprint: dict[str, Any] = info["store"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: holds no kept positions ({error!r}); {_AGAIN}") from error
        if newer:
            raise InputError(f"{path}: written by a newer torchtune-speech; update this one")
        kept = table["kept"].combine_chunks()
        self._rows = {key: row for row, key in enumerate(table["id"].to_pylist())}
        self._vectors_n = table["vectors"].to_numpy()
        has_checksums = "checksum" in table.column_names
        self._checksums_n = table["checksum"].to_numpy() if has_checksums else None
        self._ends_n = np.cumsum(kept.value_lengths().to_numpy(zero_copy_only=False))
        self._positions = torch.from_numpy(kept.flatten().to_numpy().astype(np.int32))
        self._check_positions()

    def _check_positions(self) -> None:
        counts_n = np.diff(self._ends_n, prepend=0)
        rows = np.repeat(np.arange(len(counts_n)), counts_n)
        positions = self._positions.numpy()
        rising = (np.diff(positions) > 0) | (np.diff(rows) > 0)
        inside = (positions >= 0) & (positions < self._vectors_n[rows])
        if not (rising.all() and inside.all()):
            raise InputError(f"{self.path}: holds positions that no utterance has; {_AGAIN}")

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        """Whether the file knows this key of the store."""
        return key in self._rows

    def check_store(self, store: FeatureStore) -> None:
        """Refuse a store of other frames than those that decided what is kept.

        Utterances that only one of the two knows are no matter here.

        Args:
            store: the feature store.

        Raises:
            InputError: naming the field, or the first utterance, that differs.
        """
        check_fingerprint(
            self.store_fingerprint,
            store.fingerprint,
            f"{store.path} against {self.path}",
            f"{_AGAIN} with --features {store.path}",
        )
        if self._checksums_n is None:
            return
        for key, row in self._rows.items():
            if key in store and store.checksum(key) != self._checksums_n.item(row):
                raise InputError(
                    f"{self.path}: made with other frames of {key!r} than those of {store.path}; "
                    f"{_AGAIN} with --features {store.path}"
                )

    def positions(self, key: str, vectors: int) -> Tensor:
        """What is kept of an utterance.

        Args:
            key: of the utterance in the feature store.
            vectors: speech vectors that the projector makes of it.

        Returns:
            Positions among these, ascending, int32 ``[k]``; a view, not to be written to.

        Raises:
            InputError: if the file does not know the utterance, or its projector made another
                number of vectors of it.
        """
        row = self._rows.get(key)
        if row is None:
            raise InputError(
                f"{self.path}: does not know {key!r}; {_AGAIN} on the feature store that holds it"
            )
        if (known := self._vectors_n.item(row)) != vectors:
            raise InputError(
                f"{self.path}: made for a projector with {known} speech vectors of {key!r}, this "
                f"one has {vectors}; use the projector settings of that run, or {_AGAIN}"
            )
        start = self._ends_n.item(row - 1) if row else 0
        return self._positions[start : self._ends_n.item(row)]


def write_kept(
    path: str | Path,
    kept: Mapping[str, tuple[int, Sequence[int] | np.ndarray]],
    *,
    fingerprint: Mapping[str, Any],
    store_fingerprint: Mapping[str, Any],
    checksums: Mapping[str, int],
) -> None:
    """Write the file that :class:`KeptPositions` reads, whole or not at all.

    Args:
        path: the file, Parquet with columns ``id``, ``vectors``, ``checksum`` and ``kept``.
        kept: key of an utterance to its number of speech vectors and the positions that are kept.
        fingerprint: of what decided, see :class:`KeptPositions`.
        store_fingerprint: of the frames.
        checksums: of each utterance's frames, :meth:`FeatureStore.checksum`.
    """
    info = {"format": FORMAT, "kept": dict(fingerprint), "store": dict(store_fingerprint)}
    table = pa.table(
        {
            "id": pa.array(list(kept), pa.string()),
            "vectors": pa.array([vectors for vectors, _ in kept.values()], pa.int32()),
            "checksum": pa.array([checksums[key] for key in kept], pa.uint32()),
            "kept": pa.array([p for _, p in kept.values()], pa.large_list(pa.int32())),
        }
    )
    with atomic_write(path) as temporary:
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(info)}), temporary)


def keep_index(kept: Sequence[Tensor], vectors: Sequence[int]) -> Tensor:
    """Positions of several utterances among all their speech vectors, one after the other.

    Args:
        kept: positions that are kept of each utterance, ``[k]`` each.
        vectors: speech vectors of each.

    Returns:
        Positions in the projector's packed output, int64 ``[n]``.

    Example:
        >>> keep_index([torch.tensor([0, 2]), torch.tensor([1])], vectors=[4, 3])
        tensor([0, 2, 5])
    """
    starts = np.cumsum([0, *vectors]).tolist()
    parts = [part.long() + start for part, start in zip(kept, starts[:-1], strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
