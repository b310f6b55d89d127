"""Attention in packed rows: a token sees itself and what precedes it in its own sample."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torchtune.modules import MultiHeadAttention

from torchtune_speech.errors import InputError
from torchtune_speech.modules import Packing, packed_attention


def block_causal_mask(document_ids_bs: Tensor) -> BlockMask | Packing:
    """What says which token sees which in packed rows, in the form that a device is fast with.

    Args:
        document_ids_bs: number of the sample each token belongs to, ``[b, s]``. Padding carries an
            id of its own (0).

    Returns:
        On a GPU a flex-attention ``BlockMask``, for which nothing is computed that no token may
        see. Elsewhere the samples' places in the flattened rows, for :class:`SampleAttention`.
    """
    b, s = document_ids_bs.shape
    if not document_ids_bs.is_cuda:
        changes = document_ids_bs[:, 1:] != document_ids_bs[:, :-1]
        starts = torch.nn.functional.pad(changes, (1, 0), value=True).flatten().nonzero().flatten()
        lengths = torch.diff(starts, append=starts.new_tensor([b * s]))
        return Packing.from_lengths(lengths, document_ids_bs.device)

    def visible(b_: Tensor, h_: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_ids_bs[b_, q] == document_ids_bs[b_, k])

    return create_block_mask(visible, b, None, s, s, device=document_ids_bs.device)


def dense_causal_mask(document_ids_bs: Tensor) -> Tensor:
    """The same as a boolean tensor, as torchtune's own models take it.

    Args:
        document_ids_bs: see :func:`block_causal_mask`.

    Returns:
        ``[b, s, s]``, True where attention is allowed; no row of it is empty.
    """
    s = document_ids_bs.shape[1]
    same = document_ids_bs[:, :, None] == document_ids_bs[:, None, :]
    return same & torch.ones(s, s, dtype=torch.bool, device=same.device).tril()


class SampleAttention(MultiHeadAttention):
    """torchtune's attention, which also takes the places of samples for a mask.

    Samples are then laid out in rows of similar length and seen by themselves: no mask as large as
    the square of a row, and no work on pairs of tokens that do not see each other. Same parts, same
    parameter names.

    Args:
        attn: the attention whose parts it takes over.
    """

    def __init__(self, attn: MultiHeadAttention) -> None:
        super().__init__(
            embed_dim=attn.embed_dim,
            num_heads=attn.num_heads,
            num_kv_heads=attn.num_kv_heads,
            head_dim=attn.head_dim,
            q_proj=attn.q_proj,
            k_proj=attn.k_proj,
            v_proj=attn.v_proj,
            output_proj=attn.output_proj,
            pos_embeddings=attn.pos_embeddings,
            q_norm=attn.q_norm,
            k_norm=attn.k_norm,
            max_seq_len=attn.max_seq_len,
            is_causal=attn.is_causal,
            attn_dropout=attn.attn_dropout,
        )
        self._rows_or_blocks = self._attention_call  # torchtune's choice between SDPA and flex
        self._attention_call = self._attend

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | BlockMask | Packing | None,
        dropout_p: float,
        is_causal: bool,
    ) -> Tensor:
        if isinstance(mask, Packing):
            if dropout_p > 0:
                raise InputError("model.attn_dropout: packed rows have none; set it to 0")
            return sample_attention(q, k, v, mask)
        return self._rows_or_blocks(q, k, v, mask=mask, dropout_p=dropout_p, is_causal=is_causal)


# Lengths differ from batch to batch: compiled, it would be compiled for each of them.
@torch.compiler.disable
def sample_attention(q_bhsd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, samples: Packing) -> Tensor:
    """Causal attention within each sample of packed rows.

    Args:
        q_bhsd: queries, ``[b, heads, s, head_dim]``.
        k_bhsd: keys, of the same shape.
        v_bhsd: values, of the same shape.
        samples: where the samples lie in the flattened rows, padding included.

    Returns:
        Shape ``[b, heads, s, head_dim]``.
    """
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q_bhsd, k_bhsd, v_bhsd)]
    out_td = packed_attention(torch.stack(flat, dim=1), samples, causal=True)
    b, heads, s, head_dim = q_bhsd.shape
    return out_td.view(b, s, heads, head_dim).transpose(1, 2)
