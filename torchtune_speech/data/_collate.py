"""Rows of samples -> the batch that a training step reads."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchtune_speech.data._dataset import SpeechDataset
from torchtune_speech.data._interleave import IGNORE_INDEX
from torchtune_speech.data._kept import keep_index
from torchtune_speech.data._plan import Step
from torchtune_speech.errors import InputError
from torchtune_speech.modules import spec_augment


class Batch(TypedDict):
    """One forward pass.

    ``tokens``, ``labels``, ``input_pos`` and ``document_ids`` are ``[b, s]``; ``labels`` holds the
    next token where it is supervised and -100 elsewhere; ``select`` ``[m]`` holds the flat
    positions of the supervised ones; ``input_pos`` restarts in each sample; ``document_ids``
    counts the samples of a row from 1, 0 is padding. ``frames`` ``[t, d]`` holds all utterances one
    after the other, in the dtype of the store; ``frame_lengths`` ``[u]`` their lengths,
    ``speech_index`` ``[n]`` the flat positions of the placeholders in the same order; the three are
    None in a step without speech. ``keep_index`` ``[n]`` says which of the projector's vectors,
    concatenated, go there; None for all. ``ctc_targets`` and ``ctc_target_lengths`` ``[u]`` are the
    labels of the utterances. ``target_tokens`` says for each of the projector's vectors, kept or
    not, whose embedding it is to be; None where that is not wanted, and in a step without speech.
    """

    tokens: Tensor
    labels: Tensor
    select: Tensor
    input_pos: Tensor
    document_ids: Tensor
    frames: Tensor | None
    frame_lengths: Tensor | None
    speech_index: Tensor | None
    keep_index: Tensor | None
    ctc_targets: Tensor | None
    ctc_target_lengths: Tensor | None
    target_tokens: Tensor | None
    ids: list[str]


def collate_rows(
    rows: Sequence[Sequence[Mapping[str, Any]]],
    *,
    pad_id: int,
    placeholder_id: int,
    seq_len: int | None = None,
    num_rows: int | None = None,
    frame_dim: int | None = None,
    with_targets: bool = False,
) -> Batch:
    """Lay samples out in rows.

    Args:
        rows: items of :meth:`SpeechDataset.item`, row by row; a row may be empty.
        pad_id: token id of padding, at the end of a row only.
        placeholder_id: token id that stands for a speech vector.
        seq_len: length of a row; the longest row of the batch when None.
        num_rows: rows of the batch, the last of them empty if need be; as many as there are
            when None.
        frame_dim: width of a frame. When given, the batch has speech tensors even if it
            happens to hold no utterance.
        with_targets: whether the items have target tokens.

    Returns:
        The batch.
    """
    if seq_len is None:
        seq_len = max((sum(len(item["tokens"]) for item in row) for row in rows), default=0) or 1
    shape = (max(len(rows), num_rows or 1), seq_len)
    tokens, labels = np.full(shape, pad_id), np.full(shape, IGNORE_INDEX)
    input_pos, document_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, item in enumerate(row, 1):
            end = start + len(item["tokens"])
            tokens[r, start:end] = item["tokens"]
            labels[r, start:end] = item["labels"]
            input_pos[r, start:end] = np.arange(end - start)
            document_ids[r, start:end] = number
            start = end
    items = [item for row in rows for item in row]
    batch = Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        # Here, where it is on the CPU: on a GPU it would have to be waited for.
        select=torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX)),
        input_pos=torch.from_numpy(input_pos),
        document_ids=torch.from_numpy(document_ids),
        frames=None,
        frame_lengths=None,
        speech_index=None,
        keep_index=None,
        ctc_targets=None,
        ctc_target_lengths=None,
        target_tokens=None,
        ids=[item["id"] for item in items],
    )
    if frame_dim is not None or any(item["frames"] for item in items):
        batch.update(_speech_tensors(items, tokens, placeholder_id, frame_dim))
        if with_targets:
            targets = [t for item in items for t in item["target_tokens"]]
            batch["target_tokens"] = torch.from_numpy(
                np.concatenate([np.zeros(0, np.int64), *targets])
            )
    return batch


def _speech_tensors(
    items: Sequence[Mapping[str, Any]],
    tokens: np.ndarray,
    placeholder_id: int,
    frame_dim: int | None,
) -> dict[str, Tensor | None]:
    frames = [f for item in items for f in item["frames"]]
    targets = [t for item in items for t in item["ctc"]]
    return {
        # In the dtype of the store: the projector casts them, and bf16 is half as much to move.
        "frames": torch.cat(frames) if frames else torch.zeros(0, frame_dim),
        "frame_lengths": torch.tensor([len(f) for f in frames], dtype=torch.long),
        "speech_index": torch.from_numpy(np.flatnonzero(tokens == placeholder_id)),
        "keep_index": _keep_index(items),
        "ctc_targets": torch.tensor(
            [label for target in targets for label in target], dtype=torch.long
        ),
        "ctc_target_lengths": torch.tensor([len(t) for t in targets], dtype=torch.long),
    }


def _keep_index(items: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """Vectors that are kept among those of all items; None where all are."""
    speech = [item for item in items if item["frames"]]
    if not speech or speech[0].get("kept") is None:  # a data set keeps all, or some of each
        return None
    return keep_index(
        [positions for item in speech for positions in item["kept"]],
        [count for item in speech for count in item["vectors"]],
    )


class StepBatches(Dataset):
    """The batches that one process runs in a step: ``batches[step]``.

    Process ``rank`` takes every ``world_size``-th row of the step, and splits its rows into at most
    ``accumulation`` batches, as many as every other process. A process left without rows gets an
    empty one, so that all take part in the same collectives.

    Args:
        dataset: where the samples come from.
        rank: this process.
        world_size: number of processes.
        accumulation: batches of a full step.
        seq_len: fixed length of a row; the longest row's when None.
        rows_per_step: rows of a full step. When given, all batches have the number of rows of a
            batch in a full step, smaller steps and text twins too. Together with ``seq_len`` all
            batches have one shape, so that nothing is compiled twice.
        one_row: lay all samples of a batch in one row of whatever length, without padding: right
            where attention looks at samples one by one, as on a CPU. Default False.
        augment: arguments of :func:`spec_augment`; None for no augmentation.
        seed: of the augmentation. A sample's masks depend on the seed, the step and the audio, not
            on where it is computed.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        seq_len: int | None = None,
        rows_per_step: int | None = None,
        one_row: bool = False,
        augment: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.rank, self.world_size = dataset, rank, world_size
        self.accumulation, self.seq_len = accumulation, seq_len
        self.rows_per_step, self.one_row = rows_per_step, one_row
        self.augment, self.seed = dict(augment or {}), seed
        if self.augment and dataset.store is not None:
            self._try_augment(dataset.store.dim)

    def __getitem__(self, step: Step) -> list[Batch]:
        """Batches of this process for a step."""
        mine = step.rows[self.rank :: self.world_size]
        full_step = self.rows_per_step or len(step.rows)
        per_batch = max(1, -(-full_step // (self.world_size * self.accumulation)))
        most = -(-len(step.rows) // self.world_size)  # rows of process 0, which has the most
        has_speech = not step.is_twin and any(
            self.dataset.samples[i].is_speech for i in step.samples
        )
        batches = []
        for start in range(0, most, per_batch):
            rows = [[self._item(i, step) for i in row] for row in mine[start : start + per_batch]]
            if self.one_row:
                rows = [[item for row in rows for item in row]]
            batches.append(self._collate(rows, per_batch, has_speech))
        return batches

    def _collate(self, rows: list[list[dict[str, Any]]], per_batch: int, has_speech: bool) -> Batch:
        return collate_rows(
            rows,
            pad_id=self.dataset.chat.pad_id,
            placeholder_id=self.dataset.chat.placeholder_id,
            seq_len=self.seq_len,
            num_rows=per_batch if self.rows_per_step else None,
            frame_dim=self.dataset.store.dim if has_speech else None,
            with_targets=self.dataset.targets is not None,
        )

    def _try_augment(self, dim: int) -> None:
        try:
            spec_augment(torch.zeros(1, dim), seed=0, **self.augment)
        except (TypeError, ValueError) as error:
            raise InputError(f"spec_augment: {error}; correct its arguments, or null") from error

    def _item(self, index: int, step: Step) -> dict[str, Any]:
        item = self.dataset.item(index, twin=step.is_twin)
        if self.augment:
            item["frames"] = [
                spec_augment(
                    f, seed=zlib.crc32(f"{self.seed}/{step.number}/{key}".encode()), **self.augment
                )
                for f, key in zip(item["frames"], item["keys"], strict=True)
            ]
        return item
