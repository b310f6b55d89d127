"""Log-mel filter bank of SeamlessM4T, computed in torch for many waveforms at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import mel_filter_bank, window_function

from torchtune_speech.errors import InputError

SAMPLING_RATE = 16_000
NUM_MELS = 80
STRIDE = 2
WINDOW = 400
HOP = 160
FFT = 512
PREEMPHASIS = 0.97
# The smallest energy before the logarithm: the float32 epsilon, as in Kaldi.
MEL_FLOOR = 1.192092955078125e-07
VARIANCE_FLOOR = 1e-7
CPU_BLOCK = 1024
# Two windows make one frame. Shorter waveforms are padded with silence to this length.
MIN_SAMPLES = WINDOW + HOP * (STRIDE - 1)


class FilterBankEncoder(nn.Module):
    """The input features of SeamlessM4T as an encoder of its own: 160 values, 50 times a second.

    Kaldi's log-mel filter bank (80 bins, Povey window of 25 ms every 10 ms, DC removal,
    pre-emphasis), normalised to mean 0 and variance 1 per utterance and bin, two windows stacked
    into a frame. Equals ``transformers.SeamlessM4TFeatureExtractor`` (its unmasked frames), which
    works in numpy one utterance and one window at a time; here one FFT serves the whole batch, on
    any device. Each utterance gets the same frames in any batch.

    Waveforms shorter than 560 samples (35 ms) are padded with silence to that length, so that
    even one sample gives a frame; the Hugging Face extractor fails on them or gives none.

    Args:
        device: where to compute.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.dim = NUM_MELS * STRIDE
        self.sampling_rate = SAMPLING_RATE
        self.frames_per_second = SAMPLING_RATE / HOP / STRIDE
        # In double precision as in the original: in float32 the FFT's rounding shows in the
        # logarithm of bins that hold next to nothing (the top bins of an MP3, say).
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        mel_filters = mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=NUM_MELS,
            min_frequency=20,
            max_frequency=SAMPLING_RATE // 2,
            sampling_rate=SAMPLING_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        window = window_function(WINDOW, "povey", periodic=False)
        self.register_buffer("mel_filters", torch.as_tensor(mel_filters, dtype=dtype), False)
        self.register_buffer("window", torch.as_tensor(window, dtype=dtype), False)
        self.to(device)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the values of the frames."""
        return {
            "encoder": "filter_bank",
            "id": "seamless_m4t",
            "weights": None,
            "layer": None,
            "after_final_norm": False,
            "dim": self.dim,
            "frames_per_second": self.frames_per_second,
        }

    @torch.no_grad()
    def forward(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the frames of waveforms.

        Args:
            waveforms: 1-D float tensors at 16 kHz, full scale is 1.0.

        Returns:
            One float32 tensor [frames, 160] per waveform, with
            ``frames = ((samples - 400) // 160 + 1) // 2`` and at least 1.

        Raises:
            InputError: if a waveform is not 1-D or has no samples.
        """
        lengths = []
        for number, waveform in enumerate(waveforms):
            if waveform.dim() != 1 or len(waveform) == 0:
                raise InputError(
                    f"waveform {number}: shape is {list(waveform.shape)}; give one channel with at "
                    "least one sample"
                )
            samples = max(len(waveform), MIN_SAMPLES)
            lengths.append((samples - WINDOW) // HOP + 1)
        if not lengths:
            return []
        log_mels = self._log_mel(waveforms, lengths).split(lengths)
        return [self._normalise_and_stack(log_mel) for log_mel in log_mels]

    def _log_mel(self, waveforms: Sequence[Tensor], lengths: list[int]) -> Tensor:
        """Log-mel energies [sum(lengths), 80] of all windows of all waveforms."""
        device, dtype = self.window.device, self.window.dtype
        # Full scale as 16-bit integers have it, as in Kaldi.
        padded = pad_sequence([w.to(device, dtype) for w in waveforms], batch_first=True) * 2**15
        missing = max(lengths) * HOP + WINDOW - HOP - padded.shape[1]
        padded = nn.functional.pad(padded, (0, max(missing, 0)))
        windows = padded.unfold(1, WINDOW, HOP)
        number = torch.arange(windows.shape[1], device=device)
        valid = number < torch.tensor(lengths, device=device)[:, None]
        # On a CPU in blocks that stay in its cache, three times as fast as all at once.
        size = CPU_BLOCK if device.type == "cpu" else int(sum(lengths))
        blocks = valid.nonzero().split(size)
        return torch.cat([self._log_mel_of_windows(windows[b[:, 0], b[:, 1]]) for b in blocks])

    def _log_mel_of_windows(self, windows: Tensor) -> Tensor:
        """Log-mel energies [n, 80] of windows [n, 400]."""
        centred = windows - windows.mean(1, keepdim=True)
        emphasised = centred.new_zeros(len(centred), FFT)
        torch.sub(centred[:, 1:], centred[:, :-1], alpha=PREEMPHASIS, out=emphasised[:, 1:WINDOW])
        # The sample before the first is taken to be equal to it.
        emphasised[:, 0] = centred[:, 0] * (1 - PREEMPHASIS)
        emphasised[:, :WINDOW] *= self.window
        # The original rounds the spectrum to single precision.
        spectrum = torch.fft.rfft(emphasised).to(torch.complex64)
        dtype = self.window.dtype
        power = spectrum.real.to(dtype).square() + spectrum.imag.to(dtype).square()
        return (power @ self.mel_filters).clamp(min=MEL_FLOOR).log().float()

    def _normalise_and_stack(self, log_mel: Tensor) -> Tensor:
        """Frames [n // 2, 160] from the log-mel energies [n, 80] of one utterance."""
        # Differences in float32 as in the original, which shows where a bin hardly varies; sums in
        # double, as float32 sums go astray in long recordings.
        dtype = self.window.dtype
        centred = log_mel - log_mel.to(dtype).mean(0).float()
        variance = centred.to(dtype).square().sum(0) / (len(log_mel) - 1)
        normalised = centred / (variance.float() + VARIANCE_FLOOR).sqrt()
        frames = len(normalised) // STRIDE
        return normalised[: frames * STRIDE].reshape(frames, self.dim)


def filter_bank_encoder(device: torch.device | str = "cpu") -> FilterBankEncoder:
    """Build the 160-dim log-mel filter bank of SeamlessM4T.

    Args:
        device: where to compute. Default: CPU.

    Returns:
        The encoder; see :class:`FilterBankEncoder`.

    Example:
        >>> encoder = filter_bank_encoder()
        >>> frames_td = encoder([torch.randn(48_000)])[0]
        >>> frames_td.shape
        torch.Size([149, 160])
    """
    return FilterBankEncoder(device=device)
