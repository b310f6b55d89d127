"""Which speech vectors are no pads, for a projector that was taught to say the LLM's tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.modules._embedding_losses import nearest_tokens


def read_as_pads(nearest_n: Tensor, table_vd: Tensor, pad_token: int, is_text_v: Tensor) -> Tensor:
    """Which speech vectors are pads, by the row of the LLM's table that is nearest to each.

    A transcript holds nothing but text, so whatever else a vector is read as stands for a pad:
    another special token, or a row that is no token at all. So does a token of text with the pad's
    own embedding: rows that no training ever touched may share one.

    Args:
        nearest_n: nearest row of each vector, see :func:`nearest_tokens`, ``[n]``.
        table_vd: the LLM's embedding table, ``[v, d]``.
        pad_token: row of the table that stands behind each transcript.
        is_text_v: rows that are tokens of text, boolean, ``[v]``; on the CPU or with the table.

    Returns:
        True for pads, ``[n]``, on the table's device.
    """
    same_n = (table_vd[nearest_n] == table_vd[pad_token]).all(-1)
    return same_n | ~is_text_v.to(table_vd.device)[nearest_n]


@torch.no_grad()
def non_pads(
    vectors_nd: Tensor,
    lengths_u: Tensor,
    table_vd: Tensor,
    pad_token: int,
    is_text_v: Tensor,
) -> tuple[Tensor, Tensor]:
    """Speech vectors that are not read as pads.

    A vector is read as the token whose embedding has the largest cosine with it; which of these
    count as pads says :func:`read_as_pads`. Of an utterance of pads alone the vector least like the
    pad token stays, so that no utterance vanishes.

    Args:
        vectors_nd: speech vectors of all utterances, concatenated, ``[n, d]``.
        lengths_u: vectors of each utterance, ``[u]``.
        table_vd: the LLM's embedding table, ``[v, d]``.
        pad_token: row of the table that stands behind each transcript.
        is_text_v: rows that are tokens of text, boolean, ``[v]``.

    Returns:
        Which vectors to keep, ``[n]``, and which utterances were pads alone, ``[u]``; boolean,
        on the CPU.

    Example:
        >>> is_text = torch.tensor([False, True, True])
        >>> non_pads(torch.eye(3)[[1, 2, 0, 0]], torch.tensor([3, 1]), torch.eye(3), 0, is_text)
        (tensor([ True,  True, False,  True]), tensor([False,  True]))
    """
    nearest_n = nearest_tokens(vectors_nd, table_vd)
    keep_n = ~read_as_pads(nearest_n, table_vd, pad_token, is_text_v).cpu()
    pad_d = table_vd[pad_token]
    likeness_n = F.cosine_similarity(vectors_nd.float(), pad_d.float()[None], dim=-1).cpu()
    only_pads_u = torch.zeros(len(lengths_u), dtype=torch.bool)
    start = 0
    for u, length in enumerate(lengths_u.tolist()):
        end = start + length
        if length and not keep_n[start:end].any():
            only_pads_u[u] = True
            keep_n[start + likeness_n[start:end].argmin()] = True
        start = end
    return keep_n, only_pads_u
