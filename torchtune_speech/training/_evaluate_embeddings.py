"""What a projector has learnt without the LLM: which tokens its speech vectors are nearest to."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.data import TranscriptDataset, collate_transcripts, spread, text_token_rows
from torchtune_speech.evaluation import wer
from torchtune_speech.models import ProjectorWithTable
from torchtune_speech.modules import ctc_greedy, fast_autocast, nearest_tokens, read_as_pads
from torchtune_speech.training._objective import autocast, to_device
from torchtune_speech.training._process import Process


def evaluate_embeddings(
    model: ProjectorWithTable,
    dataset: TranscriptDataset,
    process: Process,
    *,
    num_samples: int,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    num_examples: int = 3,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores and examples on samples spread evenly over a data set.

    A vector is transcribed as the token whose embedding has the largest cosine with it; what is no
    text is a pad (:func:`read_as_pads`) and left out. Whatever is learnt of a transcript, words are
    compared under the normaliser "basic", lower case without punctuation. Every process transcribes
    the same samples.

    Args:
        model: projector and table.
        dataset: dev set.
        process: this process.
        num_samples: samples to transcribe.
        batch_size: samples projected together.
        dtype: precision of the matrix products.
        num_examples: transcriptions returned to look at.

    Returns:
        The scores: ``nearest_token`` with what :func:`wer` gives, ``word_cosine`` (mean cosine
        with the target at the transcript's tokens) and ``pads_found`` (share of the pad positions
        that are read as pads); ``ctc``, the word error rate of the projector's CTC head,
        where the data set has CTC labels; ``n``. And the examples.
    """
    chosen = spread(num_samples, len(dataset))
    heard: list[str] = []
    spelled: list[str] = []
    sums = torch.zeros(4, dtype=torch.float64)
    was_training = model.training
    model.eval()
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        texts, ctc_texts, of_part = _transcribe(model, dataset, part, process.device, dtype)
        heard, spelled, sums = heard + texts, spelled + ctc_texts, sums + of_part
    model.train(was_training)
    references = [dataset.text(i) for i in chosen]
    cosine, words, found, pads = sums.tolist()
    scores: dict[str, Any] = {
        "nearest_token": {
            **wer(references, heard, normalizer="basic"),
            "word_cosine": cosine / max(words, 1),
            "pads_found": found / max(pads, 1),
        }
    }
    if spelled:
        scores["ctc"] = wer(references, spelled, normalizer="basic")
    rows = [
        {
            "id": dataset.samples[i].id,
            "task": dataset.samples[i].task,
            "target_lang": dataset.samples[i].source_lang,
            "target": reference,
            "prediction": text,
        }
        for i, reference, text in zip(chosen, references, heard, strict=True)
    ]
    examples = [rows[i] for i in spread(num_examples, len(rows))]
    return {"n": len(rows)} | scores, examples


@torch.no_grad()
def _transcribe(
    model: ProjectorWithTable,
    dataset: TranscriptDataset,
    indices: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[str], list[str], Tensor]:
    """Texts of the nearest tokens, texts of the CTC head, and what the other scores are made of."""
    items = [dataset.item(i) for i in indices]
    batch = to_device(collate_transcripts(items, dataset.store.dim), device)
    frames, lengths_u = batch["frames"].float(), batch["frame_lengths"]
    with autocast(device, dtype), fast_autocast(device.type):
        output = model.projector(frames, lengths_u, return_ctc=dataset.ctc is not None)
    vectors_nd, ctc_logits = output if dataset.ctc is not None else (output, None)
    nearest_n, is_pad_n = nearest_tokens(vectors_nd, model.table), batch["is_pad"]
    targets_nd = model.table[batch["target_tokens"]].float()
    cosine_n = F.cosine_similarity(vectors_nd.float(), targets_nd, dim=-1)
    is_text_v = text_token_rows(dataset.chat, len(model.table))
    is_found_n = read_as_pads(nearest_n, model.table, dataset.pad_token, is_text_v)
    found = is_found_n[is_pad_n]
    sums = (cosine_n[~is_pad_n].sum(), (~is_pad_n).sum(), found.sum(), is_pad_n.sum())
    vectors_u = dataset.output_length(lengths_u).tolist()
    parts = zip(nearest_n.split(vectors_u), is_found_n.split(vectors_u), strict=True)
    texts = [dataset.chat.decode(part[~is_found].tolist()) for part, is_found in parts]
    ctc_texts = []
    if ctc_logits is not None:
        labels = ctc_greedy(ctc_logits, model.projector.ctc_length(lengths_u))
        ctc_texts = [dataset.ctc.decode(x) for x in labels]
    return texts, ctc_texts, torch.stack([s.double().cpu() for s in sums])
