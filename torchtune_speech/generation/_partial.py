"""Predictions of a run that was killed."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from torchtune_speech.files import write_jsonl


class PartialPredictions:
    """Rows on disk as they come, beside the file that will hold them in order.

    ``NAME.partial.jsonl`` begins with a line that says what it belongs to; then comes a line for
    each row. A run of the same settings on the same data takes up what it finds there, another one
    begins anew.

    Args:
        output: the file that the rows are for.
        fingerprint: JSON data that all runs with the same rows have in common.

    Attributes:
        rows: index of a sample to its row, as found on disk.

    Example:
        >>> partial = PartialPredictions("out/predictions.jsonl", {"seed": 1})
        >>> with partial:
        ...     partial.add([(0, {"id": "a", "prediction": "yes"})])
        >>> partial.finish([0])
    """

    def __init__(self, output: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.output = Path(output)
        self.path = self.output.with_name(f"{self.output.stem}.partial.jsonl")
        self._header = json.dumps({"fingerprint": fingerprint}, sort_keys=True) + "\n"
        self.rows: dict[int, dict[str, Any]] = {}
        self._whole = 0  # bytes of the file that can be kept
        self._read()
        self._file: IO[bytes] | None = None

    def _read(self) -> None:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            if file.readline() != self._header.encode():
                return
            self._whole = file.tell()
            for line in file:
                if not line.endswith(b"\n"):  # killed while writing it
                    return
                found = json.loads(line)
                self.rows[found["index"]] = found["row"]
                self._whole += len(line)

    def __enter__(self) -> "PartialPredictions":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "r+b" if self._whole else "wb")
        self._file.truncate(self._whole)
        self._file.seek(self._whole)
        if not self._whole:
            self._file.write(self._header.encode())
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Keep rows, on disk too.

        Args:
            rows: index of a sample, and its row.
        """
        for index, row in rows:
            self.rows[index] = row
            line = json.dumps({"index": index, "row": row}, ensure_ascii=False)
            self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, order: Iterable[int]) -> None:
        """Write the output, whole or not at all, and remove the side file.

        Args:
            order: indices of all samples, as they are to be written.
        """
        write_jsonl(self.output, [self.rows[i] for i in order])
        self.path.unlink()
