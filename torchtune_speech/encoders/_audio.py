"""Reading audio files."""

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from torchtune_speech.errors import InputError

# Manifests round their times; a cut may pass the end of its file by this much.
END_TOLERANCE_S = 0.1
SKIP_BLOCK = 1 << 20
# What libsndfile notes when a chunk of wav or aiff is said to be longer than the file.
CLIPPED_CHUNK = re.compile(r"^\s*(?:data|SSND|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.M)
# Programs that write into a pipe cannot know the length, and put 2**31 or 2**32, nearly.
UNKNOWN_BYTES = 0x7FFF_0000


def _open(path: Path) -> soundfile.SoundFile:
    if not path.is_file():
        raise InputError(f"{path}: no such audio file; correct the path in the manifest")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file (0 bytes); restore it or take it out of the manifest")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise InputError(
            f"{path}: not readable as audio ({reason}); convert it to wav, flac, mp3, ogg or opus"
        ) from error
    missing_s = _missing_seconds(file)
    if missing_s > END_TOLERANCE_S:
        file.close()
        raise _truncated(path, missing_s)
    return file


def _missing_seconds(file: soundfile.SoundFile) -> float:
    """How much shorter a wav or aiff file is than its header says; libsndfile reads on silently."""
    clipped = CLIPPED_CHUNK.search(file.extra_info)
    if clipped is None or file.frames <= 0:
        return 0.0
    claimed, there = map(int, clipped.groups())
    if claimed >= UNKNOWN_BYTES or there <= 0:
        return 0.0
    return (claimed - there) / there * file.frames / file.samplerate


def _truncated(path: Path, missing_s: float) -> InputError:
    return InputError(
        f"{path}: truncated, {missing_s:.2f} s fewer than its header says; restore it or take "
        "it out of the manifest"
    )


_UNKNOWN = 2**62  # samples


def _cut(
    file: soundfile.SoundFile, path: Path, offset_s: float, duration_s: float | None
) -> tuple[int, int]:
    """First sample and number of samples of a cut, at the file's own sampling rate."""
    rate, total = file.samplerate, file.frames
    if total <= 0:
        raise InputError(f"{path}: no samples in it; restore it or take it out of the manifest")
    if total >= _UNKNOWN:  # as flac tells that was written into a pipe
        raise InputError(
            f"{path}: its header does not tell its length; rewrite it (`ffmpeg -i IN OUT.flac`)"
        )
    if offset_s < 0 or (duration_s is not None and duration_s <= 0):
        raise InputError(
            f"{path}: cut with offset {offset_s:g} s and duration {duration_s} s; offset must be "
            "at least 0 and duration more than 0"
        )
    start = round(offset_s * rate)
    count = total - start if duration_s is None else max(round(duration_s * rate), 1)
    excess_s = (start + count - total) / rate
    if start >= total or excess_s > END_TOLERANCE_S:
        end = "" if duration_s is None else f" to {offset_s + duration_s:g} s"
        raise InputError(
            f"{path}: cut from {offset_s:g} s{end} passes the end of the file at "
            f"{total / rate:g} s; correct offset and duration in the manifest"
        )
    return start, min(count, total - start)


def _read(file: soundfile.SoundFile, start: int, count: int) -> np.ndarray:
    """Samples [count, channels] from ``start`` on, also where libsndfile seeks inexactly."""
    lead = 0
    if file.subtype == "VORBIS":
        # A seek may end up milliseconds off: https://github.com/libsndfile/libsndfile/issues/885
        while (skip := min(start - file.tell(), SKIP_BLOCK)) > 0:
            if len(file.read(skip, dtype="float32")) == 0:
                break
    else:
        # MP3 frames borrow bits of those before: the first after a seek are garbled. And it must
        # be one call, since soundfile seeks after every read.
        lead = min(start, file.samplerate) if file.subtype.startswith("MPEG") else 0
        file.seek(start - lead)
    return file.read(lead + count, dtype="float32", always_2d=True)[lead:]


def audio_seconds(
    path: str | Path, offset_s: float = 0.0, duration_s: float | None = None, speed: float = 1.0
) -> float:
    """Duration of what :func:`load_audio` would read, from the file's header only.

    Args:
        path: audio file.
        offset_s: start of the cut in seconds.
        duration_s: length of the cut in seconds; ``None`` to the end of the file.
        speed: speed perturbation factor.

    Returns:
        Seconds of audio after speed perturbation.

    Raises:
        InputError: naming the file, if it is missing, empty, unreadable, or ends before the cut.
    """
    path = Path(path)
    with _open(path) as file:
        _, count = _cut(file, path, offset_s, duration_s)
        return count / file.samplerate / speed


def load_audio(
    path: str | Path,
    sampling_rate: int = 16_000,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    speed: float = 1.0,
) -> Tensor:
    """Read an audio file, or a cut of it, as one channel at a given sampling rate.

    Reads what libsndfile reads (wav, flac, mp3, ogg, opus and more), only the samples of the cut
    (of Ogg Vorbis also those before it, as it cannot be entered exactly: better convert long
    recordings to flac). Channels are averaged, the sampling rate is converted by soxr in high
    quality.

    Args:
        path: audio file.
        sampling_rate: sampling rate of the result in Hz.
        offset_s: start of the cut in seconds.
        duration_s: length of the cut in seconds; ``None`` (the default) to the end of the file.
            A cut may pass the end of the file by 0.1 s (manifests round), and is clipped there.
        speed: speed perturbation factor: 1.1 is 10 % faster and higher, as played from a tape
            that runs too fast (the ``speed`` effect of sox).
            Ko et al. 2015, https://www.danielpovey.com/files/2015_interspeech_augmentation.pdf

    Returns:
        Float32 samples, shape [samples], full scale is 1.0.

    Raises:
        InputError: naming the file, if it is missing, empty, unreadable or damaged, has no
            samples or samples that are not numbers, or ends before the cut.
    """
    path = Path(path)
    if speed <= 0:
        raise InputError(f"{path}: speed is {speed:g}; it must be more than 0")
    with _open(path) as file:
        start, count = _cut(file, path, offset_s, duration_s)
        try:
            samples = _read(file, start, count)
        except soundfile.SoundFileError as error:
            raise InputError(
                f"{path}: damaged ({str(error).rstrip('.')}); restore it or take it out of the "
                "manifest"
            ) from error
        rate = file.samplerate
    missing_s = (count - len(samples)) / rate
    if len(samples) == 0 or missing_s > END_TOLERANCE_S:
        raise _truncated(path, missing_s)
    waveform = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: has samples that are not numbers (NaN or infinite); restore it")
    if rate * speed != sampling_rate:
        waveform = soxr.resample(waveform, rate * speed, sampling_rate, quality="HQ")
    if not len(waveform):
        raise InputError(f"{path}: the cut is shorter than a sample at {sampling_rate} Hz; drop it")
    return torch.from_numpy(np.ascontiguousarray(waveform))
