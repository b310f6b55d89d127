"""Bidirectional self-attention over packed utterances."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_speech.modules._packing import Packing
from torchtune_speech.modules._product_dtype import product_dtype
from torchtune_speech.modules._short_attention import short_attention

Rotary = tuple[Tensor, Tensor]

_SHORT = 1024  # frames up to which the weights of attention are held in memory on a CPU


def rotary_angles(positions_t: Tensor, head_dim: int, base: float = 10_000.0) -> Rotary:
    """Cosines and sines of rotary position embeddings, for positions of any size.

    They are computed where they are used: no table that ends somewhere, no buffer to restore
    after building on the meta device.

    Args:
        positions_t: position of each frame in its utterance, ``[t]``.
        head_dim: width of an attention head; even.
        base: slowest wavelength is about ``2 * pi * base`` frames.

    Returns:
        Cosines and sines, each fp32 ``[t, head_dim / 2]``.

    Source: RoFormer, https://arxiv.org/abs/2104.09864
    """
    exponents = torch.arange(0, head_dim, 2, device=positions_t.device) / head_dim
    angles = positions_t[:, None] * base**-exponents
    return angles.cos(), angles.sin()


def apply_rotary(x_thd: Tensor, rotary: Rotary) -> Tensor:
    """Turn the two halves of each head by the angles of its position.

    Args:
        x_thd: queries or keys, ``[t, ..., head_dim]``.
        rotary: what :func:`rotary_angles` returns.

    Returns:
        The same shape and dtype as ``x_thd``; computed in fp32.
    """
    shape = (x_thd.shape[0], *(1,) * (x_thd.ndim - 2), x_thd.shape[-1] // 2)
    cos, sin = (table.view(shape) for table in rotary)
    first, second = x_thd.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_thd.dtype)


def packed_attention(qkv_t3hd: Tensor, packing: Packing, causal: bool = False) -> Tensor:
    """Scaled dot-product attention in which an utterance sees itself and nothing else.

    Args:
        qkv_t3hd: queries, keys and values, ``[t, 3, heads, head_dim]``.
        packing: where the utterances lie.
        causal: see what precedes alone. Default False: all of the utterance.

    Returns:
        Shape ``[t, heads * head_dim]``.
    """
    if not packing.shapes:  # no frames: stay in the graph
        return qkv_t3hd[:, 2].flatten(1)
    outputs = []
    for qkv, mask in zip(packing.pad(qkv_t3hd), packing.masks, strict=True):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Padding lies behind what is real: causal attention never sees it.
        out = _attend(q, k, v, None if causal else mask, causal)
        outputs.append(out.transpose(1, 2))
    return packing.unpad(outputs).flatten(1)


def _attend(
    q_uhld: Tensor, k_uhld: Tensor, v_uhld: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """Attention by the kernel that is fastest where the tensors are."""
    length, dtype = q_uhld.shape[2], q_uhld.dtype
    if q_uhld.device.type == "cpu" and dtype == torch.bfloat16 and length <= _SHORT:
        if mask is not None:  # [u, 1, 1, l]
            mask = mask[:, 0, 0].repeat_interleave(q_uhld.shape[1], dim=0)
        wide = product_dtype("cpu", dtype)
        flat = (x.flatten(0, 1).to(wide) for x in (q_uhld, k_uhld, v_uhld))
        with torch.autocast("cpu", enabled=False):  # it would narrow them again
            return short_attention(*flat, mask, causal).to(dtype).view(q_uhld.shape)
    return F.scaled_dot_product_attention(q_uhld, k_uhld, v_uhld, attn_mask=mask, is_causal=causal)


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention, bidirectional within each utterance.

    torchtune's ``MultiHeadAttention`` takes rows ``[b, s, d]``; here the projections run on the
    packed frames, without padding, and only the attention itself sees padded groups. There is no
    dropout on attention weights: it would rule out the fused kernels.

    Args:
        embed_dim: width of the frames.
        num_heads: attention heads; divides ``embed_dim``.

    Raises:
        ValueError: if ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x_td: Tensor, packing: Packing, rotary: Rotary | None = None) -> Tensor:
        """Attend.

        Args:
            x_td: packed frames, ``[t, embed_dim]``.
            packing: where the utterances lie.
            rotary: angles of the positions; None for no rotary embedding.

        Returns:
            Packed frames, ``[t, embed_dim]``.
        """
        qkv = self.qkv_proj(x_td).unflatten(-1, (3, self.num_heads, self.head_dim))
        if rotary is not None:
            qkv = torch.cat((apply_rotary(qkv[:, :2], rotary), qkv[:, 2:]), dim=1)
        return self.output_proj(packed_attention(qkv, packing))
