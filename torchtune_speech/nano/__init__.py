"""A small world that stands in for Llama, SeamlessM4T and their corpora where nothing can be had.

Sentences from a grammar with exact translations and questions, spoken by espeak-ng voices; a
tokenizer in Llama-3's file format; a small Llama-3.1 pretrained on text alone. Every file has the
format of the real one, so that the same recipes run on both.
"""

from torchtune_speech.nano._voices import (
    DEV_VOICES,
    TEST_VOICES,
    TRAIN_VOICES,
    Utterance,
    synthesize,
    write_speech,
)
from torchtune_speech.nano._world import build_world

__all__ = [
    "DEV_VOICES",
    "TEST_VOICES",
    "TRAIN_VOICES",
    "Utterance",
    "build_world",
    "synthesize",
    "write_speech",
]
