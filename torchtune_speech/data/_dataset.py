"""Samples of a manifest as tokens, labels and encoder frames."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from torchtune_speech.data._chat import ChatFormat
from torchtune_speech.data._checks import num_frames, refuse_or_tell
from torchtune_speech.data._ctc_labels import CTCLabels
from torchtune_speech.data._interleave import InterleaveSpeech
from torchtune_speech.data._kept import KeptPositions
from torchtune_speech.data._prompts import PromptTemplates
from torchtune_speech.data._sample import Sample, text_twin
from torchtune_speech.data._targets import TranscriptTargets, refuse_dense
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore


class SpeechDataset:
    """Manifest rows, ready to be packed.

    Args:
        samples: the manifest's rows.
        chat: the LLM's chat format.
        templates: prompts of the tasks.
        store: encoder frames of the audio; None when no sample has any.
        output_length: frames of an utterance to its number of speech vectors
            (``projector.output_length``, the only source of that number).
        kept: which of these vectors reach the LLM; None for all.
        max_seq_len: longest allowed sample, in tokens.
        on_too_long: ``fail`` or ``skip`` samples above that, and with ``targets`` those whose
            transcript has more tokens than speech vectors; they are never cut.
        with_answers: whether a sample's answer counts in its length; where it has none it does not
            either way. Default True, as in training; generation reads prompts alone.
        ctc: label set of the auxiliary CTC loss; None for no CTC targets.
        normalize: ``(text, language) -> text``, what of a transcript the CTC labels are of. Default
            all.
        targets: makes the token whose embedding each speech vector is to be; every sample with
            speech then needs one audio and its transcript. None for no such targets.

    Raises:
        InputError: if audio is not in the store, a sample is too long under ``fail``, or
            ``targets`` cannot be made of it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        chat: ChatFormat,
        templates: PromptTemplates,
        store: FeatureStore | None = None,
        output_length: Callable[[int], int] = int,
        kept: KeptPositions | None = None,
        max_seq_len: int,
        on_too_long: str = "fail",
        with_answers: bool = True,
        ctc: CTCLabels | None = None,
        normalize: Callable[[str, str], str] = lambda text, lang: text,
        targets: TranscriptTargets | None = None,
    ) -> None:
        self.chat, self.templates, self.store = chat, templates, store
        self.output_length, self.kept = output_length, kept
        self.ctc, self.normalize, self.targets = ctc, normalize, targets
        self.max_seq_len, self.on_too_long = max_seq_len, on_too_long
        self.with_answers = with_answers
        self._interleave = InterleaveSpeech(chat)
        if kept is not None and store is not None:
            kept.check_store(store)
        if kept is not None and not any(sample.is_speech for sample in samples):
            raise InputError(
                f"dataset.kept: {kept.path} says which speech vectors are read, but no sample has "
                "speech; set it to null"
            )
        self.samples, self.lengths = _fitting(samples, self._num_tokens, max_seq_len, on_too_long)
        if targets is not None:
            self._drop_dense(targets)

    def __len__(self) -> int:
        return len(self.samples)

    def twin_lengths(self) -> np.ndarray:
        """Length of each sample's text twin, in tokens, 0 where there is none, ``[n]``.

        Twins of a transcript that is longer than its speech may be too long, as samples may;
        skipped ones count as none.

        Raises:
            InputError: if a twin is too long under ``fail``.
        """
        twins = (
            text_twin(s) for s in tqdm(self.samples, desc="text twins", disable=len(self) < 50_000)
        )
        lengths = np.array([self._num_tokens(t) if t else 0 for t in twins], dtype=np.int32)
        too_long = lengths > self.max_seq_len
        if too_long.any():
            refuse_or_tell(
                self.samples,
                too_long,
                lambda i: (
                    f"its text twin has {lengths[i]} tokens, max_seq_len is {self.max_seq_len}"
                ),
                "raise max_seq_len",
                self.on_too_long,
                what="text twins",
            )
        return np.where(too_long, 0, lengths)

    def item(self, index: int, twin: bool = False) -> dict[str, Any]:
        """One sample, complete.

        Args:
            index: number of the sample.
            twin: its text twin instead.

        Returns:
            ``id``, ``tokens``, ``labels``, ``frames`` (a tensor ``[t, d]`` for each audio cut),
            ``keys`` (of the cuts in the store), ``vectors`` (what the projector makes of each cut),
            ``kept`` (positions among these that reach the LLM, for each cut; None for all),
            ``ctc`` (labels of each cut; empty lists where the transcript of a single cut is not
            known) and ``target_tokens`` (an array for each cut, a token for each of its vectors,
            kept or not; None without ``targets``).
        """
        sample = self.samples[index]
        if twin:
            sample = text_twin(sample)
        encoded = self.encode(sample)
        keys = [cut.key for cut in sample.audio]
        labels = (
            self.ctc.encode(self.normalize(sample.transcript, sample.source_lang))
            if self.ctc and sample.transcript and len(keys) == 1
            else []
        )
        return {
            "id": sample.id,
            "tokens": encoded["tokens"],
            "labels": encoded["labels"],
            "keys": keys,
            "frames": [self.store[key] for key in keys],
            "vectors": [self._num_vectors(sample, key) for key in keys],
            "kept": self.kept_positions(sample),
            "ctc": [labels for _ in keys],
            "target_tokens": self._target_tokens(sample),
        }

    def prompt(self, sample: Sample) -> list[int]:
        """Tokens of a sample's prompt, up to where the answer begins."""
        return self.encode(sample, inference=True)["tokens"]

    def frames(self, sample: Sample) -> list[Tensor]:
        """Encoder frames of a sample's audio cuts, ``[t, d]`` each."""
        return [self.store[cut.key] for cut in sample.audio]

    def kept_positions(self, sample: Sample) -> list[Tensor] | None:
        """Which speech vectors of each of a sample's audio cuts reach the LLM; None for all."""
        if self.kept is None:
            return None
        return [self._positions(sample, cut.key) for cut in sample.audio]

    def encode(self, sample: Sample, inference: bool = False) -> Mapping[str, Any]:
        """Tokens and labels of a sample, without its frames.

        Args:
            sample: a manifest row.
            inference: the prompt alone, with the assistant's turn opened.

        Returns:
            ``tokens`` and ``labels``.
        """
        messages = self.templates.messages(sample, with_target=not inference)
        count = self._num_vectors if self.kept is None else self._num_kept
        lengths = [count(sample, cut.key) for cut in sample.audio]
        return self._interleave(
            {"messages": messages, "speech_lengths": lengths}, inference=inference
        )

    def _target_tokens(self, sample: Sample) -> list[np.ndarray] | None:
        if self.targets is None:
            return None
        if not sample.is_speech:
            return []
        vectors = self._num_vectors(sample, sample.audio[0].key)
        return [self.targets.fill(self.targets.tokens(sample), vectors)]

    def _drop_dense(self, targets: TranscriptTargets) -> None:
        """Leave out samples that have more tokens to learn than speech vectors."""
        speech = [i for i, s in enumerate(self.samples) if s.is_speech]
        samples = [self.samples[i] for i in speech]
        tokens = np.array([len(targets.tokens(s)) for s in samples], dtype=np.int64)
        vectors = np.array([self._num_vectors(s, s.audio[0].key) for s in samples], dtype=np.int64)
        dense = refuse_dense(samples, tokens, vectors, self.on_too_long)
        kept = np.setdiff1d(np.arange(len(self)), np.array(speech, dtype=np.int64)[dense])
        if not len(kept):
            raise InputError("dataset: no sample that fits is left; give it samples")
        self.samples, self.lengths = [self.samples[i] for i in kept], self.lengths[kept]

    def _num_tokens(self, sample: Sample) -> int:
        without = not (self.with_answers and sample.target)
        return len(self.encode(sample, inference=without)["tokens"])

    def _num_vectors(self, sample: Sample, key: str) -> int:
        return self.output_length(self._num_frames(sample, key))

    def _positions(self, sample: Sample, key: str) -> Tensor:
        return self.kept.positions(key, self._num_vectors(sample, key))

    def _num_kept(self, sample: Sample, key: str) -> int:
        return len(self._positions(sample, key))

    def _num_frames(self, sample: Sample, key: str) -> int:
        if self.store is None:
            raise InputError(
                f"sample {sample.id}: has audio, but no feature store was given; "
                "set dataset.features, or dataset.text_twins=true to read transcripts instead"
            )
        return num_frames(self.store, sample, key)


def _fitting(
    samples: Sequence[Sample],
    num_tokens: Callable[[Sample], int],
    max_seq_len: int,
    on_too_long: str,
) -> tuple[list[Sample], np.ndarray]:
    if on_too_long not in ("fail", "skip"):
        raise InputError(f"dataset.on_too_long: {on_too_long!r} is neither 'fail' nor 'skip'")
    show = tqdm(samples, desc="tokenising", unit="sample", disable=len(samples) < 50_000)
    lengths = np.array([num_tokens(s) for s in show], dtype=np.int32)
    too_long = lengths > max_seq_len
    if not too_long.any():
        return list(samples), lengths
    kept = np.flatnonzero(~too_long)
    if not len(kept) and on_too_long == "skip":
        raise InputError(f"max_seq_len: every sample is longer than {max_seq_len} tokens; raise it")
    refuse_or_tell(
        samples,
        too_long,
        lambda i: f"{lengths[i]} tokens, max_seq_len is {max_seq_len}",
        "raise max_seq_len",
        on_too_long,
    )
    return [samples[i] for i in kept], lengths[kept]
