"""SpeechLLM builders over Qwen3's decoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torchtune.modules.peft import LORA_ATTN_MODULES

from torchtune_speech.errors import InputError
from torchtune_speech.models._hf_config import (
    check_plain_layers,
    read_hf_config,
    rope_settings,
)
from torchtune_speech.models._lora_modules import ALL_ATTN_MODULES, check_lora_modules
from torchtune_speech.models._qwen3_decoder import QWEN3_4B, lora_qwen3, qwen3
from torchtune_speech.models._speech_llm import SpeechLLM


def speech_qwen3(
    projector: nn.Module | None = None,
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
) -> SpeechLLM:
    """A dense Qwen3 that takes speech.

    Args:
        projector: frames to speech vectors of width ``embed_dim``; None for text alone.
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
        tie_embeddings: output layer shares the embedding table (0.6B, 1.7B and 4B).

    Returns:
        The model, with freshly initialised weights.
    """
    shape = {k: v for k, v in locals().items() if k != "projector"}
    return SpeechLLM(qwen3(**shape), projector)


def lora_speech_qwen3(
    projector: nn.Module | None = None,
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES] = ALL_ATTN_MODULES,
    apply_lora_to_mlp: bool = True,
    lora_rank: int = 8,
    lora_alpha: float = 16,
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
) -> SpeechLLM:
    """A dense Qwen3 with LoRA that takes speech.

    Args:
        projector: see :func:`speech_qwen3`.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the three feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8 (NLE 2026).
        lora_alpha: the update is scaled by alpha / rank. Default 16 (NLE 2026).
        lora_dropout: dropout before the update. Default 0 (NLE 2026).
        vocab_size: see :func:`speech_qwen3`, as the arguments below.
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
        The model; LoRA's second matrices are zero, so that it starts as the frozen LLM.
    """
    check_lora_modules(lora_attn_modules)
    settings = {k: v for k, v in locals().items() if k != "projector"}
    return SpeechLLM(lora_qwen3(**settings), projector)


def speech_qwen3_4b(
    projector: nn.Module | None = None, *, rope_base: float = QWEN3_4B["rope_base"]
) -> SpeechLLM:
    """Qwen3-4B-Instruct-2507 that takes speech, the LLM of NLE 2026 (arXiv 2607.01960).

    Args:
        projector: frames to speech vectors of width 2560; None for text alone.
        rope_base: base of the rotary embedding; 1,000,000 makes it the first Qwen3-4B.

    Returns:
        The model, with freshly initialised weights.
    """
    return speech_qwen3(projector, **QWEN3_4B | {"rope_base": rope_base})


def lora_speech_qwen3_4b(
    projector: nn.Module | None = None,
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES] = ALL_ATTN_MODULES,
    apply_lora_to_mlp: bool = True,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    rope_base: float = QWEN3_4B["rope_base"],
) -> SpeechLLM:
    """Qwen3-4B-Instruct-2507 with LoRA that takes speech, NLE 2026 (arXiv 2607.01960).

    Args:
        projector: frames to speech vectors of width 2560; None for text alone.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8.
        lora_alpha: the update is scaled by alpha / rank. Default 16.
        lora_dropout: dropout before the update.
        rope_base: base of the rotary embedding; 1,000,000 makes it the first Qwen3-4B.

    Returns:
        The model.
    """
    return lora_speech_qwen3(**QWEN3_4B | locals())


def speech_qwen3_from_hf(path: str, projector: nn.Module | None = None) -> SpeechLLM:
    """A SpeechLLM in the shape that a Hugging Face folder's ``config.json`` gives.

    Args:
        path: folder of a dense Qwen3 model.
        projector: frames to speech vectors; None for text alone.

    Returns:
        The model, with freshly initialised weights (:func:`load_hf_weights` reads the real ones).

    Raises:
        InputError: if the folder is no Qwen3, or asks for what is not built.
    """
    return speech_qwen3(projector, **qwen3_shape_from_hf(path))


def lora_speech_qwen3_from_hf(
    path: str,
    projector: nn.Module | None = None,
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES] = ALL_ATTN_MODULES,
    apply_lora_to_mlp: bool = True,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
) -> SpeechLLM:
    """As :func:`speech_qwen3_from_hf`, with LoRA.

    Args:
        path: folder of a dense Qwen3 model.
        projector: frames to speech vectors; None for text alone.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8.
        lora_alpha: the update is scaled by alpha / rank. Default 16.
        lora_dropout: dropout before the update.

    Returns:
        The model.

    Raises:
        InputError: if the folder is no Qwen3, or asks for what is not built.
    """
    lora = {k: v for k, v in locals().items() if k not in ("path", "projector")}
    return lora_speech_qwen3(projector, **lora, **qwen3_shape_from_hf(path))


def qwen3_shape_from_hf(path: str | Path) -> dict[str, Any]:
    """Keyword arguments of :func:`speech_qwen3` from a Hugging Face ``config.json``.

    Args:
        path: folder that holds ``config.json``.

    Returns:
        The shape and the rotary base.

    Raises:
        InputError: if the file is absent, of another family, or asks for biases, a sliding window
            or scaled rotary embeddings, which are not built.
    """
    config, where = read_hf_config(path), f"{path}/config.json"
    if config.get("model_type") != "qwen3":
        raise InputError(
            f"{where}: model_type is {config.get('model_type')!r}; "
            "give a folder of a dense Qwen3 model"
        )
    check_plain_layers(config, where)
    rope = rope_settings(config)
    if rope["rope_type"] != "default":
        raise InputError(
            f"{where}: rotary scaling {rope['rope_type']!r} is not supported; use a plain Qwen3 "
            "model"
        )
    heads = config["num_attention_heads"]
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or 128,  # the default of Hugging Face's Qwen3Config
        "embed_dim": config["hidden_size"],
        "max_seq_len": config["max_position_embeddings"],
        "intermediate_dim": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_base": rope["rope_theta"] or 1_000_000,
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
