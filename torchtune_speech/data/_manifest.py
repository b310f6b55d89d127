"""The manifest: what a sample is, and reading it from JSONL, Parquet and Hugging Face data sets."""

import dataclasses
import gc
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtune.utils import get_logger, log_rank_zero

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, write_jsonl

SPEECH_TASKS = frozenset({"asr", "st", "sqa"})
TEXT_TWIN_TASKS = {"st": "mt", "sqa": "qa"}
MAX_DURATION_S = 24 * 3600.0
ROLES = ("system", "user", "assistant")

_COLUMNS = frozenset(
    "id task audio offset duration speed source_lang target_lang source_text question choices "
    "target domain speaker messages".split()
)


@dataclass(frozen=True, slots=True)
class AudioCut:
    """One stretch of one audio file.

    Attributes:
        path: the file, as written in the manifest: absolute, or relative to the manifest's folder.
        offset_s: where the stretch begins, in seconds of the recording.
        duration_s: its length in seconds of the recording (before any change of speed); ``None``
            means to the end of the file.
        speed: speed perturbation factor; 1.0 is as recorded, 1.1 plays faster and is shorter.
    """

    path: str
    offset_s: float = 0.0
    duration_s: float | None = None
    speed: float = 1.0

    @property
    def key(self) -> str:
        """Name of this stretch in a feature store.

        A whole file is its path; a cut adds ``@offset+duration`` in seconds to the millisecond, a
        changed speed ``~factor``: ``a.flac``, ``talk.wav@12.500+7.250``, ``talk.wav@12.500`` (to
        the end), ``a.flac~0.9``.
        """
        key = self.path
        if self.duration_s is not None:
            key += f"@{self.offset_s:.3f}+{self.duration_s:.3f}"
        elif self.offset_s:
            key += f"@{self.offset_s:.3f}"
        return key if self.speed == 1.0 else f"{key}~{self.speed:g}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One checked row of a manifest.

    Attributes:
        id: name of the row, unique in its manifest.
        task: asr, st, sqa, mt, qa, or any other name that the prompt templates know.
        target: the answer to be learnt; empty only where references are not required.
        audio: the stretches of audio, in the order in which the prompt takes them.
        source_lang: language of the audio or of ``source_text``.
        target_lang: language of the answer.
        source_text: transcript of the audio, or the text that stands in its place.
        question: question of sqa and qa rows.
        choices: options of a multiple-choice question.
        domain: corpus; a source of its own in weighted mixtures and in the scores.
        speaker: who speaks.
        messages: turns of a multi-turn sample, ``{"role": ..., "content": ...}``; ``{speech}`` in a
            content stands for the next audio.
        extra: columns of the row that are not in this list.
    """

    id: str
    task: str
    target: str
    audio: tuple[AudioCut, ...] = ()
    source_lang: str = "en"
    target_lang: str = "en"
    source_text: str | None = None
    question: str | None = None
    choices: tuple[str, ...] = ()
    domain: str = ""
    speaker: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transcript(self) -> str | None:
        """What is said in the audio, as far as the row tells: for asr the target says it."""
        return self.source_text or (self.target if self.task == "asr" else None)

    @property
    def is_speech(self) -> bool:
        """Whether the sample has audio."""
        return bool(self.audio)


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


class _Fault(Exception):
    """Why a row is refused: the kind of fault, what is wrong, what to do."""

    def __init__(self, reason: str, what: str, cure: str) -> None:
        super().__init__(reason)
        self.reason, self.what, self.cure = reason, what, cure


def load_manifest(
    path: str | os.PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    on_bad_sample: str = "fail",
    where: Mapping[str, Any] | None = None,
    bad: list[BadRow] | None = None,
    check_audio: bool = True,
    require_target: bool = True,
) -> list[Sample]:
    """Read and check a manifest.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file, or a folder written by ``Dataset.save_to_disk``.
        tasks: keep the rows of these tasks. Default: all.
        on_bad_sample: "fail" raises at the first bad row, "skip" leaves bad rows out and logs how
            many for which reason. Rows that a filter removes are not checked.
        where: keep the rows whose column has this value or one of these values,
            ``{"split": "train"}``. Values are compared as text.
        bad: a list that receives the skipped rows.
        check_audio: whether every audio file must exist.
        require_target: whether every row must have a target; without it, a missing one is "".

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: for a file that cannot be read, for a bad row, and when no row is left.

    Example:
        >>> samples = load_manifest("data/train.jsonl", tasks=["asr"], where={"split": "train"})
    """
    return _collect(
        _read_rows(Path(path)),
        str(path),
        _Checker(_folder_of(path), check_audio, require_target),
        tasks=tasks,
        on_bad_sample=on_bad_sample,
        where=where,
        bad=bad,
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
        _Checker(_folder_of(origin), check_audio, require_target),
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


def text_twin(sample: Sample) -> Sample | None:
    """Turn a speech sample into the text sample that asks for the same answer.

    Args:
        sample: any sample.

    Returns:
        st as mt and sqa as qa, with the same id and without audio; ``None`` for other tasks, for
        samples without ``source_text`` and for multi-turn samples.
    """
    task = TEXT_TWIN_TASKS.get(sample.task)
    if task is None or not sample.source_text or sample.messages:
        return None
    return dataclasses.replace(sample, task=task, audio=())


def data_fingerprint(samples: Sequence[Sample]) -> str:
    """Digest of everything in the samples that training sees, and of their order.

    Args:
        samples: the samples of a manifest.

    Returns:
        SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for s in samples:
        fields = (
            s.id, s.task, s.target, [cut.key for cut in s.audio], s.source_lang, s.target_lang,
            s.source_text, s.question, s.choices, s.domain, s.extra.get("instruction"),
            [(m["role"], m["content"]) for m in s.messages],
        )  # fmt: skip
        digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """Write a sample as the manifest row that reads back as the same sample.

    Args:
        sample: any sample.

    Returns:
        Columns that are not at their default, ``extra`` last.
    """
    row: dict[str, Any] = {"id": sample.id, "task": sample.task}
    cuts = sample.audio
    if len(cuts) == 1:
        row["audio"] = cuts[0].path
    elif cuts:
        row["audio"] = [cut.path for cut in cuts]
    for column, name, default in (
        ("offset", "offset_s", 0.0),
        ("duration", "duration_s", None),
        ("speed", "speed", 1.0),
    ):
        values = [getattr(cut, name) for cut in cuts]
        if any(value != default for value in values):
            row[column] = values[0] if len(cuts) == 1 else values
    row |= {"source_lang": sample.source_lang, "target_lang": sample.target_lang}
    for column in ("source_text", "question", "choices", "target", "domain", "speaker", "messages"):
        value = getattr(sample, column)
        if value:
            row[column] = list(value) if isinstance(value, tuple) else value
    return row | dict(sample.extra)


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


