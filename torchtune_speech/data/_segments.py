"""Long samples as shorter ones."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from torchtune_speech.data._manifest import (
    load_manifest,
    relative_audio_path,
    resolve_audio,
    write_manifest,
)
from torchtune_speech.data._sample import AudioCut, Sample
from torchtune_speech.encoders import (
    audio_seconds,
    fixed_windows,
    load_audio,
    silence_windows,
)
from torchtune_speech.errors import InputError

# Tasks whose answer to a whole is the answers to its parts, one after the other.
JOINED_TASKS = ("asr", "st")


def segment_samples(
    samples: Iterable[Sample],
    windows_of: Callable[[AudioCut, float], Sequence[tuple[float, float]]],
    *,
    overlap_s: float = 0.0,
) -> list[Sample]:
    """Cut the audio of samples that are too long into windows.

    Transcription and translation become a sample a window, without target (nobody knows which words
    are in which window): ``talk#0``, ``talk#1``, with ``segment_of: talk``, by which
    :func:`~torchtune_speech.generation.join_segment_rows` puts the answers together. All other
    samples stay one, and hear their windows one after the other.

    Args:
        samples: rows of a manifest.
        windows_of: stretch of audio and overlap to the offset and duration of each window in it,
            all in seconds of the recording.
        overlap_s: what two windows have in common, in seconds, where answers are joined; a question
            is never asked about the same seconds twice.

    Returns:
        The samples, in order. Those of one window stay as they are.
    """
    result = []
    for sample in samples:
        joined = sample.task in JOINED_TASKS and not sample.messages
        parts = [_parts(cut, windows_of(cut, overlap_s if joined else 0.0)) for cut in sample.audio]
        cuts = [cut for several in parts for cut in several]
        if len(cuts) == len(sample.audio):
            result.append(sample)
        elif joined:
            segment = {"segment_of": sample.id, "num_segments": len(cuts), "overlap_s": overlap_s}
            result += [
                dataclasses.replace(
                    sample,
                    id=f"{sample.id}#{number}",
                    audio=(cut,),
                    target="",
                    source_text=None,
                    extra={**sample.extra, **segment},
                )
                for number, cut in enumerate(cuts)
            ]
        else:
            messages = _with_marks(sample.messages, [len(several) for several in parts])
            result.append(dataclasses.replace(sample, audio=tuple(cuts), messages=messages))
    return result


def _with_marks(
    messages: Sequence[Mapping[str, Any]], counts: Sequence[int]
) -> tuple[Mapping[str, Any], ...]:
    """As many ``{speech}`` in place of each one as its audio has windows."""
    rest = iter(counts)
    return tuple(
        m
        if m["role"] == "assistant"
        else {
            **m,
            "content": re.sub(r"\{speech\}", lambda mark: mark[0] * next(rest), m["content"]),
        }
        for m in messages
    )


def _parts(cut: AudioCut, windows: Sequence[tuple[float, float]]) -> list[AudioCut]:
    if len(windows) < 2:
        return [cut]
    return [
        dataclasses.replace(
            cut, offset_s=round(cut.offset_s + offset, 3), duration_s=round(duration, 3)
        )
        for offset, duration in windows
    ]


def segment_manifest(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    window_s: float = 30.0,
    at: str = "silence",
    overlap_s: float = 0.0,
    where: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Write a manifest in which no stretch of audio is longer than a window.

    Args:
        manifest: manifest with long audio, in any format.
        out: the manifest to write.
        window_s: longest window, in seconds.
        at: "silence" cuts where the audio is quietest, "fixed" at fixed places.
        overlap_s: what two fixed windows have in common, in seconds.
        where: rows that are taken, column to value. Default: all.

    Returns:
        The number of rows before and after.

    Raises:
        InputError: for a manifest or audio that cannot be read, and for an overlap of windows that
            are cut at silence.
    """
    if at not in ("silence", "fixed"):
        raise InputError(f"at: {at!r}; use silence or fixed")
    if overlap_s and at == "silence":
        raise InputError("overlap: windows cut at silence have none; cut at fixed places")

    def windows_of(cut: AudioCut, overlap_s: float) -> list[tuple[float, float]]:
        """Offset and duration of each window, in seconds of the recording."""
        path, rate = resolve_audio(manifest, cut), 16_000
        longest = window_s * cut.speed  # in seconds of the recording
        seconds = audio_seconds(path, cut.offset_s, cut.duration_s)
        if seconds <= longest or at == "fixed":
            return fixed_windows(seconds, longest, overlap_s)
        return silence_windows(load_audio(path, rate, cut.offset_s, cut.duration_s), rate, longest)

    samples = load_manifest(manifest, require_target=False, where=where)
    shown = tqdm(samples, desc="segment", unit="sample")
    segments = segment_samples(shown, windows_of, overlap_s=overlap_s)
    moved = []
    for sample in segments:
        paths = [relative_audio_path(out, resolve_audio(manifest, cut)) for cut in sample.audio]
        cuts = [
            dataclasses.replace(cut, path=path)
            for cut, path in zip(sample.audio, paths, strict=True)
        ]
        moved.append(dataclasses.replace(sample, audio=tuple(cuts)))
    write_manifest(out, moved)
    return len(samples), len(moved)
