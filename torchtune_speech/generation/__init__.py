"""Batched decoding with caches, and predictions for a manifest."""

from torchtune_speech.generation._audio import answer_audio, audio_prompt
from torchtune_speech.generation._choose import forbid, sample
from torchtune_speech.generation._cycles import Cycle, CycleDetector, LoopDetector, TokenKinds
from torchtune_speech.generation._generate import generate
from torchtune_speech.generation._join import join_segment_rows, join_texts
from torchtune_speech.generation._partial import PartialPredictions
from torchtune_speech.generation._predict import plan_batches, predict, prediction_row
from torchtune_speech.generation._settings import (
    LOOP_POLICIES,
    Answer,
    Decoding,
    Prompt,
    speech_token_limit,
)

__all__ = [
    "LOOP_POLICIES",
    "Answer",
    "Cycle",
    "CycleDetector",
    "Decoding",
    "LoopDetector",
    "PartialPredictions",
    "Prompt",
    "TokenKinds",
    "answer_audio",
    "audio_prompt",
    "forbid",
    "generate",
    "join_segment_rows",
    "join_texts",
    "plan_batches",
    "predict",
    "prediction_row",
    "sample",
    "speech_token_limit",
]
