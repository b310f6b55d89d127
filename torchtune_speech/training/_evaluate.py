"""Decoding a few dozen dev samples while training."""

from collections.abc import Sequence
from typing import Any

import torch

from torchtune_speech.data import SpeechDataset, spread
from torchtune_speech.evaluation import score, wer
from torchtune_speech.generation import Decoding, plan_batches, predict
from torchtune_speech.models import SpeechLLM
from torchtune_speech.modules import ctc_greedy
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
        The report of :func:`score`, with ``ctc`` (word error rate of the projector's CTC head)
        where the data set has CTC labels and transcripts; and the examples.
    """
    chosen = spread(num_samples, len(dataset))
    report: dict[str, Any] = {}
    if dataset.ctc is not None:
        transcripts = ctc_transcripts(
            model, dataset, chosen, process.device, batch_size=batch_size, dtype=dtype
        )
        if transcripts:
            references = [dataset.samples[i].transcript for i in transcripts]
            report["ctc"] = wer(references, list(transcripts.values()), normalizer="basic")
    rows: dict[int, dict[str, Any]] = {}
    with autocast(process.device, dtype):
        batches = plan_batches(dataset, chosen, batch_size)
        for batch in predict(model, dataset, batches, Decoding(max_new_tokens), cache_dtype=dtype):
            rows.update(batch)
    examples = [rows[chosen[i]] for i in spread(num_examples, len(chosen))]
    scores = score([rows[i] for i in chosen], intervals=False, ter=False)
    return scores | report, examples


@torch.no_grad()
def ctc_transcripts(
    model: SpeechLLM,
    dataset: SpeechDataset,
    indices: Sequence[int],
    device: torch.device,
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> dict[int, str]:
    """What the projector's CTC head hears, without the LLM: best label of each frame.

    Args:
        model: a model whose projector has a CTC head.
        dataset: with CTC labels.
        indices: samples; those without a single audio cut and its transcript are left out.
        device: where the model computes.
        batch_size: recordings that the projector reads together.
        dtype: precision of the matrix products.

    Returns:
        Sample number to transcript; several samples of one recording are transcribed once.
    """
    heard: dict[str, int] = {}
    for i in indices:
        sample = dataset.samples[i]
        if len(sample.audio) == 1 and sample.transcript:
            heard.setdefault(sample.audio[0].key, i)
    was_training = model.training
    model.eval()
    texts: dict[int, str] = {}
    tokens = torch.zeros(1, 1, dtype=torch.long, device=device)
    for start in range(0, len(heard), batch_size):
        batch = list(heard.values())[start : start + batch_size]
        frames = [dataset.frames(dataset.samples[i])[0].float() for i in batch]
        lengths = torch.tensor([len(f) for f in frames])
        with autocast(device, dtype):
            logits, _ = model(
                tokens, frames=torch.cat(frames).to(device), frame_lengths=lengths, only_ctc=True
            )
        labels = ctc_greedy(logits, model.projector.ctc_length(lengths))
        texts |= {i: dataset.ctc.decode(x) for i, x in zip(batch, labels, strict=True)}
    model.train(was_training)
    return texts
