"""Speech from espeak-ng, called in process through the library that `espeakng-loader` carries.

espeak-ng keeps one global state and is not safe under threads, so several utterances at a time
take several processes.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from torchtune_speech.errors import InputError

SAMPLE_RATE = 16_000
"""Hz of the audio written, what speech encoders expect."""

TRAIN_VOICES = (
    "en-us+m1",
    "en-us+m3",
    "en-us+m7",
    "en-us+f1",
    "en-us+f2",
    "en-us+f5",
    "en-gb-x-rp+m2",
    "en-gb-x-rp+m4",
    "en-gb-x-rp+m8",
    "en-gb-x-rp+f3",
    "en-gb-x-rp+steph",
    "en-gb-x-rp+anika",
)
DEV_VOICES = ("en-us+m6", "en-gb-x-rp+belinda")
TEST_VOICES = ("en-us+f4", "en-gb-x-rp+m5")
"""Like those of dev never heard in training; one of each accent."""

# From espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE, _PITCH = 1, 3
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_OK = 0
_BLOCK = 250  # utterances a process
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What to say, and how.

    Args:
        text: English text.
        voice: Name of an espeak-ng voice with its variant, such as "en-us+f2".
        speed: Words a minute.
        pitch: 0 to 100; 50 is the voice's own.
    """

    text: str
    voice: str
    speed: int = 175
    pitch: int = 50


def _espeak_package() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError:
        raise InputError(
            "espeakng_loader: not installed, so nothing can speak; "
            "pip install 'torchtune-speech[demo]'"
        ) from None
    return espeakng_loader


class _Espeak:
    """The library with its callback; one a process."""

    def __init__(self) -> None:
        package = _espeak_package()
        self.library = ctypes.CDLL(package.get_library_path())
        data_path = package.get_data_path()
        self.variants = Path(data_path) / "voices" / "!v"
        self.native_rate = self.library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), 0
        )
        if self.native_rate <= 0:
            raise InputError(
                f"{data_path}: espeak-ng finds no voices there; reinstall espeakng-loader"
            )
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # by default it takes the time of day
        self.chunks: list[np.ndarray] = []
        self.callback = _CALLBACK(self._receive)  # kept: ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _set_voice(self, name: str) -> None:
        status = self.library.espeak_SetVoiceByName(name.encode())
        _, _, variant = name.partition("+")
        # espeak-ng takes an unknown variant for none, so that two voices would sound the same.
        if status != _OK or not (self.variants / variant).exists():
            raise InputError(f"{name}: espeak-ng has no such voice; take one such as 'en-us+f2'")

    def say(self, utterance: Utterance) -> np.ndarray:
        self._set_voice(utterance.voice)
        self.library.espeak_SetParameter(_RATE, utterance.speed, 0)
        self.library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        text = utterance.text.encode() + b"\0"
        self.chunks.clear()
        status = self.library.espeak_Synth(
            text,
            ctypes.c_size_t(len(text)),
            0,
            _POSITION_CHARACTER,
            0,
            _CHARACTERS_UTF8,
            None,
            None,
        )
        if status != _OK or not self.chunks:
            raise InputError(f"{utterance.text!r}: espeak-ng gives no sound; check the text")
        return np.concatenate(self.chunks)


@lru_cache(maxsize=1)
def _espeak() -> _Espeak:
    return _Espeak()


def synthesize(utterance: Utterance, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Speaks one utterance.

    Args:
        utterance: What to say.
        sample_rate: Hz of the result.

    Returns:
        Samples, shape [n], int16.

    Raises:
        InputError: When espeakng-loader is missing, the voice is unknown or nothing sounds.

    Example:
        >>> samples = synthesize(Utterance("The doctor waits.", voice="en-us+f2"))
    """
    espeak = _espeak()
    return soxr.resample(espeak.say(utterance), espeak.native_rate, sample_rate)


def write_speech(
    jobs: Sequence[tuple[Path, Utterance]],
    *,
    num_workers: int | None = None,
    description: str = "speaking",
) -> float:
    """Speaks utterances into 16 kHz mono files; the suffix gives the format.

    The files are the same whatever the number of processes.

    Args:
        jobs: Pairs of file to write and utterance; the folders exist.
        num_workers: Processes; None takes one a core, at most two.
        description: What the progress bar says.

    Returns:
        Seconds of speech written.

    Raises:
        InputError: See `synthesize`.
    """
    _espeak_package()  # so that its absence is told here and not by a process
    if num_workers is None:
        num_workers = min(2, os.cpu_count() or 1)
    blocks = [jobs[start : start + _BLOCK] for start in range(0, len(jobs), _BLOCK)]
    # Jitter and phase run on from one utterance to the next inside espeak-ng and nothing resets
    # them, so every block gets a fresh process. Not forked: the parent may hold threads of torch.
    context = multiprocessing.get_context("spawn")
    total_s = 0.0
    with (
        tqdm(total=len(jobs), desc=description, unit="utterance") as progress,
        ProcessPoolExecutor(num_workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        for block, seconds in zip(blocks, pool.map(_write_block, blocks), strict=True):
            total_s += seconds
            progress.update(len(block))
    return total_s


def _write_block(jobs: Sequence[tuple[Path, Utterance]]) -> float:
    total_s = 0.0
    for path, utterance in jobs:
        samples = synthesize(utterance)
        sf.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        total_s += len(samples) / SAMPLE_RATE
    return total_s
