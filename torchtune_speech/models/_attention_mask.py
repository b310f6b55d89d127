"""Attention in packed rows: a token sees itself and what precedes it in its own sample."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import MultiHeadAttention

from torchtune_speech.errors import InputError
from torchtune_speech.modules import Packing, packed_attention

_BLOCK = 128  # of flex attention, in tokens


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

    return _block_mask(document_ids_bs)


def _block_mask(document_ids_bs: Tensor) -> BlockMask:
    """Flex attention's mask, from the samples at the edges of each block.

    torch's ``create_block_mask`` asks for every pair of tokens; numbers of samples only rise along
    a row, so that the first and last one of a block say as much.
    """
    s = document_ids_bs.shape[1]
    behind = s + 1  # padding comes last, and gets the highest number
    ids_bs = document_ids_bs.where(document_ids_bs > 0, behind)
    # What a last, shorter block lacks belongs to nothing.
    ids_bs = torch.nn.functional.pad(ids_bs, (0, -s % _BLOCK), value=behind + 1)
    blocks = ids_bs.unflatten(1, (-1, _BLOCK))
    first_bn, last_bn = blocks[:, :, 0], blocks[:, :, -1]
    number_n = torch.arange(blocks.shape[1], device=ids_bs.device)
    before = number_n[:, None] > number_n  # query block, key block
    # All pairs see each other where the key block begins in the sample in which the query block
    # ends; some may where it ends in a sample that the query block still has.
    full = before & (first_bn[:, None, :] == last_bn[:, :, None])
    some = (before | (number_n[:, None] == number_n)) & (
        last_bn[:, None, :] >= first_bn[:, :, None]
    )

    def visible(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_ids_bs[b, q] == document_ids_bs[b, k])

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~full),
        *_ordered(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(s, s),
    )


def _ordered(chosen_bqk: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks are chosen for each query block, and which, these first."""
    chosen = chosen_bqk[:, None].int()  # all heads alike
    order = torch.argsort(chosen, dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.int()


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

    Attributes:
        norm_first: whether ``q_norm`` and ``k_norm`` come before the rotary embedding; torchtune
            has them behind it. Decoding with a cache goes by it.
    """

    norm_first = False

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
