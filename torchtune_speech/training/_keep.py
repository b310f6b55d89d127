"""Which speech vectors of a store are no pads, as a stage-1 projector sees it."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from torchtune_speech import config
from torchtune_speech.data import chat_format, resolve_token, text_rows, write_kept
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore
from torchtune_speech.models import ProjectorWithTable
from torchtune_speech.modules import non_pads
from torchtune_speech.training._build import build_projector_with_table
from torchtune_speech.training._check import check_checkpoint_fits
from torchtune_speech.training._checkpoint import (
    find_checkpoint,
    projector_digest,
    read_stage,
)
from torchtune_speech.training._process import Process, start_process
from torchtune_speech.training._run import table_fingerprint


@dataclasses.dataclass(frozen=True, slots=True)
class KeepReport:
    """What dropping pads saves.

    Args:
        utterances: in the store.
        vectors: speech vectors of all of them: what the LLM would read.
        kept: those that are no pads: what it reads.
        only_pads: utterances of pads alone, of which one vector is kept.
    """

    utterances: int
    vectors: int
    kept: int
    only_pads: int


def keep_non_pads(
    checkpoint: str | Path,
    *,
    features: str | Path,
    output: str | Path,
    llm_dir: str | Path | None = None,
    device: str = "cpu",
    max_frames: int = 16_384,
) -> KeepReport:
    """Write down which speech vectors of each utterance of a store are no pads.

    Args:
        checkpoint: run or checkpoint of recipe ``speechmapper``.
        features: folder of the feature store.
        output: Parquet file to write; see :class:`KeptPositions`.
        llm_dir: folder of the LLM. Default None: the one the checkpoint names.
        device: where the projector runs.
        max_frames: frames that it reads at a time, unless an utterance is longer.

    Returns:
        What is saved.

    Raises:
        InputError: if the checkpoint is of another recipe, or does not fit LLM or store.
    """
    folder = find_checkpoint(checkpoint)
    stage = read_stage(folder)
    if stage["stage"] != "speechmapper":
        raise InputError(
            f"{folder}: written by recipe {stage['stage']}, whose projector need not know pads; "
            "give a run of recipe speechmapper"
        )
    cfg = OmegaConf.create(stage["config"])
    llm_dir = llm_dir or cfg.llm_dir
    store = FeatureStore(features, stage["fingerprints"]["store"]["frame_average"])
    found = {"llm": table_fingerprint(llm_dir), "store": store.fingerprint}
    check_checkpoint_fits(folder, found, store=True)
    process = start_process(device)
    model = build_projector_with_table(
        llm_dir=llm_dir,
        projector=config.instantiate(cfg.projector),
        projector_checkpoint=folder,
        process=process,
    ).eval()
    chat = chat_format(config.instantiate(cfg.tokenizer))
    pad_token, is_text_v = resolve_token(cfg.pad_token, chat), text_rows(chat, len(model.table))
    kept: dict[str, tuple[int, Any]] = dict.fromkeys(store)  # in the order of the store
    only_pads = 0
    with tqdm(total=len(store), desc="keep", unit="utterance") as bar:
        for keys in _batches(store, max_frames):
            lengths_u, positions, only_pads_u = _kept(
                model, [store[key] for key in keys], pad_token, is_text_v, process
            )
            kept.update(zip(keys, zip(lengths_u, positions, strict=True), strict=True))
            only_pads += int(only_pads_u.sum())
            bar.update(len(keys))
    write_kept(
        output,
        kept,
        fingerprint={
            "projector": projector_digest(folder),
            "pad_token": pad_token,
            "pads": "all but text",
        },
        store_fingerprint=store.fingerprint,
        checksums={key: store.checksum(key) for key in kept},
    )
    return KeepReport(
        utterances=len(kept),
        vectors=sum(vectors for vectors, _ in kept.values()),
        kept=sum(len(positions) for _, positions in kept.values()),
        only_pads=only_pads,
    )


def _batches(store: FeatureStore, max_frames: int) -> Iterator[list[str]]:
    """Utterances of like length, the longest first, so that memory runs out at once or never."""
    batch: list[str] = []
    frames = 0
    for key in sorted(store, key=store.num_frames, reverse=True):
        length = store.num_frames(key)
        if batch and frames + length > max_frames:
            yield batch
            batch, frames = [], 0
        batch.append(key)
        frames += length
    if batch:
        yield batch


@torch.no_grad()
def _kept(
    model: ProjectorWithTable,
    frames: Sequence[Tensor],
    pad_token: int,
    is_text_v: Tensor,
    process: Process,
) -> tuple[list[int], list[Any], Tensor]:
    """Of each utterance its vectors and the positions kept; and which were pads alone."""
    frame_lengths = torch.tensor([len(f) for f in frames])
    vectors_nd = model.projector(torch.cat(frames).float().to(process.device), frame_lengths)
    lengths_u = model.projector.output_length(frame_lengths)
    keep_n, only_pads_u = non_pads(vectors_nd, lengths_u, model.table, pad_token, is_text_v)
    parts = keep_n.split(lengths_u.tolist())
    return lengths_u.tolist(), [part.nonzero()[:, 0].numpy() for part in parts], only_pads_u
