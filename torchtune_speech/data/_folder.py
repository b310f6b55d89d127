"""A manifest from a folder of audio files with their transcripts beside them."""

import csv
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
from torchtune.utils import get_logger, log_rank_zero
from tqdm import tqdm

from torchtune_speech.data._manifest import relative_audio_path, write_manifest
from torchtune_speech.errors import InputError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus"})
_TABLES = ("transcripts.tsv", "transcripts.csv")


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What :func:`manifest_from_folder` found.

    Attributes:
        rows: rows of the manifest by task.
        hours: hours of audio in it.
        no_transcript: audio files without a transcript, from the folder.
        no_audio: transcripts whose audio file is missing.
        unreadable: audio files that cannot be opened or are empty.
    """

    rows: dict[str, int]
    hours: float
    no_transcript: list[str]
    no_audio: list[str]
    unreadable: list[str]


@dataclass(slots=True)
class _Transcript:
    text: str
    origin: str
    speaker: str = ""
    translations: dict[str, str] = field(default_factory=dict)


def manifest_from_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    source_lang: str = "en",
    *,
    target_langs: Sequence[str] = ("de", "it", "zh"),
    domain: str | None = None,
    dev_fraction: float = 0.0,
) -> FolderReport:
    """Write the manifest of a folder of audio files with transcripts, and translations if any.

    Transcripts may be (mixed as you like, in sub-folders too)

    - ``name.txt`` beside ``name.wav``, a translation as ``name.de.txt``;
    - a table ``transcripts.tsv`` or ``transcripts.csv`` with a header: ``file`` (from the table's
      folder, with or without its ending), ``text``, and if you have them ``speaker`` and one
      column a target language (``de``, ...);
    - ``*.trans.txt`` as in LibriSpeech: lines of a file name without its ending and its text.

    Every transcribed file gives an asr row, every translation an st row. What lacks a transcript
    or audio is left out and logged.

    Args:
        folder: the folder with the audio: wav, flac, mp3, ogg, opus.
        out: the manifest to write, ``.jsonl`` or ``.parquet``; its audio paths are relative to its
            own folder.
        source_lang: language spoken.
        target_langs: languages that translations are looked for in.
        domain: name of the corpus. Default: the folder's name.
        dev_fraction: share of the speakers (of the files, where speakers are unknown) whose rows
            get ``split: dev``; the others get ``split: train``. Default: no ``split`` column.

    Returns:
        What was written and what was left out.

    Raises:
        InputError: when there is no audio, no transcript, or two transcripts that differ.

    Example:
        >>> report = manifest_from_folder("my_corpus", "my_corpus.jsonl", dev_fraction=0.1)
        >>> train = load_manifest("my_corpus.jsonl", where={"split": "train"})
    """
    root, out = Path(folder), Path(out)
    if not 0 <= dev_fraction < 1:
        raise InputError(f"dev_fraction: {dev_fraction} is not from 0 to below 1; try 0.1")
    audio = _find_audio(root)
    transcripts, no_audio = _find_transcripts(root, audio, list(target_langs))
    if not transcripts:
        raise InputError(
            f"{root}: {len(audio)} audio files but no transcript; write name.txt beside name.wav, "
            "or a transcripts.tsv with the columns file and text"
        )
    domain = root.resolve().name if domain is None else domain
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    seconds = 0.0
    for name in tqdm(sorted(transcripts), desc="audio headers", unit="file", leave=False):
        try:
            info = soundfile.info(str(root / audio[name]))
            duration_s = info.frames / info.samplerate
        except (soundfile.SoundFileError, OSError, ZeroDivisionError):
            duration_s = 0.0
        if duration_s < 0.001:
            unreadable.append(audio[name])
            continue
        seconds += duration_s
        path = relative_audio_path(out, root / audio[name])
        common = {"audio": path, "duration": round(duration_s, 6), "domain": domain}
        rows += _rows(name, transcripts[name], common, source_lang)
    if not rows:
        raise InputError(
            f"{root}: none of the {len(unreadable)} transcribed audio files can be read; convert "
            "them to wav or flac"
        )
    if dev_fraction:
        _split(rows, dev_fraction)
    write_manifest(out, rows)
    counts = {task: sum(row["task"] == task for row in rows) for task in ("asr", "st")}
    missing = [path for name, path in audio.items() if name not in transcripts]
    report = FolderReport(counts, seconds / 3600, missing, no_audio, unreadable)
    _log(out, report)
    return report


def _rows(
    name: str, transcript: _Transcript, common: dict[str, Any], source_lang: str
) -> Iterator[dict[str, Any]]:
    if transcript.speaker:
        common = common | {"speaker": transcript.speaker}
    base = {"source_lang": source_lang, "target_lang": source_lang, "target": transcript.text}
    yield {"id": name, "task": "asr", **common, **base}
    for language, translation in transcript.translations.items():
        if language == source_lang:
            continue
        changes = {"target_lang": language, "target": translation, "source_text": transcript.text}
        yield {"id": f"{name}-{language}", "task": "st", **common, **(base | changes)}


def _split(rows: list[dict[str, Any]], dev_fraction: float) -> None:
    """Divide by speaker, so that dev measures strangers; the same folder divides the same way."""
    group_of = [row.get("speaker") or row["audio"] for row in rows]
    groups = sorted(set(group_of), key=lambda group: (zlib.crc32(group.encode()), group))
    dev = set(groups[: math.ceil(dev_fraction * len(groups))])
    for row, group in zip(rows, group_of, strict=True):
        row["split"] = "dev" if group in dev else "train"


def _log(out: Path, report: FolderReport) -> None:
    log = get_logger("INFO")
    counts = ", ".join(f"{n} {task} rows" for task, n in report.rows.items() if n)
    log_rank_zero(log, f"{out}: {counts}, {report.hours:.2f} hours of audio")
    for what, names in (
        ("audio files without a transcript", report.no_transcript),
        ("transcripts without audio", report.no_audio),
        ("audio files that cannot be read", report.unreadable),
    ):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            log_rank_zero(log, f"left out: {len(names)} {what}: {shown}")


# ---- what is in the folder ----------------------------------------------------------------------


def _find_audio(root: Path) -> dict[str, str]:
    """Map path without ending -> path, both from the root with forward slashes."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the audio files")
    audio: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        relative = path.relative_to(root)
        name = relative.with_suffix("").as_posix()
        if name in audio:
            raise InputError(
                f"{root}: {audio[name]} and {relative.as_posix()} differ only in their ending; "
                "keep one of them"
            )
        audio[name] = relative.as_posix()
    if not audio:
        endings = ", ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(f"{root}: no audio files; give a folder with {endings} files")
    return audio


