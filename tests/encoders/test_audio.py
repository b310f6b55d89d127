import numpy as np
import pytest
import soundfile
import torch

from torchtune_speech.encoders import audio_seconds, load_audio
from torchtune_speech.errors import InputError

# name, subtype, sampling rate; opus knows few rates.
FORMATS = [
    ("a.wav", "PCM_16", 16_000),
    ("a.wav", "FLOAT", 44_100),
    ("a.wav", "PCM_24", 8_000),
    ("a.flac", "PCM_16", 22_050),
    ("a.mp3", None, 44_100),
    ("a.ogg", "VORBIS", 16_000),
    ("a.opus", "OPUS", 48_000),
]


def _tone(rate, seconds=2.0, hertz=440.0):
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def _write(path, samples, rate, subtype=None):
    kind = {".opus": "OGG"}.get(path.suffix)
    soundfile.write(path, samples, rate, subtype=subtype, format=kind)
    return path


def _peak_hertz(waveform):
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return spectrum.argmax().item() * 16_000 / len(waveform)


@pytest.mark.parametrize(("name", "subtype", "rate"), FORMATS)
def test_formats_and_rates(tmp_path, name, subtype, rate):
    path = _write(tmp_path / name, _tone(rate), rate, subtype)
    waveform = load_audio(path)
    assert waveform.dtype == torch.float32 and waveform.dim() == 1
    # MP3 and Vorbis may add some silence at the ends.
    assert len(waveform) == pytest.approx(32_000, abs=2_000)
    assert audio_seconds(path) == pytest.approx(len(waveform) / 16_000, abs=1e-3)
    middle = waveform[8_000:24_000]
    assert _peak_hertz(middle) == pytest.approx(440, abs=2)
    assert middle.abs().max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("name", "subtype", "rate"), [*FORMATS, ("a.ogg", "VORBIS", 22_050)])
def test_a_cut_is_what_stands_there(tmp_path, name, subtype, rate):
    # A pure chirp: each moment has its own frequency, so that a shifted cut shows; and lossy
    # coders make of it what libsndfile cannot enter exactly by itself.
    time = np.arange(rate * 6) / rate
    samples = (0.5 * np.sin(2 * np.pi * (200 * time + 150 * time**2))).astype(np.float32)
    path = _write(tmp_path / name, samples, rate, subtype)
    whole = load_audio(path)
    for offset_s in (0.2, 1.2, 2.5, 4.54):
        cut = load_audio(path, offset_s=offset_s, duration_s=0.5)
        start = round(offset_s * 16_000)
        assert len(cut) == pytest.approx(8_000, abs=1)
        error = (cut - whole[start : start + len(cut)]).abs()
        # The resampler does not know what stood beyond the edges of a cut.
        assert error[200:-200].max() < 5e-3
    to_end = load_audio(path, offset_s=5.5)
    assert len(to_end) == pytest.approx(len(whole) - 88_000, abs=1)


def test_same_rate_is_bit_exact(tmp_path):
    samples = _tone(16_000)
    path = _write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    assert torch.equal(load_audio(path), torch.from_numpy(samples))
    cut = load_audio(path, offset_s=0.5, duration_s=0.25)
    assert torch.equal(cut, torch.from_numpy(samples[8_000:12_000]))


def test_channels_are_averaged(tmp_path):
    left, right = _tone(16_000), _tone(16_000, hertz=1_000)
    path = _write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, "FLOAT")
    torch.testing.assert_close(load_audio(path), torch.from_numpy((left + right) / 2))


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "W64", "RF64"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    path = tmp_path / "a"
    soundfile.write(path, _tone(16_000), 16_000, subtype="PCM_16", format=kind)  # 2 s
    assert audio_seconds(path) == 2.0
    path.write_bytes(path.read_bytes()[:-32_000])
    for read in (load_audio, audio_seconds):
        with pytest.raises(InputError, match=r"a: truncated, 1\.0\d s fewer than its header says"):
            read(path)


