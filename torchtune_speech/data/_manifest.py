"""Manifests: reading from JSONL, Parquet, official XML and Hugging Face data sets; writing."""

import gc
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune.utils import get_logger, log_rank_zero

from torchtune_speech.data._mcif import mcif_source_rows
from torchtune_speech.data._mcif_task import mcif_question, mcif_task
from torchtune_speech.data._row import Fault, RowChecker
from torchtune_speech.data._sample import AudioCut, Sample, sample_to_row
from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, write_jsonl


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was skipped.

    Attributes:
        line: line of the JSONL file, or row of the table, counted from 1.
        reason: kind of fault, the same words for all rows with this fault ("duplicate id").
        message: what exactly is wrong, with file and line.
    """

    line: int
    reason: str
    message: str


def load_manifest(
    path: str | os.PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    on_bad_sample: str = "fail",
    where: Mapping[str, Any] | None = None,
    bad: list[BadRow] | None = None,
    check_audio: bool = True,
    require_target: bool = True,
    skip_key: str = "on_bad_sample",
) -> list[Sample]:
    """Read and check a manifest.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file, a folder written by ``Dataset.save_to_disk``, or
            an official source file of the Instruction-following task, ``.xml``: its rows have the
            task that their instruction tells (else "instruct") and no target. When it holds
            several tracks or languages, ``where`` names one by ``track`` and ``target_lang``.
        tasks: keep the rows of these tasks. Default: all.
        on_bad_sample: "fail" raises at the first bad row, "skip" leaves bad rows out and logs how
            many for which reason. Rows that a filter removes are not checked.
        where: keep the rows whose column has this value or one of these values,
            ``{"split": "train"}``. Values are compared as text.
        bad: a list that receives the skipped rows.
        check_audio: whether every audio file must exist.
        require_target: whether every row must have a target; without it, a missing one is "".
        skip_key: the config key of ``on_bad_sample``, for messages.

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: for a file that cannot be read, for a bad row, and when no row is left.

    Example:
        >>> samples = load_manifest("data/train.jsonl", tasks=["asr"], where={"split": "train"})
    """
    return _collect(
        _read_rows(Path(path), where),
        str(path),
        RowChecker(_folder_of(path), check_audio, require_target),
        tasks=tasks,
        on_bad_sample=on_bad_sample,
        where=where,
        bad=bad,
        skip_key=skip_key,
    )


def samples_from_rows(
    rows: Iterable[Mapping[str, Any]],
    origin: str | os.PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    on_bad_sample: str = "fail",
    where: Mapping[str, Any] | None = None,
    bad: list[BadRow] | None = None,
    check_audio: bool = True,
    require_target: bool = True,
) -> list[Sample]:
    """Check rows that are in memory: dicts, or a ``datasets.Dataset``.

    Args:
        rows: mappings with the columns of a manifest.
        origin: file or folder that the rows come from: it stands in error messages, and relative
            audio paths start at its folder (at itself when it is a folder).
        tasks: as in :func:`load_manifest`, like all that follow.
        on_bad_sample: "fail" or "skip".
        where: keep the rows whose column has this value or one of these values.
        bad: a list that receives the skipped rows.
        check_audio: whether every audio file must exist.
        require_target: whether every row must have a target.

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: for a bad row, and when no row is left.
    """
    return _collect(
        enumerate(_plain(rows), start=1),
        str(origin),
        RowChecker(_folder_of(origin), check_audio, require_target),
        tasks=tasks,
        on_bad_sample=on_bad_sample,
        where=where,
        bad=bad,
    )


def resolve_audio(manifest_path: str | os.PathLike[str], cut: AudioCut) -> Path:
    """Path of a cut's file: absolute as it is, relative from the manifest's folder.

    Args:
        manifest_path: the manifest that the cut comes from, a file or a data set folder.
        cut: the stretch of audio.

    Returns:
        The path of the audio file.
    """
    return Path(_folder_of(manifest_path), cut.path)


def relative_audio_path(
    manifest_path: str | os.PathLike[str], audio_path: str | os.PathLike[str]
) -> str:
    """Path to write into a manifest for an audio file; :func:`resolve_audio` gives the file back.

    Args:
        manifest_path: the manifest, which need not exist yet.
        audio_path: the audio file.

    Returns:
        The path from the manifest's folder, with forward slashes.
    """
    # Real folders, since ".." leads out of where a linked folder is; but the file's own name,
    # since links to stores of blobs end in names without meaning.
    folder, name = os.path.split(audio_path)
    manifest_folder = os.path.dirname(os.path.abspath(manifest_path))
    relative = os.path.relpath(os.path.realpath(folder), os.path.realpath(manifest_folder))
    return Path(relative, name).as_posix()


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Sample | Mapping[str, Any]]) -> int:
    """Write rows as JSONL or, when the name ends in ``.parquet``, as Parquet.

    Args:
        path: the file; it appears when it is whole. Its folder is made if need be.
        rows: samples, or mappings with the columns of a manifest. Nothing is checked.

    Returns:
        The number of rows.
    """
    dicts = [sample_to_row(row) if isinstance(row, Sample) else dict(row) for row in rows]
    if Path(path).suffix != ".parquet":
        write_jsonl(path, dicts)
        return len(dicts)
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Columns of all rows in order of appearance: from_pylist looks at the first row only.
    columns = dict.fromkeys(column for row in dicts for column in row)
    table = {column: [row.get(column) for row in dicts] for column in columns}
    with atomic_write(path) as partial:
        pq.write_table(pa.table(table), partial)
    return len(dicts)


# ---- reading ------------------------------------------------------------------------------------


def _folder_of(origin: str | os.PathLike[str]) -> str:
    origin = os.fspath(origin)
    return origin if os.path.isdir(origin) else os.path.dirname(origin)


def _read_rows(path: Path, where: Mapping[str, Any] | None) -> Iterator[tuple[int, Any]]:
    """Yield (line or row from 1, row or the fault that kept it from being read)."""
    if path.is_dir():
        return enumerate(_plain(_open_saved_dataset(path)), start=1)
    if not path.exists():
        raise InputError(f"{path}: manifest not found; check the path, or make the manifest first")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _read_jsonl(path)
    if path.suffix == ".xml":
        return _read_mcif(path, where or {})
    raise InputError(
        f"{path}: unknown kind of manifest {path.suffix!r}; give a .jsonl, .parquet or MCIF .xml "
        "file, or a folder saved with datasets.Dataset.save_to_disk"
    )


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"not valid JSON ({str(error).splitlines()[0]})"
                yield number, Fault("not valid JSON", what, "write one JSON object a line")


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not readable as Parquet ({reason}); write it again") from error


def _read_mcif(path: Path, where: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    named = [where.get(column) for column in ("track", "target_lang")]
    track, lang = (value if isinstance(value, str) else None for value in named)
    for number, row in mcif_source_rows(path, track, lang):
        if not isinstance(row, Fault):
            instruction = row["instruction"]
            task, _ = mcif_task(instruction) or ("instruct", None)
            row = row | {"task": task, "question": mcif_question(instruction)}
        yield number, row


def _open_saved_dataset(path: Path) -> Iterable[Mapping[str, Any]]:
    from datasets import Dataset, load_from_disk

    cure = "give a .jsonl or .parquet file, or a folder saved with datasets.Dataset.save_to_disk"
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # whatever is wrong inside, the user's folder is not a data set
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a saved data set ({what}); {cure}") from error
    if not isinstance(dataset, Dataset):
        splits = ", ".join(str(path / name) for name in dataset)
        raise InputError(f"{path}: holds several splits; give the folder of one: {splits}")
    return dataset


def _plain(rows: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield the rows of a Hugging Face data set by Arrow batches: fast, and audio stays paths."""
    if not hasattr(rows, "with_format"):
        yield from rows
        return
    for table in rows.with_format("arrow").iter(1000):
        yield from table.to_pylist()


