"""The sound of samples, small enough to travel inside a page."""

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile

from torchtune_speech.errors import InputError

SAMPLING_RATE = 16_000  # what the encoders hear; Opus takes it as it is
_MISFITS = 10  # so many clips too large in succession: the rest of the budget is not worth the time

Cut = tuple[Path, float, float | None]


def collect_clips(
    rows: Sequence[Mapping[str, Any]],
    order: Iterable[int],
    *,
    folder: str | os.PathLike[str] | None,
    page_folder: str | os.PathLike[str],
    budget_bytes: float,
) -> tuple[list[str], dict[int, int | str], int]:
    """Clips to embed in a page, and links to the audio of the samples that find no room.

    Samples that share a clip (translations of one utterance) share its copy.

    Args:
        rows: samples; ``audio`` is the path of a file, ``offset`` and ``duration`` (seconds) cut
            it where present.
        order: indices of rows, those to embed first at the front.
        folder: what relative paths are relative to; None is the current folder.
        page_folder: where the page will be, for relative links.
        budget_bytes: most bytes of embedded audio, counted as they stand in the page (base64).

    Returns:
        The clips as ``data:`` URLs; index of a row to the index of its clip or the URL of its
        file; how many rows name audio that is not there or cannot be read.
    """
    clips: list[str] = []
    places: dict[Cut, int | str | None] = {}
    by_row: dict[int, int | str] = {}
    unreadable = misfits = 0
    for index in order:
        cut = _cut(rows[index], Path(folder or "."))
        if cut is None:
            continue
        if cut not in places:
            place = _link(cut, page_folder) if cut[0].is_file() else None
            if place is not None and budget_bytes > 0 and misfits < _MISFITS:
                clip = _encode(*cut)
                if clip is None:
                    place = None
                elif len(clip) <= budget_bytes:
                    place = len(clips)
                    clips.append(clip)
                    budget_bytes -= len(clip)
                    misfits = 0
                else:
                    misfits += 1
            places[cut] = place
        if places[cut] is None:
            unreadable += 1
        else:
            by_row[index] = places[cut]
    return clips, by_row, unreadable


def _cut(row: Mapping[str, Any], folder: Path) -> Cut | None:
    audio = row.get("audio")
    if isinstance(audio, list) and len(set(audio)) == 1:  # the windows of one recording
        return folder / audio[0], 0.0, None
    if not isinstance(audio, str | os.PathLike) or not os.fspath(audio):
        return None
    offset_s, duration_s = row.get("offset") or 0.0, row.get("duration")
    if not isinstance(offset_s, int | float) or not isinstance(duration_s, int | float | None):
        return None
    return folder / audio, float(offset_s), duration_s


def _encode(path: Path, offset_s: float, duration_s: float | None) -> str | None:
    """A cut as a data URL, or None when the file cannot be read."""
    # Encoders bring torch and transformers along, which scores alone do not need.
    from torchtune_speech.encoders import load_audio

    try:
        samples = load_audio(path, SAMPLING_RATE, offset_s, duration_s).numpy()
    except InputError:
        return None
    # An older libsndfile has no Opus.
    opus = "OPUS" in soundfile.available_subtypes("OGG")
    name, subtype, kind = ("OGG", "OPUS", "ogg") if opus else ("FLAC", "PCM_16", "flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format=name, subtype=subtype)
    return f"data:audio/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _link(cut: Cut, page_folder: str | os.PathLike[str]) -> str:
    path, offset_s, duration_s = cut
    try:
        url = quote(Path(os.path.relpath(path, page_folder)).as_posix())
    except ValueError:  # on another drive
        url = path.absolute().as_uri()
    if not offset_s and duration_s is None:
        return url
    end = "" if duration_s is None else f",{offset_s + duration_s:g}"
    return f"{url}#t={offset_s:g}{end}"  # a media fragment: players keep to it
