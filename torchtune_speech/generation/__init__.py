"""Batched decoding with caches, and predictions for a manifest."""

from torchtune_speech.generation._audio import answer_audio
from torchtune_speech.generation._generate import Answer, Prompt, generate
from torchtune_speech.generation._partial import PartialPredictions
from torchtune_speech.generation._predict import predict, prediction_row

__all__ = [
    "Answer",
    "PartialPredictions",
    "Prompt",
    "answer_audio",
    "generate",
    "predict",
    "prediction_row",
]