# ---- filtering and collecting -------------------------------------------------------------------


def _collect(
    rows: Iterable[tuple[int, Any]],
    origin: str,
    check: "RowChecker",
    *,
    tasks: Iterable[str] | None,
    on_bad_sample: str,
    where: Mapping[str, Any] | None,
    bad: list[BadRow] | None,
    skip_key: str = "on_bad_sample",
) -> list[Sample]:
    if on_bad_sample not in ("fail", "skip"):
        raise InputError(f'{skip_key}: {on_bad_sample!r} is unknown; use "fail" or "skip"')
    filters = _Filters(tasks, where)
    samples: list[Sample] = []
    skipped: list[BadRow] = []
    seen: dict[str, int] = {}
    with _gc_paused():
        for line, row in rows:
            try:
                if isinstance(row, Fault):
                    raise row
                if not filters.keep(row):
                    continue
                sample = check(row)
                if sample.id in seen:
                    what = f"id {sample.id!r} was already used in line {seen[sample.id]}"
                    raise Fault("duplicate id", what, "give each row an id of its own")
            except Fault as fault:
                message = f"{origin}:{line}: {fault.what}; {fault.cure}"
                if on_bad_sample == "fail":
                    raise InputError(f"{message}, or set {skip_key}=skip") from None
                skipped.append(BadRow(line, fault.reason, message))
                continue
            seen[sample.id] = line
            samples.append(sample)
    if bad is not None:
        bad.extend(skipped)
    if skipped:
        _log_skipped(origin, skipped, len(samples))
    if not samples:
        raise InputError(f"{origin}: {filters.why_empty(len(skipped))}")
    return samples


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause the cycle collector: walking a million new objects again and again doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _log_skipped(origin: str, skipped: list[BadRow], kept: int) -> None:
    counts = Counter(row.reason for row in skipped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    message = (
        f"{origin}: skipped {len(skipped)} of {kept + len(skipped)} rows: {reasons}. "
        f"First: {skipped[0].message}"
    )
    log_rank_zero(get_logger("INFO"), message, level=logging.WARNING)


class _Filters:
    """Row filters in a fixed order (tasks, then each ``where``), counting what reaches each."""

    def __init__(self, tasks: Iterable[str] | None, where: Mapping[str, Any] | None) -> None:
        self.filters: list[tuple[str, str, set[str]]] = []
        if tasks is not None:
            self.filters.append(("tasks", "task", _as_set(tasks)))
        for column, values in (where or {}).items():
            self.filters.append((f"where.{column}", column, _as_set(values)))
        self.total = 0
        self.reached = [Counter[str]() for _ in self.filters]

    def keep(self, row: Any) -> bool:
        self.total += 1
        if not isinstance(row, Mapping):
            return True  # not filtered but refused
        for (name, column, wanted), reached in zip(self.filters, self.reached, strict=True):
            value = row.get(column)
            if value is None and name == "tasks":
                if not (row.get("instruction") or row.get("messages")):
                    continue  # a row without a task is refused, unless it needs none
                value = "instruct"
            reached["(absent)" if value is None else str(value)] += 1
            if value is None or str(value) not in wanted:
                return False
        return True

    def why_empty(self, skipped: int) -> str:
        if self.total + skipped == 0:
            return "the manifest has no rows; write some, or check the path"
        for (name, _, wanted), reached in zip(self.filters, self.reached, strict=True):
            if reached and not wanted & reached.keys():
                found = ", ".join(f"{value} ({n})" for value, n in reached.most_common(8))
                return (
                    f"no row left, filter {name}={sorted(wanted)} removed all {reached.total()}; "
                    f"choose from the values that are there: {found}"
                )
        return f"no row left, all {skipped} were bad; see the reasons above and mend the manifest"


def _as_set(values: Any) -> set[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        return {str(values)}
    return {str(value) for value in values}


# ---- checking one row ---------------------------------------------------------------------------
