"""Attention masks of packed rows."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask


def block_causal_mask(document_ids_bs: Tensor) -> Tensor:
    """Mask of packed rows: a token sees itself and what precedes it in its own sample.

    Args:
        document_ids_bs: number of the sample each token belongs to, ``[b, s]``. Padding carries an
            id of its own (0), so that no row of the mask is empty.

    Returns:
        On a GPU a flex-attention ``BlockMask``; elsewhere a boolean ``[b, s, s]``, True where
        attention is allowed.
    """
    b, s = document_ids_bs.shape
    if document_ids_bs.is_cuda:

        def visible(b_: Tensor, h_: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document_ids_bs[b_, q] == document_ids_bs[b_, k])

        return create_block_mask(visible, b, None, s, s, device=document_ids_bs.device)
    same = document_ids_bs[:, :, None] == document_ids_bs[:, None, :]
    return same & torch.ones(s, s, dtype=torch.bool, device=same.device).tril()