def _read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line or row from 1, row or the fault that kept it from being read)."""
    if path.is_dir():
        return enumerate(_plain(_open_saved_dataset(path)), start=1)
    if not path.exists():
        raise InputError(f"{path}: manifest not found; check the path, or make the manifest first")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _read_jsonl(path)
    raise InputError(
        f"{path}: unknown kind of manifest {path.suffix!r}; give a .jsonl or .parquet file, or a "
        "folder saved with datasets.Dataset.save_to_disk"
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
                yield number, _Fault("not valid JSON", what, "write one JSON object a line")


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
    check: "_Checker",
    *,
    tasks: Iterable[str] | None,
    on_bad_sample: str,
    where: Mapping[str, Any] | None,
    bad: list[BadRow] | None,
) -> list[Sample]:
    if on_bad_sample not in ("fail", "skip"):
        raise InputError(f'on_bad_sample: {on_bad_sample!r} is unknown; use "fail" or "skip"')
    filters = _Filters(tasks, where)
    samples: list[Sample] = []
    skipped: list[BadRow] = []
    seen: dict[str, int] = {}
    with _gc_paused():
        for line, row in rows:
            try:
                if isinstance(row, _Fault):
                    raise row
                if not filters.keep(row):
                    continue
                sample = check(row)
                if sample.id in seen:
                    what = f"id {sample.id!r} was already used in line {seen[sample.id]}"
                    raise _Fault("duplicate id", what, "give each row an id of its own")
            except _Fault as fault:
                message = f"{origin}:{line}: {fault.what}; {fault.cure}"
                if on_bad_sample == "fail":
                    raise InputError(f"{message}, or set on_bad_sample=skip") from None
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
                continue  # a row without a task is refused, unless it needs none
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


class _Checker:
    """Turns a row into a Sample or raises _Fault; remembers which audio files exist."""

    def __init__(self, folder: str, check_audio: bool, require_target: bool) -> None:
        self.folder = folder
        self.check_audio = check_audio
        self.require_target = require_target
        self.exists: dict[str, bool] = {}

    def __call__(self, row: Any) -> Sample:
        if not isinstance(row, Mapping):
            what = f"the row is {type(row).__name__}, not an object"
            raise _Fault("not an object", what, "write one JSON object a line")
        sample_id = _text(row, "id", "give each row an id of its own")
        extra = {k: v for k, v in row.items() if k not in _COLUMNS and v is not None}
        _text(extra, "instruction", default="")
        messages = _messages(row)
        audio = _audio(row)
        task = _text(
            row,
            "task",
            "name the task: asr, st, sqa, mt, qa, or one of your own templates",
            default="instruct" if messages or "instruction" in extra else None,
        )
        _check_task(task, audio, messages)
        self._check_files(audio)
        return Sample(
            id=sample_id,
            task=task,
            target=self._target(row, messages),
            audio=audio,
            source_lang=_text(row, "source_lang", default="en"),
            target_lang=_text(row, "target_lang", default="en"),
            source_text=_text(row, "source_text", default="") or None,
            question=_text(row, "question", default="") or None,
            choices=_choices(row),
            domain=_text(row, "domain", default=""),
            speaker=_text(row, "speaker", default=""),
            messages=messages,
            extra=extra,
        )

    def _target(self, row: Mapping[str, Any], messages: tuple[Mapping[str, Any], ...]) -> str:
        final = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
        target = _text(row, "target", default=final)
        if not target.strip():
            if self.require_target:
                cure = "write the expected answer, or remove the row"
                raise _Fault("empty target", "field 'target' is missing or empty", cure)
            return ""
        if final and target != final:
            what = "field 'target' differs from the last assistant turn of 'messages'"
            raise _Fault("two targets", what, "leave one of them out")
        return target

    def _check_files(self, audio: tuple[AudioCut, ...]) -> None:
        if not self.check_audio:
            return
        for cut in audio:
            known = self.exists.get(cut.path)
            if known is None:
                known = os.path.isfile(os.path.join(self.folder, cut.path))
                self.exists[cut.path] = known
            if not known:
                what = f"audio file {cut.path!r} not found in {self.folder or '.'!r}"
                cure = "write paths relative to the manifest's folder, or absolute"
                raise _Fault("missing audio file", what, cure)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _check_encodable(text: str, name: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            what = f"field {name!r} holds half of a surrogate pair"
            raise _Fault("broken text", what, "write the text as valid Unicode") from None


def _text(row: Mapping[str, Any], name: str, cure: str = "", default: str | None = None) -> str:
    """Read a text field; without a default it must be there and not be blank."""
    value = row.get(name)
    if value is None:
        if default is not None:
            return default
        raise _Fault(f"missing {name}", f"field {name!r} is missing", cure)
    if not isinstance(value, str):
        what = f"field {name!r} is {_kind(value)}, not a string"
        raise _Fault(f"wrong type of {name}", what, "write it as a string")
    if default is None and not value.strip():
        raise _Fault(f"missing {name}", f"field {name!r} is empty", cure)
    _check_encodable(value, name)
    return value


def _list(value: Any) -> list[Any] | None:
    return list(value) if isinstance(value, (list, tuple)) else None


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("choices")
    if value is None:
        return ()
    choices = _list(value)
    if choices is None or not all(isinstance(c, str) and c.strip() for c in choices):
        what = "field 'choices' is not a list of non-empty strings"
        raise _Fault("wrong type of choices", what, "write it as a list of strings")
    for choice in choices:
        _check_encodable(choice, "choices")
    return tuple(choices)


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    value = row.get("messages")
    if value is None:
        return ()
    messages = _list(value)
    fault = "wrong type of messages"
    if messages is None or not all(isinstance(m, Mapping) for m in messages):
        cure = 'write [{"role": "user", "content": "..."}, ...]'
        raise _Fault(fault, "field 'messages' is not a list of objects", cure)
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            what = f"field 'messages', turn {number}: unknown role {role!r}"
            raise _Fault(fault, what, f"use one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            what = f"field 'messages', turn {number}: 'content' is not a non-empty string"
            raise _Fault(fault, what, "write the text of the turn")
        _check_encodable(content, "messages")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _check_task(
    task: str, audio: tuple[AudioCut, ...], messages: tuple[Mapping[str, Any], ...]
) -> None:
    if audio and task in TEXT_TWIN_TASKS.values():
        speech = next(name for name, twin in TEXT_TWIN_TASKS.items() if twin == task)
        what = f"task {task!r} is a text task but the row has 'audio'"
        raise _Fault("audio in a text task", what, f"use task {speech!r}, or leave the audio out")
    if task in SPEECH_TASKS and not audio:
        what = f"task {task!r} needs 'audio', which is missing"
        twin = TEXT_TWIN_TASKS.get(task)
        cure = f"add the audio file, or use task {twin!r}" if twin else "add the audio file"
        raise _Fault("missing audio", what, cure)
    # What the assistant says is text to be learnt, whatever it looks like.
    marks = sum(m["content"].count("{speech}") for m in messages if m["role"] != "assistant")
    if messages and marks != len(audio):
        what = f"'messages' has {marks} {{speech}} marks but 'audio' has {len(audio)} files"
        raise _Fault("speech marks", what, "write one {speech} for each audio, in order")


def _audio(row: Mapping[str, Any]) -> tuple[AudioCut, ...]:
    value = row.get("audio")
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        paths = [_audio_path(item) for item in value]
        offsets, durations, speeds = (
            _per_audio(row, name, len(paths)) for name in ("offset", "duration", "speed")
        )
        return tuple(map(_cut, paths, offsets, durations, speeds))
    cut = _cut(_audio_path(value), row.get("offset"), row.get("duration"), row.get("speed"))
    return (cut,)


def _audio_path(value: Any) -> str:
    if isinstance(value, Mapping):  # a Hugging Face audio column, not decoded
        if value.get("bytes") is not None and not os.path.isabs(str(value.get("path") or "")):
            what = "field 'audio' holds the sound itself, not a path"
            raise _Fault("audio in the table", what, "save the audio as files and give their paths")
        value = value.get("path")
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        what = f"field 'audio' is {_kind(value)}, not the path of a file"
        raise _Fault("wrong type of audio", what, "write a path or a list of paths")
    _check_encodable(value, "audio")
    return value


def _per_audio(row: Mapping[str, Any], name: str, count: int) -> list[Any]:
    value = row.get(name)
    if value is None:
        return [None] * count
    values = _list(value)
    if values is None and count == 1:
        return [value]
    if values is None or len(values) != count:
        what = f"field {name!r} is not a list of {count} numbers like 'audio'"
        raise _Fault(f"wrong type of {name}", what, f"write one {name} for each audio file")
    return values


def _cut(path: str, offset: Any, duration: Any, speed: Any) -> AudioCut:
    if offset is None:
        offset = 0.0
    elif not _is_number(offset) or not 0 <= offset <= MAX_DURATION_S:
        what = f"field 'offset' is {_short(offset)}, not seconds from 0 to {MAX_DURATION_S:g}"
        raise _Fault("bad offset", what, "write the start of the cut in seconds, or leave it out")
    if duration is not None:
        # At least 1 ms: keys are to the millisecond.
        if not _is_number(duration) or not 0.001 <= duration <= MAX_DURATION_S:
            what = f"field 'duration' is {_short(duration)}, not seconds up to {MAX_DURATION_S:g}"
            cure = "write the length of the cut in seconds, or leave it out for the whole file"
            raise _Fault("bad duration", what, cure)
        duration = float(duration)
    if speed is None:
        speed = 1.0
    elif not _is_number(speed) or not 0.25 <= speed <= 4:
        what = f"field 'speed' is {_short(speed)}, not a factor from 0.25 to 4"
        raise _Fault("bad speed", what, "write a factor such as 0.9, or leave it out")
    return AudioCut(path, float(offset), duration, float(speed))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
