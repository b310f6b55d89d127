"""Predictions of a run that was killed."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from torchtune.utils import get_logger

from torchtune_speech.errors import InputError
from torchtune_speech.files import write_jsonl

_log = get_logger("INFO")


class PartialPredictions:
    """Rows on disk as they come, beside the file that will hold them in order.

    ``NAME.partial.jsonl`` begins with a line that says what it belongs to; then comes a line for
    each row. A run of the same settings on the same data takes up what it finds there, another one
    begins anew and keeps it as ``NAME.partial.old.jsonl``. Each of several processes writes a file
    of its own (``NAME.partial-1.jsonl``, ...) and reads all of them, so that their number may
    change in between.

    Args:
        output: the file that the rows are for.
        fingerprint: JSON data that all runs with the same rows have in common.
        rank: number of this process.

    Attributes:
        rows: index of a sample to its row, as found on disk and added.

    Example:
        >>> partial = PartialPredictions("out/predictions.jsonl", {"seed": 1})
        >>> with partial:
        ...     partial.add([(0, {"id": "a", "prediction": "yes"})])
        >>> partial.finish([partial.rows[0]])
    """

    def __init__(self, output: str | Path, fingerprint: Mapping[str, Any], rank: int = 0) -> None:
        self.output = Path(output)
        which = f"-{rank}" if rank else ""
        self.path = self.output.with_name(f"{self.output.stem}.partial{which}.jsonl")
        self._header = json.dumps({"fingerprint": fingerprint}, sort_keys=True) + "\n"
        self.rows: dict[int, dict[str, Any]] = {}
        self._whole = self.path.is_file() and self._read(self.path)  # bytes that can be kept
        self.gather()
        self._file: IO[bytes] | None = None

    def gather(self) -> None:
        """Read what the other processes have written."""
        for path in self._paths():
            if path != self.path:
                self._read(path)

    def _paths(self) -> list[Path]:
        name = re.compile(re.escape(self.output.stem) + r"\.partial(-\d+)?\.jsonl")
        there = self.output.parent.iterdir() if self.output.parent.is_dir() else []
        return sorted(path for path in there if name.fullmatch(path.name))

    def _read(self, path: Path) -> int:
        """Takes the rows of a file; returns the length of its whole lines, in bytes."""
        with open(path, "rb") as file:
            if file.readline() != self._header.encode():
                return 0
            whole = file.tell()
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:  # damaged
                    break
                if not line.endswith(b"\n"):  # killed while writing it
                    break
                self.rows[found["index"]] = found["row"]
                whole += len(line)
            return whole

    def __enter__(self) -> "PartialPredictions":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"{self.path}: another run is writing it; wait for it, or name another output"
            ) from None
        except OSError:  # a file system without locks
            pass
        if not self._whole and self.path.stat().st_size:
            old = self.path.with_name(f"{self.path.stem}.old{self.path.suffix}")
            shutil.copyfile(self.path, old)
            _log.warning(
                "%s: of other settings, data or model; kept as %s, beginning anew", self.path, old
            )
        self._file.truncate(self._whole)  # where it is, what is added goes to the end
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

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the output, whole or not at all, and remove the side files.

        Args:
            rows: what is to be written, in order.
        """
        write_jsonl(self.output, rows)
        for path in self._paths():
            path.unlink()
