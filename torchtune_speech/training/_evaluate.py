"""Decoding a few dozen dev samples while training."""

from typing import Any

import numpy as np
import torch

from torchtune_speech.data import SpeechDataset
from torchtune_speech.evaluation import score
from torchtune_speech.generation import predict
from torchtune_speech.models import SpeechLLM
from torchtune_speech.training._objective import autocast
from torchtune_speech.training._process import Process


def evaluate(
    model: SpeechLLM,
    dataset: SpeechDataset,
    process: Process,
    *,
    num_samples: int,
    max_new_tokens: int,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    num_examples: int = 3,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores and examples on samples spread evenly over a data set.

    Every process decodes the same samples: with sharded weights all must run the same passes, and
    a few dozen samples are not worth splitting.

    Args:
        model: the model.
        dataset: dev set.
        process: this process.
        num_samples: samples to decode.
        max_new_tokens: longest answer, in tokens.
        batch_size: samples decoded together.
        dtype: precision of the matrix products.
        num_examples: predictions returned to look at.

    Returns:
        The report of :func:`score`, and the examples.
    """
    count = min(num_samples, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
    rows: dict[int, dict[str, Any]] = {}
    with autocast(process.device, dtype):
        for batch in predict(
            model,
            dataset,
            chosen,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            cache_dtype=dtype,
        ):
            rows.update(batch)
    examples = [rows[i] for i in chosen[:: max(1, count // max(num_examples, 1))][:num_examples]]
    return score([rows[i] for i in chosen]), examples
