"""Qwen3's decoder from torchtune's parts, which torchtune 0.6 has no builder for."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.peft import LORA_ATTN_MODULES, LoRALinear

from torchtune_speech.models._norm_first_attention import HalvesRotary, NormFirstAttention

# The shape of Qwen3-4B-Instruct-2507,
# https://huggingface.co/Qwen/Qwen3-4B-Instruct-2507 (config.json). The first Qwen3-4B has
# rope_base 1,000,000 and max_seq_len 40,960.
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151_936,
    "num_layers": 36,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "embed_dim": 2560,
    "max_seq_len": 262_144,
    "intermediate_dim": 9728,
    "norm_eps": 1e-6,
    "rope_base": 5_000_000,
    "tie_embeddings": True,
}

# (name of the projection, in_dim, out_dim) to a linear layer
_MakeLinear = Callable[[str, int, int], nn.Module]


def qwen3(
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    embed_dim: int,
    max_seq_len: int,
    intermediate_dim: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 1_000_000,
    tie_embeddings: bool = False,
) -> TransformerDecoder:
    """A dense decoder of the Qwen3 family.

    Source: https://arxiv.org/abs/2505.09388, section 2: grouped queries, SwiGLU, rotary embeddings,
    RMS norms before each part, and norms of queries and keys instead of biases.

    Args:
        vocab_size: rows of the embedding table.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head; need not be ``embed_dim / num_heads``.
        embed_dim: width of the decoder.
        max_seq_len: longest sequence, in tokens.
        intermediate_dim: width of the feed-forward layers.
        attn_dropout: dropout on attention weights. Default 0.
        norm_eps: epsilon of the RMS norms.
        rope_base: base of the rotary embedding.
        tie_embeddings: output layer shares the embedding table.

    Returns:
        The decoder, with freshly initialised weights.
    """
    return _decoder(_plain_linear, **locals())


def lora_qwen3(
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES],
    apply_lora_to_mlp: bool = False,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    embed_dim: int,
    max_seq_len: int,
    intermediate_dim: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 1_000_000,
    tie_embeddings: bool = False,
) -> TransformerDecoder:
    """As :func:`qwen3`, with LoRA.

    Args:
        lora_attn_modules: attention projections that get LoRA.
        apply_lora_to_mlp: also adapt the three feed-forward matrices.
        lora_rank: rank of the updates.
        lora_alpha: the update is scaled by alpha / rank.
        lora_dropout: dropout before the update.
        vocab_size: see :func:`qwen3`, as the arguments below.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        embed_dim: width of the decoder.
        max_seq_len: longest sequence, in tokens.
        intermediate_dim: width of the feed-forward layers.
        attn_dropout: dropout on attention weights.
        norm_eps: epsilon of the RMS norms.
        rope_base: base of the rotary embedding.
        tie_embeddings: output layer shares the embedding table.

    Returns:
        The decoder; LoRA's second matrices are zero.
    """
    shape = dict(locals())
    lora = {name: shape.pop(f"lora_{name}") for name in ("rank", "alpha", "dropout")}
    adapted = {*shape.pop("lora_attn_modules")}
    adapted |= {"w1", "w2", "w3"} if shape.pop("apply_lora_to_mlp") else set()

    def linear(name: str, in_dim: int, out_dim: int) -> nn.Module:
        make = partial(LoRALinear, **lora) if name in adapted else partial(nn.Linear, bias=False)
        return make(in_dim, out_dim)

    return _decoder(linear, **shape)


def qwen3_4b() -> TransformerDecoder:
    """Qwen3-4B-Instruct-2507, the LLM of NLE 2026 (arXiv 2607.01960).

    Returns:
        The decoder, with freshly initialised weights.
    """
    return qwen3(**QWEN3_4B)


def _plain_linear(name: str, in_dim: int, out_dim: int) -> nn.Module:
    return nn.Linear(in_dim, out_dim, bias=False)


def _decoder(linear: _MakeLinear, **shape: Any) -> TransformerDecoder:
    embed_dim, eps = shape["embed_dim"], shape["norm_eps"]
    layers = [
        TransformerSelfAttentionLayer(
            _attention(linear, **shape),
            FeedForward(
                gate_proj=linear("w1", embed_dim, shape["intermediate_dim"]),
                down_proj=linear("w2", shape["intermediate_dim"], embed_dim),
                up_proj=linear("w3", embed_dim, shape["intermediate_dim"]),
            ),
            sa_norm=RMSNorm(embed_dim, eps),
            mlp_norm=RMSNorm(embed_dim, eps),
        )
        for _ in range(shape["num_layers"])
    ]
    embeddings = nn.Embedding(shape["vocab_size"], embed_dim)
    tied = shape["tie_embeddings"]
    return TransformerDecoder(
        tok_embeddings=embeddings,
        layers=nn.ModuleList(layers),
        max_seq_len=shape["max_seq_len"],
        num_heads=shape["num_heads"],
        head_dim=shape["head_dim"],
        norm=RMSNorm(embed_dim, eps),
        output=TiedLinear(embeddings)
        if tied
        else nn.Linear(embed_dim, shape["vocab_size"], bias=False),
    )


def _attention(linear: _MakeLinear, **shape: Any) -> NormFirstAttention:
    embed_dim, head_dim = shape["embed_dim"], shape["head_dim"]
    q_dim, kv_dim = (shape[name] * head_dim for name in ("num_heads", "num_kv_heads"))
    parts = MultiHeadAttention(
        embed_dim=embed_dim,
        num_heads=shape["num_heads"],
        num_kv_heads=shape["num_kv_heads"],
        head_dim=head_dim,
        q_proj=linear("q_proj", embed_dim, q_dim),
        k_proj=linear("k_proj", embed_dim, kv_dim),
        v_proj=linear("v_proj", embed_dim, kv_dim),
        output_proj=linear("output_proj", q_dim, embed_dim),
        pos_embeddings=HalvesRotary(head_dim, shape["rope_base"]),
        q_norm=RMSNorm(head_dim, shape["norm_eps"]),
        k_norm=RMSNorm(head_dim, shape["norm_eps"]),
        max_seq_len=shape["max_seq_len"],
        attn_dropout=shape["attn_dropout"],
    )
    return NormFirstAttention(parts)
