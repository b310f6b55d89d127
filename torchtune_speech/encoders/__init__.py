"""Speech encoders: waveforms in, frames out. They know audio and no language model."""

from torchtune_speech.encoders._audio import audio_seconds, load_audio
from torchtune_speech.encoders._encoder import Encoder
from torchtune_speech.encoders._filter_bank import FilterBankEncoder, filter_bank_encoder
from torchtune_speech.encoders._seamless_m4t_v2 import (
    SeamlessM4TV2Encoder,
    seamless_m4t_v2_encoder,
)
from torchtune_speech.encoders._windows import fixed_windows, silence_windows

__all__ = [
    "Encoder",
    "FilterBankEncoder",
    "SeamlessM4TV2Encoder",
    "audio_seconds",
    "filter_bank_encoder",
    "fixed_windows",
    "load_audio",
    "seamless_m4t_v2_encoder",
    "silence_windows",
]