@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_file_of_unknown_length_from_a_pipe_is_read(tmp_path, length):
    path = _write(tmp_path / "a.wav", _tone(16_000), 16_000)
    content = bytearray(path.read_bytes())
    for at in (4, content.index(b"data") + 4):
        content[at : at + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(load_audio(path)) == 32_000


def test_only_the_cut_is_read(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.wav", _tone(16_000, seconds=10), 16_000)
    counts = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda f, n, **kw: counts.append(n) or read(f, n, **kw)
    )
    load_audio(path, offset_s=4.0, duration_s=0.5)
    assert counts == [8_000]


@pytest.mark.parametrize("speed", [0.9, 1.1])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_speed_changes_tempo_and_pitch(tmp_path, speed, rate):
    path = _write(tmp_path / "a.wav", _tone(rate), rate, "FLOAT")
    waveform = load_audio(path, speed=speed)
    assert len(waveform) == pytest.approx(32_000 / speed, abs=2)
    assert audio_seconds(path, speed=speed) == pytest.approx(2.0 / speed)
    assert _peak_hertz(waveform[4_000:20_000]) == pytest.approx(440 * speed, abs=2)


def test_a_cut_may_pass_the_end_a_little(tmp_path):
    path = _write(tmp_path / "a.wav", _tone(16_000), 16_000)
    assert len(load_audio(path, offset_s=1.0, duration_s=1.05)) == 16_000
    assert audio_seconds(path, offset_s=1.0, duration_s=1.05) == 1.0


@pytest.mark.parametrize(
    ("offset_s", "duration_s"), [(2.0, None), (2.5, 1.0), (1.0, 1.5), (0.0, 2.2)]
)
@pytest.mark.parametrize("function", [load_audio, audio_seconds])
def test_a_cut_beyond_the_end(tmp_path, function, offset_s, duration_s):
    path = _write(tmp_path / "a.wav", _tone(16_000), 16_000)
    with pytest.raises(InputError, match=r"a\.wav: cut from .* passes the end of the file at 2 s"):
        function(path, offset_s=offset_s, duration_s=duration_s)


@pytest.mark.parametrize(("offset_s", "duration_s"), [(-1.0, None), (0.0, 0.0), (0.0, -2.0)])
def test_impossible_cuts(tmp_path, offset_s, duration_s):
    path = _write(tmp_path / "a.wav", _tone(16_000), 16_000)
    with pytest.raises(InputError, match="offset must be at least 0"):
        load_audio(path, offset_s=offset_s, duration_s=duration_s)


def test_impossible_speed(tmp_path):
    path = _write(tmp_path / "a.wav", _tone(16_000), 16_000)
    with pytest.raises(InputError, match="speed is 0"):
        load_audio(path, speed=0.0)


@pytest.mark.parametrize("function", [load_audio, audio_seconds])
def test_faulty_files(tmp_path, function):
    with pytest.raises(InputError, match=r"no\.wav: no such audio file"):
        function(tmp_path / "no.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InputError, match=r"empty\.wav: empty file"):
        function(tmp_path / "empty.wav")
    _write(tmp_path / "zero.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(InputError, match=r"zero\.wav: no samples"):
        function(tmp_path / "zero.wav")
    (tmp_path / "text.wav").write_text("this is no audio" * 100)
    with pytest.raises(InputError, match=r"text\.wav: not readable as audio"):
        function(tmp_path / "text.wav")
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(InputError, match=r"data\.bin: not readable as audio"):
        function(tmp_path / "data.bin")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_numbers(tmp_path, value):
    samples = _tone(16_000)
    samples[100] = value
    path = _write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    with pytest.raises(InputError, match="not numbers"):
        load_audio(path)


def test_truncated_flac(tmp_path):
    samples = np.random.default_rng(0).normal(size=48_000).astype(np.float32) * 0.1
    path = _write(tmp_path / "a.flac", samples, 16_000)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(InputError, match=r"a\.flac: (truncated|damaged)"):
        load_audio(path)


def test_a_flac_of_unknown_length_is_refused(tmp_path):
    """As `flac -c` and ffmpeg write them into a pipe: the number of samples in the header is 0."""
    path = _write(tmp_path / "a.flac", np.zeros(1600), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # 36 bits, of which 4 are in this byte
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for function in (load_audio, audio_seconds):
        with pytest.raises(InputError, match=r"a\.flac: its header does not tell its length"):
            function(path)


def test_a_cut_of_which_nothing_is_left_names_its_file(tmp_path):
    path = _write(tmp_path / "a.wav", np.zeros(1), 48_000)
    with pytest.raises(InputError, match=r"a\.wav: the cut is shorter than a sample at 16000 Hz"):
        load_audio(path, 16_000)
