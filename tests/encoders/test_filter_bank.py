import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from torchtune_speech.encoders import Encoder, filter_bank_encoder
from torchtune_speech.errors import InputError

# Mixed parities of windows, right at the borders of windows and frames.
LENGTHS = [16_000, 560, 719, 720, 721, 48_000, 33_333, 1_000]


def _speech_like(samples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator) * 0.05
    time = torch.arange(samples) / 16_000
    tone = torch.sin(2 * torch.pi * 220 * time) * torch.sin(2 * torch.pi * 3 * time) * 0.3
    return noise * (time.sin() > 0) + tone + 0.01


def _reference(waveform: torch.Tensor) -> torch.Tensor:
    extractor = SeamlessM4TFeatureExtractor()
    out = extractor([waveform.numpy()], sampling_rate=16_000, return_tensors="pt")
    return out["input_features"][0][out["attention_mask"][0].bool()]


def test_equals_hugging_face_for_mixed_lengths():
    waveforms = [_speech_like(n, seed) for seed, n in enumerate(LENGTHS)]
    for waveform, frames in zip(waveforms, filter_bank_encoder()(waveforms), strict=True):
        torch.testing.assert_close(frames, _reference(waveform), atol=1e-4, rtol=0)


def test_equals_hugging_face_where_bins_hold_next_to_nothing():
    # A loud low tone with nothing above: float32 transforms would miss by more than 1.
    time = torch.arange(16_000) / 16_000
    waveform = 0.9 * torch.sin(2 * torch.pi * 200 * time) * torch.hann_window(16_000)
    frames = filter_bank_encoder()([waveform])[0]
    torch.testing.assert_close(frames, _reference(waveform), atol=1e-4, rtol=0)


def test_independent_of_the_batch():
    waveforms = [_speech_like(n, seed) for seed, n in enumerate(LENGTHS)]
    encoder = filter_bank_encoder()
    for waveform, frames in zip(waveforms, encoder(waveforms), strict=True):
        assert torch.equal(frames, encoder([waveform])[0])


def test_three_seconds_give_149_frames():
    encoder = filter_bank_encoder()
    frames = encoder([torch.randn(48_000)])[0]
    assert frames.shape == (149, 160) and frames.dtype == torch.float32
    assert encoder.dim == 160 and encoder.frames_per_second == 50.0


@pytest.mark.parametrize("samples", [1, 2, 399, 400, 559])
def test_very_short_audio_gives_one_finite_frame(samples):
    frames = filter_bank_encoder()([torch.randn(samples), torch.randn(3_000)])[0]
    assert frames.shape == (1, 160)
    assert frames.isfinite().all()


def test_silence_is_finite():
    frames = filter_bank_encoder()([torch.zeros(4_000)])[0]
    assert frames.abs().max() == 0.0


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(2, 800)])
def test_no_samples_or_two_channels_are_refused(waveform):
    with pytest.raises(InputError, match="waveform 1"):
        filter_bank_encoder()([torch.randn(800), waveform])


def test_no_waveforms():
    assert filter_bank_encoder()([]) == []


def test_is_an_encoder_with_a_json_fingerprint():
    encoder = filter_bank_encoder()
    assert isinstance(encoder, Encoder)
    assert encoder.fingerprint() == filter_bank_encoder().fingerprint()
    assert encoder.fingerprint()["dim"] == 160
    assert np.dtype(np.float32) == encoder([torch.randn(800)])[0].numpy().dtype
