"""Manifest rows -> predictions."""

import contextlib
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torchtune.modules.peft import disable_adapter

from torchtune_speech.data import Sample, SpeechDataset, sample_to_row
from torchtune_speech.generation._cycles import TokenKinds
from torchtune_speech.generation._generate import generate
from torchtune_speech.generation._settings import Answer, Decoding, Prompt, speech_token_limit
from torchtune_speech.models import SpeechLLM


def plan_batches(
    dataset: SpeechDataset, indices: Sequence[int], batch_size: int, *, text_apart: bool = False
) -> list[list[int]]:
    """Which samples are decoded together.

    Samples of like prompt length come together, the longest first, so that memory runs out at once
    or not at all.

    Args:
        dataset: where the samples come from.
        indices: which samples.
        batch_size: samples decoded together.
        text_apart: keep samples without audio in batches of their own.

    Returns:
        Batches of indices.
    """
    lengths = {i: len(dataset.prompt(dataset.samples[i])) for i in indices}
    speech = {i: text_apart and dataset.samples[i].is_speech for i in indices}
    order = sorted(indices, key=lambda i: (not speech[i], -lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        full = not batches or len(batches[-1]) == batch_size
        if full or speech[batches[-1][0]] != speech[i]:
            batches.append([])
        batches[-1].append(i)
    return batches


def predict(
    model: SpeechLLM,
    dataset: SpeechDataset,
    batches: Sequence[Sequence[int]],
    settings: Decoding,
    *,
    speech_tokens_per_second: float | None = None,
    lora_on_text: bool = True,
    cache_dtype: torch.dtype = torch.float32,
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Answers to samples of a data set, batch by batch.

    Args:
        model: the model.
        dataset: where the samples come from.
        batches: samples decoded together, see :func:`plan_batches`.
        settings: of decoding.
        speech_tokens_per_second: answers to speech also have at most this many tokens for each
            second of it, see :func:`speech_token_limit`. Default None: the settings' limit alone.
        lora_on_text: False answers batches of text samples by the LLM without its LoRA.
        cache_dtype: dtype of the cached keys and values.

    Yields:
        The index and the prediction of each sample of a batch; see :func:`prediction_row`.
    """
    chat = dataset.chat
    kinds = None if settings.loops == "none" else TokenKinds.from_texts(chat.token_texts)
    for batch in batches:
        samples = [dataset.samples[i] for i in batch]
        limits = [_limit(dataset, sample, speech_tokens_per_second) for sample in samples]
        with_lora = lora_on_text or any(sample.is_speech for sample in samples)
        began = time.perf_counter()
        prompts = [_prompt(dataset, s, limit) for s, limit in zip(samples, limits, strict=True)]
        with contextlib.nullcontext() if with_lora else disable_adapter(model):
            answers = generate(
                model,
                prompts,
                settings,
                stop_ids=chat.stop_ids,
                placeholder_id=chat.placeholder_id,
                forbidden_ids=sorted(chat.special_ids),
                kinds=kinds,
                cache_dtype=cache_dtype,
            )
        seconds = (time.perf_counter() - began) / len(batch)
        texts = [chat.decode(answer.tokens) for answer in answers]
        yield [
            (i, prediction_row(s, text, a, len(p.tokens), seconds, _duration_s(dataset, s)))
            for i, s, p, a, text in zip(batch, samples, prompts, answers, texts, strict=True)
        ]


def _duration_s(dataset: SpeechDataset, sample: Sample) -> float | None:
    if not sample.is_speech:
        return None
    return round(sum(dataset.store.seconds(cut.key) for cut in sample.audio), 3)


def _limit(dataset: SpeechDataset, sample: Sample, tokens_per_second: float | None) -> int | None:
    if tokens_per_second is None or not sample.is_speech:
        return None
    return speech_token_limit(_duration_s(dataset, sample), tokens_per_second)


def _prompt(dataset: SpeechDataset, sample: Sample, limit: int | None) -> Prompt:
    seed = zlib.crc32(f"{sample.id}/{sample.task}".encode())
    return Prompt(
        dataset.prompt(sample),
        dataset.frames(sample),
        max_new_tokens=limit,
        seed=seed,
        kept=dataset.kept_positions(sample),
    )


def prediction_row(
    sample: Sample,
    text: str,
    answer: Answer,
    prompt_tokens: int,
    seconds: float,
    duration_s: float | None = None,
) -> dict[str, Any]:
    """A line of the predictions file.

    Args:
        sample: the manifest row.
        text: the model's answer.
        answer: the same in tokens, with the reason why it ended.
        prompt_tokens: positions that the LLM read before it answered, speech vectors included.
        seconds: decoding time of its batch, shared equally.
        duration_s: length of its audio, in seconds.

    Returns:
        What scoring needs to know: the manifest's columns, references included, and ``prediction``,
        ``finish_reason``, ``prompt_tokens``, ``num_tokens``, ``loops`` (where there were any) and
        ``seconds``.
    """
    row = {k: v for k, v in sample_to_row(sample).items() if k in _COLUMNS}
    row |= {
        "duration_s": duration_s,
        "prediction": text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": prompt_tokens,
        "num_tokens": len(answer.tokens),
        "loops": answer.loops or None,
        "seconds": round(seconds, 4),
    }
    return {k: v for k, v in row.items() if v is not None}


_COLUMNS = frozenset(
    "id task audio offset duration source_lang target_lang domain speaker source_text question "
    "choices target instruction track segment_of num_segments overlap_s".split()
)
