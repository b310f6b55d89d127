"""The LLM's embedding table alone, out of the one file that holds it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchtune_speech.errors import InputError
from torchtune_speech.models._hf_config import family_of, read_hf_config
from torchtune_speech.models._hf_weights import open_safetensors, read_weight_map
from torchtune_speech.modules import unit_rows

_DIGEST_ROWS = 256


class ProjectorWithTable(nn.Module):
    """What pretraining without the LLM holds: a projector, and the table it is to write in.

    Args:
        projector: maps encoder frames to vectors of the table's width.
        table_vd: the LLM's token embeddings, ``[v, d]``; frozen.
        contrast: keep the table with rows of length 1 as well, as ``unit_table``, which
            :func:`vocabulary_contrast_sum` wants. Default False.

    Raises:
        InputError: if projector and table differ in width.
    """

    def __init__(self, projector: nn.Module, table_vd: Tensor, *, contrast: bool = False) -> None:
        super().__init__()
        if projector.out_dim != table_vd.shape[1]:
            raise InputError(
                f"projector.out_dim: {projector.out_dim}, but the LLM's embeddings are "
                f"{table_vd.shape[1]} wide; set projector.out_dim to that"
            )
        self.projector = projector
        self.table = nn.Parameter(table_vd, requires_grad=False)
        self.unit_table = (
            nn.Parameter(unit_rows(table_vd), requires_grad=False) if contrast else None
        )


def load_embedding_table(llm_dir: str | Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """Token embeddings of a Hugging Face folder; no other weight is read, no other shard opened.

    Args:
        llm_dir: folder with ``config.json``, which says the family and so the table's name, and
            ``model.safetensors``, or ``model.safetensors.index.json`` and the shard that holds
            the table; other shards need not be there.
        dtype: of the result. Default float32.

    Returns:
        The table, ``[v, d]``, on the CPU.

    Raises:
        InputError: if the folder, its config, its index or the shard is missing or damaged, holds
            no table, or is of a family that is none of :data:`FAMILIES`.

    Example:
        >>> load_embedding_table("/tmp/Llama-3.1-8B-Instruct", torch.bfloat16).shape
        torch.Size([128256, 4096])
    """
    with _open_table(llm_dir) as (_, table):
        return table[:].to(dtype)


def embedding_digest(llm_dir: str | Path) -> str:
    """Digest of 256 rows spread evenly over the embedding table, and of its shape and dtype.

    Two models with different tables differ in it; one with merged LoRA has its base's.

    Args:
        llm_dir: see :func:`load_embedding_table`.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        InputError: see :func:`load_embedding_table`.
    """
    with _open_table(llm_dir) as (_, table):
        shape = list(table.get_shape())
        digest = hashlib.sha256(f"{table.get_dtype()}/{shape}".encode())
        rows = np.linspace(0, shape[0] - 1, min(_DIGEST_ROWS, shape[0])).astype(int)
        for row in rows.tolist():
            digest.update(table[row : row + 1].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def embedding_mean_square(llm_dir: str | Path, chunk_size: int = 8192) -> float:
    """Mean square of the elements of the embedding table: the squared error of a zero vector.

    Args:
        llm_dir: see :func:`load_embedding_table`.
        chunk_size: rows that are held at a time.

    Returns:
        The mean, above 0.

    Raises:
        InputError: see :func:`load_embedding_table`; or if all embeddings are zero.
    """
    with _open_table(llm_dir) as (file, table):
        rows, width = table.get_shape()
        total = sum(
            table[start : start + chunk_size].float().square().sum(dtype=torch.float64).item()
            for start in range(0, rows, chunk_size)
        )
    if not total > 0:
        raise InputError(f"{file}: its embeddings are all zero; download the model again")
    return total / (rows * width)


@contextmanager
def _open_table(llm_dir: str | Path) -> Iterator[tuple[Path, Any]]:
    """The file that holds the table, and the table as a slice of which nothing is read yet."""
    names = family_of(read_hf_config(llm_dir), llm_dir).names
    (name,) = (theirs for theirs, ours in names.items() if ours == "tok_embeddings.weight")
    file = read_weight_map(Path(llm_dir)).get(name)
    if file is None:
        raise _no_table(llm_dir, name)
    with open_safetensors(file) as tensors:
        if name not in tensors.keys():
            raise _no_table(file, name)
        yield file, tensors.get_slice(name)


def _no_table(where: str | Path, name: str) -> InputError:
    return InputError(f"{where}: holds no {name}; download the model again")
