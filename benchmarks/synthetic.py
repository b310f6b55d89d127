"""Samples with real length distributions and random content: speech of 2 to 20 s and its twins."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

IGNORE = -100
PLACEHOLDER_ID, PAD_ID = 2, 0
FRAMES_PER_SECOND = 50 / 3  # SeamlessM4T-v2, averaged by 3
TOKENS_PER_SECOND = 3.5  # of a transcript
PROMPT_TOKENS = 22  # chat headers and a fixed instruction


class SyntheticDataset:
    """What :class:`SpeechDataset` gives, without files: as many samples as wanted.

    Seconds are log-normal with a median of 7, cut to 2 to 20; transcripts and translations have
    about 3.5 tokens a second, 10 to 80. A sample is headers, speech vectors, instruction, answer;
    its text twin has the transcript in place of the speech.

    Args:
        count: number of samples.
        vocab_size: tokens are drawn from all of it.
        frame_dim: width of a frame.
        output_length: frames to speech vectors.
        seed: of everything.
    """

    def __init__(
        self,
        count: int,
        *,
        vocab_size: int,
        frame_dim: int = 1024,
        output_length: Callable[[int], int] = int,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.seconds = np.clip(rng.lognormal(np.log(7.0), 0.55, count), 2, 20)
        spoken = self.seconds * TOKENS_PER_SECOND
        self.source, self.target = (
            np.clip(spoken * rng.lognormal(0, 0.15, count), 10, 80).astype(int) for _ in range(2)
        )
        self.frames = np.maximum((self.seconds * FRAMES_PER_SECOND).astype(int), 1)
        self.vectors = np.array([output_length(int(f)) for f in self.frames])
        self.vocab_size, self.seed = vocab_size, seed
        self.lengths = PROMPT_TOKENS + self.vectors + self.target
        # What the recipes read of a data set.
        self.samples = [SimpleNamespace(id=str(i), is_speech=True) for i in range(count)]
        self.chat = SimpleNamespace(pad_id=PAD_ID, placeholder_id=PLACEHOLDER_ID)
        self.store = SimpleNamespace(dim=frame_dim)
        self.targets = None

    def __len__(self) -> int:
        return len(self.samples)

    def twin_lengths(self) -> np.ndarray:
        """Length of each text twin, in tokens."""
        return PROMPT_TOKENS + self.source + self.target

    def item(self, index: int, twin: bool = False) -> Mapping[str, Any]:
        """A sample; see :meth:`SpeechDataset.item`."""
        rng = np.random.default_rng([self.seed, index])
        before, answer = 5, int(self.target[index])
        content = rng.integers(3, self.vocab_size, int(self.source[index]))
        if not twin:
            content = np.full(int(self.vectors[index]), PLACEHOLDER_ID)
        tokens = rng.integers(3, self.vocab_size, PROMPT_TOKENS + len(content) + answer)
        tokens[before : before + len(content)] = content
        labels = np.full(len(tokens), IGNORE)
        labels[-answer - 1 : -1] = tokens[-answer:]
        frames = []
        if not twin:
            generator = torch.Generator().manual_seed(index)
            frames = [torch.randn(int(self.frames[index]), self.store.dim, generator=generator)]
        return {
            "id": str(index),
            "tokens": tokens.tolist(),
            "labels": labels.tolist(),
            "keys": [str(index)] * len(frames),
            "frames": frames,
            "ctc": [[] for _ in frames],
        }
