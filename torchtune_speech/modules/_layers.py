"""Encoder layers over packed utterances."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import FeedForward

from torchtune_speech.errors import InputError
from torchtune_speech.modules._attention import PackedSelfAttention, Rotary
from torchtune_speech.modules._packing import Packing

Activation = Literal["gelu", "silu", "swiglu"]


def feed_forward(
    embed_dim: int, ffn_dim: int, activation: Activation = "gelu", dropout: float = 0.0
) -> FeedForward:
    """Build torchtune's feed-forward network with dropout after the activation.

    Args:
        embed_dim: width in and out.
        ffn_dim: hidden width.
        activation: ``gelu`` or ``silu``; ``swiglu`` adds a gate (a third matrix).
        dropout: share of hidden units dropped.

    Returns:
        The network, on tensors ``[..., embed_dim]``.

    Raises:
        InputError: if ``activation`` is unknown.
    """
    if activation not in ("gelu", "silu", "swiglu"):
        raise InputError(f"projector.activation: {activation!r}; use gelu, silu or swiglu")
    nonlinearity = nn.GELU() if activation == "gelu" else nn.SiLU()
    return FeedForward(
        gate_proj=nn.Linear(embed_dim, ffn_dim),
        down_proj=nn.Linear(ffn_dim, embed_dim),
        up_proj=nn.Linear(embed_dim, ffn_dim) if activation == "swiglu" else None,
        activation=nn.Sequential(nonlinearity, nn.Dropout(dropout)) if dropout else nonlinearity,
    )


class TransformerEncoderLayer(nn.Module):
    """Pre-norm Transformer encoder layer: self-attention, then a feed-forward network.

    Args:
        embed_dim: width of the frames.
        num_heads: attention heads.
        ffn_dim: hidden width of the feed-forward network.
        activation: see :func:`feed_forward`.
        dropout: on both residual branches and within the feed-forward network.

    Source: On Layer Normalization in the Transformer Architecture,
    https://arxiv.org/abs/2002.04745
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sa_norm = nn.LayerNorm(embed_dim)
        self.attn = PackedSelfAttention(embed_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = feed_forward(embed_dim, ffn_dim, activation, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_td: Tensor, packing: Packing, rotary: Rotary | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x_td: packed frames, ``[t, embed_dim]``.
            packing: where the utterances lie.
            rotary: angles of the positions.

        Returns:
            Packed frames, ``[t, embed_dim]``.
        """
        x_td = x_td + self.dropout(self.attn(self.sa_norm(x_td), packing, rotary))
        return x_td + self.dropout(self.mlp(self.mlp_norm(x_td)))


class FramewiseLayer(nn.Module):
    """Layer of a plain MLP: GELU, then a linear map; each frame by itself.

    Args:
        embed_dim: width of the frames.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)

    def forward(self, x_td: Tensor, packing: Packing, rotary: Rotary | None = None) -> Tensor:
        """Apply the layer; ``packing`` and ``rotary`` are there for what other layers need.

        Args:
            x_td: packed frames, ``[t, embed_dim]``.
            packing: where the utterances lie.
            rotary: angles of the positions.

        Returns:
            Packed frames, ``[t, embed_dim]``.
        """
        return self.linear(F.gelu(x_td))


class ConformerConvolution(nn.Module):
    """Convolution module of the Conformer, on packed utterances.

    Utterances are set apart by the zeros that the kernel needs at an edge, and convolved as one
    long row: none sees another, and no length padding is computed. Layer normalisation stands
    where the paper has batch normalisation, which would tie the utterances of a batch together.

    Args:
        embed_dim: width of the frames.
        kernel_size: frames that the depthwise convolution sees; odd.

    Raises:
        InputError: if ``kernel_size`` is even.
    """

    def __init__(self, embed_dim: int, kernel_size: int = 31) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"projector.kernel_size: {kernel_size}; give an odd number")
        self.in_proj = nn.Linear(embed_dim, 2 * embed_dim)
        self.depthwise = nn.Conv1d(
            embed_dim, embed_dim, kernel_size, groups=embed_dim, padding=kernel_size // 2
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x_td: Tensor, packing: Packing) -> Tensor:
        """Convolve over time within each utterance.

        Args:
            x_td: packed frames, ``[t, embed_dim]``.
            packing: where the utterances lie.

        Returns:
            Packed frames, ``[t, embed_dim]``.
        """
        x_td = F.glu(self.in_proj(x_td), dim=-1)
        (gap,) = self.depthwise.padding
        place_t = packing.spaced_index(gap)
        row = x_td.new_zeros(len(x_td) + gap * len(packing.lengths_u) + 1, x_td.shape[1])
        row = row.index_copy(0, place_t, x_td)
        row = self.depthwise(row.t()[None])[0].t()
        return self.out_proj(F.silu(self.norm(row.index_select(0, place_t))))


class ConformerEncoderLayer(nn.Module):
    """Conformer layer: half feed-forward, self-attention, convolution, half feed-forward, norm.

    Args:
        embed_dim: width of the frames.
        num_heads: attention heads.
        ffn_dim: hidden width of each feed-forward network.
        kernel_size: frames that the depthwise convolution sees; odd.
        dropout: on all residual branches and within the feed-forward networks.

    Source: Conformer, https://arxiv.org/abs/2005.08100
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        kernel_size: int = 31,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mlp1_norm = nn.LayerNorm(embed_dim)
        self.mlp1 = feed_forward(embed_dim, ffn_dim, "silu", dropout)
        self.sa_norm = nn.LayerNorm(embed_dim)
        self.attn = PackedSelfAttention(embed_dim, num_heads)
        self.conv_norm = nn.LayerNorm(embed_dim)
        self.conv = ConformerConvolution(embed_dim, kernel_size)
        self.mlp2_norm = nn.LayerNorm(embed_dim)
        self.mlp2 = feed_forward(embed_dim, ffn_dim, "silu", dropout)
        self.final_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_td: Tensor, packing: Packing, rotary: Rotary | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x_td: packed frames, ``[t, embed_dim]``.
            packing: where the utterances lie.
            rotary: angles of the positions.

        Returns:
            Packed frames, ``[t, embed_dim]``.
        """
        x_td = x_td + 0.5 * self.dropout(self.mlp1(self.mlp1_norm(x_td)))
        x_td = x_td + self.dropout(self.attn(self.sa_norm(x_td), packing, rotary))
        x_td = x_td + self.dropout(self.conv(self.conv_norm(x_td), packing))
        x_td = x_td + 0.5 * self.dropout(self.mlp2(self.mlp2_norm(x_td)))
        return self.final_norm(x_td)
