"""What every speech encoder offers."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Turns waveforms into frames; the frames of one do not depend on the others in the batch.

    The recipe ``extract_features`` calls a builder of an encoder with ``device=...`` and its
    arguments in the config.

    Attributes:
        dim: width of a frame.
        sampling_rate: sampling rate of the waveforms, in Hz.
        frames_per_second: frames that a second of audio gives.
    """

    dim: int
    sampling_rate: int
    frames_per_second: float

    def fingerprint(self) -> dict[str, Any]:
        """What decides the values of the frames, as JSON values.

        Returns:
            ``encoder`` (kind), ``id``, ``weights`` (digest or None), ``layer`` (or None),
            ``after_final_norm``, ``dim``, ``frames_per_second``.
        """
        ...

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Encode waveforms.

        Args:
            waveforms: 1-D float tensors at ``sampling_rate``, full scale is 1.0.

        Returns:
            One tensor [frames, dim] per waveform, in the same order, on the encoder's device.
        """
        ...
