"""Files that are whole or absent: written aside and renamed, JSON and JSON lines; locks."""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchtune_speech.errors import InputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place when the block succeeds.

    The block writes a file or makes a folder there. When it raises, what it wrote is removed and
    `path` stays as it was. Missing parent folders are made. A folder replaces nothing but an
    absent or empty one. What was written is on disk before the block is left: a power cut takes
    nothing of it away.

    Args:
        path: Where the file or folder is to be.

    Yields:
        The temporary path; it does not exist yet and has the suffix of `path`.

    Example:
        >>> with atomic_write("runs/projector.safetensors") as temporary:
        ...     save_file(tensors, temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield temporary
        # Otherwise a power cut may leave the new name with none of the new content.
        for written in [*temporary.rglob("*"), temporary]:
            _sync(written)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs from writing to a folder until the block is left, or the process dies.

    On a file system without locks nothing is kept from anything.

    Args:
        path: The folder; made if absent, and removed again if nothing came into it.

    Yields:
        Nothing.

    Raises:
        InputError: If another run writes there.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path}: another run is writing there; wait for it, or choose another output_dir"
            ) from None
        except OSError:  # as of NFS
            pass
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


_locks: set[int] = set()


def _forget_locks() -> None:
    """Closes a forked child's copies: a worker may outlive its parent by seconds."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on disk."""
    if path.is_dir() and os.name == "nt":
        return  # where folders cannot be opened
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


_HALVES = "backslashreplace"  # half a surrogate pair has no UTF-8; as \\ud83d it is JSON


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented UTF-8 JSON, whole or not at all.

    Args:
        path: The file to write.
        value: Anything `json` can write.
    """
    text = json.dumps(value, ensure_ascii=False, indent=2)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors=_HALVES)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Args:
        path: The file to read.

    Returns:
        What the file holds.

    Raises:
        InputError: When the file is not JSON.
    """
    try:
        # "-sig": some editors begin a file with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    return _parse(text, f"{path}")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines in UTF-8, whole or not at all.

    Args:
        path: The file to write.
        rows: The rows, in order; may be a generator.
    """
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors=_HALVES) as file,
    ):
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def iter_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a JSON-lines file with their line numbers; empty lines are skipped.

    Args:
        path: The file to read.

    Yields:
        Pairs of line number, counted from 1, and row.

    Raises:
        InputError: When there is no such file, or a line is not a JSON object, naming the file and
            line.
    """
    try:
        file = open(path, encoding="utf-8-sig", newline="\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    with file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _row(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 ({error.reason}) after line {number}; save the file as UTF-8"
            ) from None


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads all rows of a JSON-lines file; empty lines are skipped.

    Args:
        path: The file to read.

    Returns:
        The rows, in order.

    Raises:
        InputError: When a line is not a JSON object, naming the file and line.
    """
    return [row for _, row in iter_jsonl(path)]


def _row(line: str, where: str) -> dict[str, Any]:
    row = _parse(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}; each line has to be one {{...}}")
    return row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg}: {place}); mend it there") from None
