"""Which speech vectors of a store are no pads, as a stage-1 projector sees it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from torchtune_speech import config
from torchtune_speech.data import chat_format, resolve_token, text_token_rows, write_kept
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore
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


class NonPads:
    """Says which speech vectors of an utterance are no pads, as a stage-1 projector sees it.

    Args:
        checkpoint: run or checkpoint of recipe ``speechmapper``.
        store: fingerprint of the frames that it is to read.
        process: where the projector runs.
        llm_dir: folder of the LLM. Default None: the one the checkpoint names.

    Attributes:
        fingerprint: of what decides, see :class:`KeptPositions`.

    Raises:
        InputError: if the checkpoint is of another recipe, or does not fit LLM or frames.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        store: Mapping[str, Any],
        *,
        process: Process,
        llm_dir: str | Path | None = None,
    ) -> None:
        cfg = OmegaConf.create(_read_stage_1(checkpoint)["config"])
        llm_dir = llm_dir or cfg.llm_dir
        found = {"llm": table_fingerprint(llm_dir), "store": store}
        check_checkpoint_fits(checkpoint, found, store=True)
        self._device = process.device
        self._model = build_projector_with_table(
            llm_dir=llm_dir,
            projector=config.instantiate(cfg.projector),
            projector_checkpoint=checkpoint,
            process=process,
        ).eval()
        chat = chat_format(config.instantiate(_tokenizer_in(cfg, llm_dir)))
        self._pad_token = resolve_token(cfg.pad_token, chat)
        self._is_text_v = text_token_rows(chat, len(self._model.table))
        self.fingerprint: dict[str, Any] = {
            "projector": projector_digest(checkpoint),
            "pad_token": self._pad_token,
            "pads": "all but text",
        }

    @torch.no_grad()
    def __call__(self, frames: Sequence[Tensor]) -> tuple[list[int], list[Tensor], Tensor]:
        """Look at utterances, all at a time, in float32 wherever it is called.

        Args:
            frames: encoder frames of each utterance, ``[t, d]``.

        Returns:
            Of each its number of speech vectors, the positions that are no pads, ascending, and
            whether all were pads (``[u]``), of which one is kept.
        """
        model, lengths_u = self._model, torch.tensor([len(f) for f in frames])
        with torch.autocast(self._device.type, enabled=False):
            vectors_nd = model.projector(
                torch.cat(list(frames)).float().to(self._device), lengths_u
            )
        counts = model.projector.output_length(lengths_u)
        keep_n, only_pads_u = non_pads(
            vectors_nd, counts, model.table, self._pad_token, self._is_text_v
        )
        positions = [part.nonzero()[:, 0] for part in keep_n.split(counts.tolist())]
        return counts.tolist(), positions, only_pads_u


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
    stage = _read_stage_1(checkpoint)
    store = FeatureStore(features, stage["fingerprints"]["store"]["frame_average"])
    non_pads_of = NonPads(
        checkpoint, store.fingerprint, process=start_process(device), llm_dir=llm_dir
    )
    kept: dict[str, tuple[int, Any]] = dict.fromkeys(store)  # in the order of the store
    only_pads = 0
    with tqdm(total=len(store), desc="keep", unit="utterance") as bar:
        for keys in _batches(store, max_frames):
            lengths, positions, only_pads_u = non_pads_of([store[key] for key in keys])
            arrays = [part.numpy() for part in positions]
            kept.update(zip(keys, zip(lengths, arrays, strict=True), strict=True))
            only_pads += int(only_pads_u.sum())
            bar.update(len(keys))
    write_kept(
        output,
        kept,
        fingerprint=non_pads_of.fingerprint,
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


def _tokenizer_in(cfg: DictConfig, llm_dir: str | Path) -> DictConfig:
    """The tokenizer's settings, whose files lie in the LLM's folder, wherever that is now."""
    before = Path(cfg.llm_dir)

    def moved(value: Any) -> Any:
        if not isinstance(value, str) or not Path(value).is_relative_to(before):
            return value
        return str(Path(llm_dir) / Path(value).relative_to(before))

    return OmegaConf.create({key: moved(value) for key, value in cfg.tokenizer.items()})


def _read_stage_1(checkpoint: str | Path) -> dict[str, Any]:
    """``stage.json`` of a run of recipe ``speechmapper``; of no other."""
    stage = read_stage(checkpoint)
    if stage["stage"] != "speechmapper":
        raise InputError(
            f"{find_checkpoint(checkpoint)}: written by recipe {stage['stage']}, whose projector "
            "need not know pads; give a run of recipe speechmapper"
        )
    return stage
