"""Manifest rows -> predictions."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torchtune_speech.data import Sample, SpeechDataset
from torchtune_speech.generation._generate import Prompt, generate
from torchtune_speech.models import SpeechLLM


def predict(
    model: SpeechLLM,
    dataset: SpeechDataset,
    indices: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    cache_dtype: torch.dtype = torch.float32,
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Answers to samples of a data set, batch by batch.

    Samples are batched with others of like prompt length, so that little is padded; the batches
    come in that order.

    Args:
        model: the model.
        dataset: where the samples come from.
        indices: which samples.
        max_new_tokens: longest answer, in tokens.
        batch_size: samples decoded together.
        cache_dtype: dtype of the cached keys and values.

    Yields:
        The index and the prediction of each sample of a batch; see :func:`prediction_row`.
    """
    prompts = {i: dataset.prompt(dataset.samples[i]) for i in indices}
    order = sorted(indices, key=lambda i: -len(prompts[i]))
    chat = dataset.chat
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        began = time.perf_counter()
        answers = generate(
            model,
            [Prompt(prompts[i], dataset.frames(dataset.samples[i])) for i in batch],
            max_new_tokens=max_new_tokens,
            stop_ids=chat.stop_ids,
            pad_id=chat.pad_id,
            placeholder_id=chat.placeholder_id,
            forbidden_ids=sorted(chat.special_ids),
            cache_dtype=cache_dtype,
        )
        seconds = (time.perf_counter() - began) / len(batch)
        yield [
            (
                i,
                prediction_row(
                    dataset.samples[i],
                    chat.decode(a.tokens),
                    a.finish_reason,
                    len(a.tokens),
                    seconds,
                ),
            )
            for i, a in zip(batch, answers, strict=True)
        ]


def prediction_row(
    sample: Sample, text: str, finish_reason: str, num_tokens: int, seconds: float
) -> dict[str, Any]:
    """A line of the predictions file.

    Args:
        sample: the manifest row.
        text: the model's answer.
        finish_reason: ``stop`` or ``length``.
        num_tokens: tokens generated.
        seconds: decoding time of its batch, shared equally.

    Returns:
        What scoring needs to know, references included.
    """
    row = {
        "id": sample.id,
        "task": sample.task,
        "source_lang": sample.source_lang,
        "target_lang": sample.target_lang,
        "domain": sample.domain,
        "speaker": sample.speaker,
        "question": sample.question,
        "target": sample.target,
        "prediction": text,
        "finish_reason": finish_reason,
        "num_tokens": num_tokens,
        "seconds": round(seconds, 4),
    }
    return {k: v for k, v in row.items() if v is not None}
