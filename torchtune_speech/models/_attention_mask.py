"""Attention masks: packed rows for training, caches for decoding."""

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


def prefill_mask(lengths_b: Tensor, prompt_len: int, cache_len: int) -> Tensor:
    """Mask of right-padded prompts that are written into a cache.

    Args:
        lengths_b: length of each prompt, ``[b]``.
        prompt_len: length of the longest, the padded length.
        cache_len: slots of the cache.

    Returns:
        Boolean ``[b, prompt_len, cache_len]``. Queries in the padding see the prompt, so that
        their softmax is not empty; their outputs are never read.
    """
    slots = torch.arange(cache_len, device=lengths_b.device)
    queries = torch.arange(prompt_len, device=lengths_b.device)
    causal = slots[None, :] <= queries[:, None]
    return causal[None] & (slots < lengths_b[:, None])[:, None, :]


def decode_mask(lengths_b: Tensor, prompt_len: int, step: int, cache_len: int) -> Tensor:
    """Mask of the token decoded at a step, whose cache slot is ``prompt_len + step``.

    Args:
        lengths_b: length of each prompt, ``[b]``.
        prompt_len: padded length of the prompts.
        step: tokens decoded before this one.
        cache_len: slots of the cache.

    Returns:
        Boolean ``[b, 1, cache_len]``: the prompt without its padding, and what was decoded.
    """
    slots = torch.arange(cache_len, device=lengths_b.device)
    decoded = (slots >= prompt_len) & (slots <= prompt_len + step)
    return ((slots < lengths_b[:, None]) | decoded)[:, None, :]
