"""Which speech vectors are no pads, for a projector that was taught to say the LLM's tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.modules._embedding_losses import nearest_tokens


@torch.no_grad()
def non_pads(
    vectors_nd: Tensor, lengths_u: Tensor, table_vd: Tensor, pad_token: int
) -> tuple[Tensor, Tensor]:
    """Speech vectors that are not read as the pad token.

    A vector is a pad if the token whose embedding has the largest cosine with it is the pad token,
    or one with the same embedding: reserved tokens that no training ever touched may share one. Of
    an utterance of pads alone the vector least like a pad stays, so that no utterance vanishes.

    Args:
        vectors_nd: speech vectors of all utterances, concatenated, ``[n, d]``.
        lengths_u: vectors of each utterance, ``[u]``.
        table_vd: the LLM's embedding table, ``[v, d]``.
        pad_token: row of the table that stands behind each transcript.

    Returns:
        Which vectors to keep, ``[n]``, and which utterances were pads alone, ``[u]``; boolean,
        on the CPU.

    Example:
        >>> non_pads(torch.eye(3)[[1, 2, 0, 0]], torch.tensor([3, 1]), torch.eye(3), pad_token=0)
        (tensor([ True,  True, False,  True]), tensor([False,  True]))
    """
    pad_d = table_vd[pad_token]
    keep_n = (table_vd[nearest_tokens(vectors_nd, table_vd)] != pad_d).any(-1).cpu()
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