def _find_transcripts(
    root: Path, audio: dict[str, str], target_langs: list[str]
) -> tuple[dict[str, _Transcript], list[str]]:
    found: dict[str, _Transcript] = {}
    no_audio: list[str] = []
    sources = [*_from_text_files(root, audio, target_langs)]
    for path in sorted(root.rglob("*.trans.txt")):
        sources += _from_trans(root, path)
    for path in sorted(p for table in _TABLES for p in root.rglob(table)):
        sources += _from_table(root, path, target_langs)
    for name, transcript in sources:
        if not transcript.text:
            continue
        if name not in audio:
            no_audio.append(f"{name} ({transcript.origin})")
            continue
        known = found.get(name)
        if known is not None and known.text != transcript.text:
            raise InputError(
                f"{root / audio[name]}: {known.origin} and {transcript.origin} give it different "
                "transcripts; keep one of them"
            )
        if known is not None:
            transcript.translations = known.translations | transcript.translations
            transcript.speaker = transcript.speaker or known.speaker
        found[name] = transcript
    return found, no_audio


def _from_text_files(
    root: Path, audio: dict[str, str], target_langs: list[str]
) -> Iterator[tuple[str, _Transcript]]:
    for name in audio:
        path = root / f"{name}.txt"
        if not path.is_file():
            continue
        translations = {}
        for language in target_langs:
            translated = root / f"{name}.{language}.txt"
            if translated.is_file() and (text := _clean(_read(translated))):
                translations[language] = text
        yield name, _Transcript(_clean(_read(path)), str(path), translations=translations)


def _from_trans(root: Path, path: Path) -> Iterator[tuple[str, _Transcript]]:
    for line in _read(path).split("\n"):  # splitlines() would also cut at U+2028 and the like
        stem, _, text = line.strip().partition(" ")
        if stem:
            yield _name(root, path, stem), _Transcript(_clean(text), str(path))


def _from_table(
    root: Path, path: Path, target_langs: list[str]
) -> Iterator[tuple[str, _Transcript]]:
    # Tabs never need quotes, and transcripts do hold stray ones.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), **style)
    columns = reader.fieldnames or []
    for column in ("file", "text"):
        if column not in columns:
            raise InputError(
                f"{path}:1: no column {column!r} among {', '.join(columns)!r}; write a header line "
                "with file and text"
            )
    try:
        for row in reader:
            origin = f"{path}:{reader.line_num}"
            file = (row["file"] or "").strip()
            if not file:
                raise InputError(f"{origin}: field 'file' is empty; name the audio file")
            name = _name(root, path, file)
            ending = os.path.splitext(name)[1]
            if ending.lower() in AUDIO_SUFFIXES:
                name = name.removesuffix(ending)
            texts = {language: _clean(row.get(language)) for language in target_langs}
            translations = {language: text for language, text in texts.items() if text}
            speaker = _clean(row.get("speaker"))
            yield name, _Transcript(_clean(row["text"]), origin, speaker, translations)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; correct the line") from None


def _name(root: Path, origin: Path, file: str) -> str:
    """Path from the root of a file that is named from the folder of its transcripts."""
    return Path(os.path.relpath(origin.parent / file, root)).as_posix()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None


def _clean(text: str | None) -> str:
    return " ".join((text or "").split())
