import hashlib

import numpy as np
import pytest
import soundfile as sf

from torchtune_speech.errors import InputError
from torchtune_speech.nano import (
    DEV_VOICES,
    TEST_VOICES,
    TRAIN_VOICES,
    Utterance,
    synthesize,
    write_speech,
)

pytest.importorskip("espeakng_loader")


def test_test_voices_are_unseen():
    assert len(TRAIN_VOICES) >= 8 and len(TEST_VOICES) >= 2
    voices = [*TRAIN_VOICES, *DEV_VOICES, *TEST_VOICES]
    assert len(set(voices)) == len(voices)
    variants = [voice.split("+")[1] for voice in voices]
    assert len(set(variants)) == len(variants), "the same person in two accents is not unseen"


def test_every_voice_sounds_different():
    text = "The doctor waits at the station."
    spoken = [synthesize(Utterance(text, voice)) for voice in (*TRAIN_VOICES, *TEST_VOICES)]
    for samples in spoken:
        assert samples.dtype == np.int16 and samples.ndim == 1
        assert 1.0 < len(samples) / 16000 < 4.0
        assert np.abs(samples.astype(float)).mean() > 300
    assert len({(len(samples), int(samples.astype(float).std())) for samples in spoken}) == 14


def test_speed_and_sampling_rate():
    slow = synthesize(Utterance("The doctor waits.", "en-us+f2", speed=150))
    fast = synthesize(Utterance("The doctor waits.", "en-us+f2", speed=200))
    assert len(slow) > 1.15 * len(fast)
    half = synthesize(Utterance("The doctor waits.", "en-us+f2", speed=200), sample_rate=8000)
    assert len(half) == pytest.approx(len(fast) / 2, rel=0.02)


@pytest.mark.parametrize("voice", ["nowhere", "en-us+nobody"])
def test_unknown_voice(voice):
    with pytest.raises(InputError, match="no such voice"):
        synthesize(Utterance("The doctor waits.", voice))


def test_files_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    from torchtune_speech.nano import _voices

    monkeypatch.setattr(_voices, "_BLOCK", 3)
    sums = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        jobs = [
            (folder / f"{index}.flac", Utterance("Two red apples.", TRAIN_VOICES[index]))
            for index in range(5)
        ]
        seconds = write_speech(jobs, num_workers=workers)
        sums.append([hashlib.md5(path.read_bytes()).hexdigest() for path, _ in jobs])
    assert sums[0] == sums[1]
    info = [sf.info(path) for path, _ in jobs]
    assert all((i.samplerate, i.channels, i.format) == (16000, 1, "FLAC") for i in info)
    assert seconds == pytest.approx(sum(i.duration for i in info))
