"""AN4: 948 short utterances of 74 people, recorded at Carnegie Mellon University in 1991."""

import os
from pathlib import Path
from typing import Any

from torchtune_speech.data import relative_audio_path, write_manifest
from torchtune_speech.errors import InputError
from torchtune_speech.files import iter_jsonl

_SPLITS = ("train", "dev")
_FIELDS = ("id", "audio", "text", "speaker", "split")


def an4_manifests(
    source_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]
) -> dict[str, Path]:
    """Write asr manifests of AN4: names, addresses, numbers, spelled words, commands.

    Targets are in lower case, spelled words as single letters: ``T V A H FIFTY TWO`` becomes
    ``t v a h fifty two``. Rows are whole files: the source's durations are rounded to 0.1 s and
    would cut words short.

    Args:
        source_dir: folder with ``manifest.jsonl``, one object a line with ``id``, ``audio`` (from
            this folder), ``text``, ``speaker``, ``split`` (train or dev: other speakers) and
            ``source``; rows whose source is not ``an4`` are left alone.
        out_dir: folder for ``train.jsonl`` and ``dev.jsonl``; audio paths are relative to it.

    Returns:
        The paths of the two manifests, by split.

    Raises:
        InputError: when the folder, a field or an audio file is missing.

    Example:
        >>> paths = an4_manifests("data/speech", "runs/an4/manifests")
        >>> samples = load_manifest(paths["train"])
    """
    source = Path(source_dir) / "manifest.jsonl"
    if not source.is_file():
        raise InputError(
            f"{source}: not found; give the folder that holds AN4's manifest.jsonl and audio "
            "(another corpus: make its manifest with manifest_from_folder)"
        )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
    for line, row in iter_jsonl(source):
        if row.get("source") == "an4":
            converted = _convert(row, f"{source}:{line}", Path(source_dir), Path(out_dir))
            rows[converted["split"]].append(converted)
    for split in _SPLITS:
        if not rows[split]:
            raise InputError(f"{source}: no an4 rows with split {split!r}; get a complete copy")
    paths = {split: Path(out_dir) / f"{split}.jsonl" for split in _SPLITS}
    for split, path in paths.items():
        write_manifest(path, rows[split])
    return paths


def _convert(row: dict[str, Any], where: str, source_dir: Path, out_dir: Path) -> dict[str, Any]:
    for name in _FIELDS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f"{where}: field {name!r} is not a text; get an undamaged copy")
    if row["split"] not in _SPLITS:
        raise InputError(f"{where}: unknown split {row['split']!r}; use train or dev")
    audio = source_dir / row["audio"]
    if not audio.is_file():
        raise InputError(f"{where}: audio file {audio} not found; get a complete copy")
    return {
        "id": row["id"],
        "task": "asr",
        "audio": relative_audio_path(out_dir / "manifest", audio),
        "source_lang": "en",
        "target_lang": "en",
        "target": " ".join(row["text"].lower().split()),
        "domain": "an4",
        "speaker": row["speaker"],
        "split": row["split"],
    }
