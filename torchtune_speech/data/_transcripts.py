"""Transcripts as targets of the projector itself: a token of the LLM for each speech vector."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from torchtune_speech.data._chat import ChatFormat
from torchtune_speech.data._checks import num_frames, refuse_or_tell
from torchtune_speech.data._collate import StepBatches
from torchtune_speech.data._ctc_labels import CTCLabels
from torchtune_speech.data._sample import Sample
from torchtune_speech.data._targets import TranscriptTargets, refuse_dense
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore


class TranscriptBatch(TypedDict):
    """One forward pass of the projector.

    ``frames`` ``[t, d]`` holds all utterances one after the other, in the dtype of the store, and
    ``frame_lengths`` ``[u]`` their lengths. Of each speech vector that the projector makes of them,
    ``[n]``: ``target_tokens`` says whose embedding it is to be, ``is_pad`` whether that is the pad
    token, ``is_late_pad`` whether another pad stands before it. ``ctc_targets`` and
    ``ctc_target_lengths`` ``[u]`` are the labels of the utterances.
    """

    frames: Tensor
    frame_lengths: Tensor
    target_tokens: Tensor
    is_pad: Tensor
    is_late_pad: Tensor
    ctc_targets: Tensor
    ctc_target_lengths: Tensor
    ids: list[str]


class TranscriptDataset:
    """ASR rows as encoder frames and tokens, for a projector that is trained without the LLM.

    Args:
        samples: rows with one audio and its transcript each.
        chat: the LLM's chat format, for its tokens.
        store: encoder frames of the audio.
        output_length: frames of an utterance to its number of speech vectors
            (``projector.output_length``).
        pad_token: see :func:`pad_targets`.
        normalize: ``(text, language) -> text``, what of a transcript is to be learnt.
        max_frames: longest allowed utterance, in frames.
        on_too_long: ``fail`` or ``skip`` longer utterances, and transcripts of more tokens than
            the utterance has speech vectors; nothing is ever cut.
        ctc: label set of the auxiliary CTC loss; None for none.

    Attributes:
        samples: those that fit.
        lengths: their frames, ``[n]``: what a plan packs them by.

    Raises:
        InputError: naming the first row without a single audio, its frames or a transcript, or
            that is too long under ``fail``.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        chat: ChatFormat,
        store: FeatureStore,
        output_length: Callable[[int], int],
        pad_token: int,
        normalize: Callable[[str, str], str] = lambda text, lang: text,
        max_frames: int,
        on_too_long: str = "fail",
        ctc: CTCLabels | None = None,
    ) -> None:
        if on_too_long not in ("fail", "skip"):
            raise InputError(f"dataset.on_too_long: {on_too_long!r} is neither 'fail' nor 'skip'")
        self.chat, self.store, self.output_length = chat, store, output_length
        self.pad_token, self.ctc = pad_token, ctc
        self._targets = TranscriptTargets(chat, pad_token=pad_token, normalize=normalize)
        self.max_frames, self.on_too_long = max_frames, on_too_long
        show = tqdm(samples, desc="tokenising", unit="sample", disable=len(samples) < 50_000)
        sizes = np.array([self._size(s) for s in show], dtype=np.int32).reshape(-1, 3)
        kept = np.flatnonzero(self._fits(samples, *sizes.T))
        self.samples, self.lengths = [samples[i] for i in kept], sizes[kept, 0]

    def __len__(self) -> int:
        return len(self.samples)

    def text(self, index: int) -> str:
        """The normalised transcript of a sample."""
        return self._targets.text(self.samples[index])

    def frames(self, index: int) -> Tensor:
        """Encoder frames of a sample, ``[t, d]``."""
        return self.store[self.samples[index].audio[0].key]

    def item(self, index: int, twin: bool = False) -> dict[str, Any]:
        """One sample, complete.

        Args:
            index: number of the sample.
            twin: not used: a transcript has no text twin.

        Returns:
            ``id``, ``target_tokens`` (one for each speech vector), ``num_words`` (how many of them
            are the transcript's), ``frames`` and ``keys`` (lists of one), ``ctc`` (labels).
        """
        sample, frames, text = self.samples[index], self.frames(index), self.text(index)
        tokens = self.chat.encode(text)
        return {
            "id": sample.id,
            "target_tokens": self._targets.fill(tokens, self.output_length(len(frames))),
            "num_words": len(tokens),
            "frames": [frames],
            "keys": [sample.audio[0].key],
            "ctc": self.ctc.encode(text) if self.ctc else [],
        }

    def _size(self, sample: Sample) -> tuple[int, int, int]:
        """Frames, speech vectors and tokens."""
        tokens = self._targets.tokens(sample)
        frames = num_frames(self.store, sample, sample.audio[0].key)
        return frames, self.output_length(frames), len(tokens)

    def _fits(
        self, samples: Sequence[Sample], frames: np.ndarray, vectors: np.ndarray, tokens: np.ndarray
    ) -> np.ndarray:
        """Which samples can be learnt; under ``fail`` all have to."""
        long = frames > self.max_frames
        if long.any():
            refuse_or_tell(
                samples,
                long,
                lambda i: f"{frames[i]} frames, max_frames is {self.max_frames}",
                "raise max_frames",
                self.on_too_long,
            )
        fits = ~long & ~refuse_dense(samples, tokens, vectors, self.on_too_long)
        if not fits.any():
            raise InputError("dataset: no sample that fits is left; give it samples")
        return fits


class TranscriptBatches(StepBatches):
    """The batches that one process runs in a step of a :class:`TranscriptDataset`.

    As :class:`StepBatches`, of which it takes ``rank``, ``world_size``, ``accumulation``,
    ``augment`` and ``seed``. Rows only share the utterances out: a batch is packed without padding.
    """

    def _collate(
        self, rows: Sequence[Sequence[Mapping[str, Any]]], per_batch: int, has_speech: bool
    ) -> TranscriptBatch:
        return collate_transcripts([item for row in rows for item in row], self.dataset.store.dim)


def collate_transcripts(items: Sequence[Mapping[str, Any]], frame_dim: int) -> TranscriptBatch:
    """Lay utterances one after the other.

    Args:
        items: of :meth:`TranscriptDataset.item`; there may be none.
        frame_dim: width of a frame.

    Returns:
        The batch.
    """
    frames = [item["frames"][0] for item in items]
    tokens = [item["target_tokens"] for item in items]
    past_end = [
        np.arange(len(t)) - item["num_words"] for t, item in zip(tokens, items, strict=True)
    ]
    tokens_n, past_end_n = (
        torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))
        for parts in (tokens, past_end)
    )
    return TranscriptBatch(
        frames=torch.cat(frames) if frames else torch.zeros(0, frame_dim),
        frame_lengths=torch.tensor([len(f) for f in frames], dtype=torch.long),
        target_tokens=tokens_n,
        is_pad=past_end_n >= 0,
        is_late_pad=past_end_n > 0,
        ctc_targets=torch.tensor([label for item in items for label in item["ctc"]]).long(),
        ctc_target_lengths=torch.tensor([len(item["ctc"]) for item in items], dtype=torch.long),
        ids=[item["id"] for item in items],
    )
