"""Where long audio is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.encoders import fixed_windows, silence_windows
from torchtune_speech.errors import InputError

RATE = 1000


def test_windows_follow_each_other():
    assert fixed_windows(90.0, 30.0) == [(0.0, 30.0), (30.0, 30.0), (60.0, 30.0)]
    assert fixed_windows(12.0, 30.0) == [(0.0, 12.0)]


def test_a_short_end_is_shared():
    assert fixed_windows(65.0, 30.0) == [(0.0, 30.0), (30.0, 17.5), (47.5, 17.5)]
    assert fixed_windows(70.0, 30.0) == [(0.0, 30.0), (30.0, 30.0), (60.0, 10.0)]


def test_neighbours_overlap():
    assert fixed_windows(75.0, 30.0, 5.0) == [(0.0, 30.0), (25.0, 30.0), (50.0, 25.0)]
    with pytest.raises(InputError, match="overlap"):
        fixed_windows(75.0, 30.0, 30.0)


@given(st.floats(0.01, 500), st.floats(1, 40), st.floats(0, 0.9))
def test_fixed_windows_cover_the_audio(duration_s, window_s, share):
    overlap_s = share * window_s
    windows = fixed_windows(duration_s, window_s, overlap_s)
    assert windows[0][0] == 0.0
    assert sum(windows[-1]) == pytest.approx(duration_s, abs=2e-3)
    for (a, length), (b, _) in zip(windows, windows[1:], strict=False):
        assert b - a > 0
        assert a + length - b == pytest.approx(overlap_s, abs=3e-3)
    assert all(0 < length <= window_s + 1e-3 for _, length in windows)


def speech_with_pauses(pauses, duration_s, width_s=0.4):
    """Noise that is quiet around some places."""
    noise = np.random.default_rng(0).normal(size=int(duration_s * RATE)) * 0.3
    for pause in pauses:
        noise[int((pause - width_s / 2) * RATE) : int((pause + width_s / 2) * RATE)] *= 0.001
    return torch.from_numpy(noise).float()


def test_cuts_lie_in_the_pauses():
    windows = silence_windows(speech_with_pauses([9.0, 16.0, 26.0], 35.0), RATE, max_s=12.0)
    assert [offset for offset, _ in windows] == pytest.approx([0, 9, 16, 26], abs=0.15)
    assert sum(length for _, length in windows) == pytest.approx(35.0)


def test_no_more_cuts_than_needed():
    pauses = [4.0, 8.0, 12.0, 16.0]
    assert len(silence_windows(speech_with_pauses(pauses, 20.0), RATE, max_s=30.0)) == 1
    assert len(silence_windows(speech_with_pauses(pauses, 20.0), RATE, max_s=13.0)) == 2


@given(st.floats(0.1, 60), st.integers(0, 5))
def test_silence_windows_cover_the_audio_within_their_bounds(duration_s, seed):
    samples = max(int(duration_s * RATE), 1)
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    windows = silence_windows(waveform, RATE, max_s=10.0, min_s=2.0)
    edges = [0.0]
    for offset, length in windows:
        assert offset == pytest.approx(edges[-1], abs=2e-3)
        edges.append(offset + length)
    assert edges[-1] == pytest.approx(samples / RATE, abs=2e-3)
    assert all(length <= 10.001 for _, length in windows)
    if samples / RATE > 10:
        assert all(length >= 1.95 for _, length in windows)


def test_digital_silence_is_cut_too():
    windows = silence_windows(torch.zeros(25 * RATE), RATE, max_s=10.0)
    assert len(windows) == 3


def test_a_patch_of_digital_silence_does_not_move_the_cuts():
    speech = speech_with_pauses([14.0, 24.0, 38.0], 44.0, width_s=0.6)
    expected = [offset for offset, _ in silence_windows(speech, RATE, max_s=22.0)]
    speech[:300] = 0
    assert [offset for offset, _ in silence_windows(speech, RATE, max_s=22.0)] == expected
    assert expected[1:] == pytest.approx([14, 24], abs=0.4)


def test_cuts_do_not_drift_at_odd_rates():
    rate = 22_050
    noise = np.random.default_rng(0).normal(size=rate * 600) * 0.3
    noise[int(590.0 * rate) : int(590.4 * rate)] *= 0.001
    windows = silence_windows(torch.from_numpy(noise).float(), rate, max_s=599.0)
    assert windows[1][0] == pytest.approx(590.2, abs=0.15)


def test_windows_may_be_short_but_not_nothing():
    assert all(length <= 3 for _, length in silence_windows(torch.zeros(10 * RATE), RATE, 3.0))
    for cut in (lambda: silence_windows(torch.zeros(10), RATE, 0.0), lambda: fixed_windows(1, 0)):
        with pytest.raises(InputError, match="window: 0 s"):
            cut()
