"""Conformer stack of SeamlessM4T-v2's speech encoder, with attention that keeps to memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Scores of a block of queries, over batch, heads and keys: 256 MB in bf16 and half a GB in fp32.
MAX_SCORES = 2**27


class FeatureProjection(nn.Module):
    """From filter bank to the width of the stack.

    Args:
        in_dim: width of the filter bank.
        dim: width of the stack.
        norm_eps: of the norm.
    """

    def __init__(self, in_dim: int, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(in_dim, eps=norm_eps)
        self.projection = nn.Linear(in_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Project features, shape [b, t, in_dim]; returns [b, t, dim] in the weights' dtype."""
        return self.projection(self.layer_norm(features.to(self.layer_norm.weight.dtype)))


class Conformer(nn.Module):
    """Conformer layers and a final norm; parameters are named as in Hugging Face's files.

    For inference: there is no dropout. Equals ``SeamlessM4Tv2ConformerEncoder`` of transformers in
    all frames that are not padding. Those are free of what stands in the padding because no key of
    the padding is looked at, and because the convolutions are causal while padding comes last.

    Gulati et al. 2020, https://arxiv.org/abs/2005.08100; Barrault et al. 2023,
    https://arxiv.org/abs/2312.05187

    Args:
        num_layers: how many layers.
        dim: width.
        num_heads: attention heads.
        ffn_dim: width within the two feed-forward parts of a layer.
        kernel_size: frames that the depthwise convolution sees, the last is the current one.
        left_max: keys further to the left than this share one distance.
        right_max: likewise to the right.
        activation: of feed-forward and convolution, without parameters.
        norm_eps: of the final norm.
        chunk_size: frames attend within a chunk of so many frames, and to earlier ones; None for
            everywhere.
        left_chunks: how many chunks before their own; less than 0 for all.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        kernel_size: int,
        left_max: int,
        right_max: int,
        activation: nn.Module,
        norm_eps: float,
        chunk_size: int | None,
        left_chunks: int,
    ) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.left_chunks = left_chunks
        self.layers = nn.ModuleList(
            ConformerLayer(dim, num_heads, ffn_dim, kernel_size, left_max, right_max, activation)
            for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the stack.

        Args:
            hidden: projected features, shape [b, t, dim], padded on the right.
            lengths: frames of each row, shape [b]; None where there is no padding.

        Returns:
            Frames, shape [b, t, dim]; those of the padding mean nothing.
        """
        first, end = key_range(
            hidden.shape[1], lengths, self.chunk_size, self.left_chunks, hidden.device
        )
        for layer in self.layers:
            hidden = layer(hidden, first, end)
        return self.layer_norm(hidden)


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm.

    Args:
        dim, num_heads, ffn_dim, kernel_size, left_max, right_max, activation: see
            :class:`Conformer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        kernel_size: int,
        left_max: int,
        right_max: int,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.ffn1_layer_norm = nn.LayerNorm(dim)
        self.ffn1 = FeedForward(dim, ffn_dim, activation)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = RelativeAttention(dim, num_heads, left_max, right_max)
        self.conv_module = CausalConvolution(dim, kernel_size, activation)
        self.ffn2_layer_norm = nn.LayerNorm(dim)
        self.ffn2 = FeedForward(dim, ffn_dim, activation)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, first: Tensor | None, end: Tensor | None) -> Tensor:
        """Run the layer on [b, t, dim]; ``first`` and ``end`` are of :func:`key_range`."""
        hidden = torch.add(hidden, self.ffn1(self.ffn1_layer_norm(hidden)), alpha=0.5)
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), first, end)
        hidden = hidden + self.conv_module(hidden)
        hidden = torch.add(hidden, self.ffn2(self.ffn2_layer_norm(hidden)), alpha=0.5)
        return self.final_layer_norm(hidden)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them.

    Args:
        dim: width outside.
        ffn_dim: width inside.
        activation: between the two.
    """

    def __init__(self, dim: int, ffn_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, ffn_dim)
        self.output_dense = nn.Linear(ffn_dim, dim)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [b, t, dim] to the same shape."""
        return self.output_dense(self.activation(self.intermediate_dense(hidden)))


class CausalConvolution(nn.Module):
    """Norm, gated pointwise map, depthwise convolution over the past, norm, pointwise map.

    Args:
        dim: width.
        kernel_size: frames of the convolution.
        activation: after the inner norm.
    """

    def __init__(self, dim: int, kernel_size: int, activation: nn.Module) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel_size, groups=dim, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [b, t, dim] to the same shape; a frame sees itself and those before it."""
        # A pointwise convolution is a linear map, which needs no transposing and is faster.
        gated = F.linear(self.layer_norm(hidden), self.pointwise_conv1.weight.squeeze(2))
        hidden = F.glu(gated, dim=-1)
        past = self.depthwise_conv.kernel_size[0] - 1
        hidden = self.depthwise_conv(F.pad(hidden.transpose(1, 2), (past, 0))).transpose(1, 2)
        hidden = self.activation(self.depthwise_layer_norm(hidden))
        return F.linear(hidden, self.pointwise_conv2.weight.squeeze(2))


class RelativeAttention(nn.Module):
    """Attention with learned embeddings of clamped distances (``relative_key``).

    Args:
        dim: width.
        num_heads: heads.
        left_max: keys further to the left than this share one distance.
        right_max: likewise to the right.
    """

    def __init__(self, dim: int, num_heads: int, left_max: int, right_max: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.left_max, self.right_max = left_max, right_max
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.distance_embedding = nn.Embedding(left_max + right_max + 1, dim // num_heads)

    # Compiled, the number of blocks would be part of the program, which then is compiled for each.
    @torch.compiler.disable
    def forward(self, hidden: Tensor, first: Tensor | None, end: Tensor | None) -> Tensor:
        """Attend within [b, t, dim]; ``first`` and ``end`` are of :func:`key_range`."""
        q, k, v = (
            linear(hidden).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        embeddings = self.distance_embedding.weight
        attended = relative_attention(q, k, v, embeddings, self.left_max, first, end)
        return self.linear_out(attended.transpose(1, 2).flatten(2))


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    embeddings: Tensor,
    left_max: int,
    first: Tensor | None = None,
    end: Tensor | None = None,
    max_scores: int = MAX_SCORES,
) -> Tensor:
    """Attention whose scores are ``q . (k + e) / sqrt(d)``, e of the clamped distance to the key.

    A query has one product with each distance there is (73 in SeamlessM4T-v2), rather than with an
    embedding for each key: they are gathered along the distances into a bias. Queries are taken in
    blocks, so that memory grows with the length and not with its square.

    Shaw et al. 2018, https://arxiv.org/abs/1803.02155 (the keys' part)

    Args:
        q: queries, shape [b, h, t, d].
        k: keys, same shape.
        v: values, same shape.
        embeddings: of the distances ``-left_max`` and less, up to the largest and more; [n, d].
        left_max: the least distance; the largest is ``n - 1 - left_max``.
        first: the first key that a query may see, broadcast to [b, t]; None for key 0.
        end: one after the last key that a query may see, broadcast to [b, t]; None for all.
        max_scores: numbers in the bias of a block, at most (but for a block of one query).

    Returns:
        Attended values, shape [b, h, t, d].
    """
    batch, heads, length, head_dim = q.shape
    scale = head_dim**-0.5
    keys = torch.arange(length, device=q.device)
    block = max(1, max_scores // (batch * heads * length))
    attended = []
    for start in range(0, length, block):
        queries = q[:, :, start : start + block]
        size = queries.shape[2]
        distances = keys - keys[start : start + size, None]
        index = distances.clamp(-left_max, len(embeddings) - 1 - left_max) + left_max
        products = (queries * scale) @ embeddings.t().to(q.dtype)
        bias = products.gather(3, index.expand(batch, heads, size, length))
        if end is not None:
            hidden = keys >= _rows(end, start, size)
            if first is not None:
                hidden = hidden | (keys < _rows(first, start, size))
            # The lowest number and not -inf, with which a query that sees nothing gives NaN.
            bias.masked_fill_(hidden[:, None], torch.finfo(bias.dtype).min)
        attended.append(F.scaled_dot_product_attention(queries, k, v, attn_mask=bias, scale=scale))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)


def _rows(limits: Tensor, start: int, size: int) -> Tensor:
    """Limits [b or 1, t or 1] of a block of queries, shape [b or 1, size or 1, 1]."""
    return (limits if limits.shape[1] == 1 else limits[:, start : start + size])[:, :, None]


def key_range(
    length: int,
    lengths: Tensor | None,
    chunk_size: int | None,
    left_chunks: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor | None, Tensor | None]:
    """Which keys each query may see.

    Args:
        length: frames of a row, padding included.
        lengths: frames of each row without padding, shape [b]; None where there is no padding.
        chunk_size: frames of a chunk; None for no chunks.
        left_chunks: chunks before its own that a query may see; less than 0 for all.
        device: where the result is wanted.

    Returns:
        The first key and one after the last, each broadcast to [b, length]; None where all from
        the beginning, or to the end, may be seen.
    """
    end = None if lengths is None else lengths[:, None]
    if chunk_size is None or length <= chunk_size:
        return None, end
    chunk = torch.arange(length, device=device)[None] // chunk_size
    chunk_end = ((chunk + 1) * chunk_size).clamp(max=length)
    first = (chunk - left_chunks).clamp(min=0) * chunk_size if left_chunks >= 0 else None
    return first, chunk_end if end is None else torch.minimum(chunk_end, end)
