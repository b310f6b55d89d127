"""SpeechLLM builders over torchtune's Llama-3.1 decoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torchtune.models import llama3_1 as llama
from torchtune.models import llama3_2
from torchtune.modules.peft import LORA_ATTN_MODULES

from torchtune_speech.errors import InputError
from torchtune_speech.models._hf_config import check_plain_layers, read_hf_config, rope_settings
from torchtune_speech.models._lora_modules import ALL_ATTN_MODULES, check_lora_modules
from torchtune_speech.models._speech_llm import SpeechLLM

# The shape of Llama-3.1-8B, https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct (config.json).
LLAMA3_1_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "embed_dim": 4096,
    "max_seq_len": 131_072,
    "intermediate_dim": 14_336,
    "norm_eps": 1e-5,
    "rope_base": 500_000,
    "scale_factor": 8,
    "tie_embeddings": False,
}


def speech_llama3_1(
    projector: nn.Module | None = None,
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    intermediate_dim: int | None = None,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: int = 500_000,
    scale_factor: float = 8,
    tie_embeddings: bool = False,
) -> SpeechLLM:
    """A Llama of the 3.x family that takes speech.

    Args:
        projector: frames to speech vectors of width ``embed_dim``; None for text alone.
        vocab_size: rows of the embedding table.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width of the decoder.
        max_seq_len: longest sequence the rotary cache is built for, in tokens.
        intermediate_dim: width of the feed-forward layers; torchtune's rule when None.
        attn_dropout: dropout on attention weights. Default 0.
        norm_eps: epsilon of the RMS norms.
        rope_base: base of the rotary embedding.
        scale_factor: Llama-3.1 scaling of the rotary frequencies; 1 means none (Llama 3.0).
        tie_embeddings: output layer shares the embedding table (Llama-3.2 1B and 3B).

    Returns:
        The model, with freshly initialised weights.
    """
    shape = {k: v for k, v in locals().items() if k not in ("projector", "tie_embeddings")}
    build = llama3_2.llama3_2 if tie_embeddings else llama.llama3_1
    return SpeechLLM(build(**shape), projector)


def lora_speech_llama3_1(
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
    embed_dim: int,
    max_seq_len: int,
    intermediate_dim: int | None = None,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: int = 500_000,
    scale_factor: float = 8,
    tie_embeddings: bool = False,
) -> SpeechLLM:
    """A Llama of the 3.x family with LoRA that takes speech.

    Args:
        projector: see :func:`speech_llama3_1`.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the three feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8 (NLE 2025).
        lora_alpha: the update is scaled by alpha / rank. Default 16 (NLE 2025).
        lora_dropout: dropout before the update.
        vocab_size: see :func:`speech_llama3_1`, as the arguments below.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width of the decoder.
        max_seq_len: longest sequence the rotary cache is built for, in tokens.
        intermediate_dim: width of the feed-forward layers.
        attn_dropout: dropout on attention weights.
        norm_eps: epsilon of the RMS norms.
        rope_base: base of the rotary embedding.
        scale_factor: Llama-3.1 scaling of the rotary frequencies.
        tie_embeddings: output layer shares the embedding table.

    Returns:
        The model; LoRA's second matrices are zero, so that it starts as the frozen LLM.
    """
    check_lora_modules(lora_attn_modules)
    shape = dict(locals())
    for own in ("projector", "tie_embeddings", "lora_attn_modules"):
        del shape[own]
    build = llama3_2.lora_llama3_2 if tie_embeddings else llama.lora_llama3_1
    return SpeechLLM(build(lora_attn_modules=list(lora_attn_modules), **shape), projector)


def speech_llama3_1_8b(projector: nn.Module | None = None) -> SpeechLLM:
    """Llama-3.1-8B that takes speech, the LLM of NLE 2025 (arXiv 2506.01808).

    Args:
        projector: frames to speech vectors of width 4096; None for text alone.

    Returns:
        The model, with freshly initialised weights.
    """
    return speech_llama3_1(projector, **LLAMA3_1_8B)


def lora_speech_llama3_1_8b(
    projector: nn.Module | None = None,
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES] = ALL_ATTN_MODULES,
    apply_lora_to_mlp: bool = True,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
) -> SpeechLLM:
    """Llama-3.1-8B with LoRA that takes speech, NLE 2025 (arXiv 2506.01808).

    Args:
        projector: frames to speech vectors of width 4096; None for text alone.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8.
        lora_alpha: the update is scaled by alpha / rank. Default 16.
        lora_dropout: dropout before the update.

    Returns:
        The model.
    """
    return lora_speech_llama3_1(**locals(), **LLAMA3_1_8B)


def speech_llama3_1_from_hf(path: str, projector: nn.Module | None = None) -> SpeechLLM:
    """A SpeechLLM in the shape that a Hugging Face folder's ``config.json`` gives.

    Args:
        path: folder of a Llama-3-family model (3.0, 3.1, 3.2, 3.3).
        projector: frames to speech vectors; None for text alone.

    Returns:
        The model, with freshly initialised weights (:func:`load_hf_weights` reads the real ones).

    Raises:
        InputError: if the folder is no Llama of this family.
    """
    return speech_llama3_1(projector, **llama_shape_from_hf(path))


def lora_speech_llama3_1_from_hf(
    path: str,
    projector: nn.Module | None = None,
    *,
    lora_attn_modules: Sequence[LORA_ATTN_MODULES] = ALL_ATTN_MODULES,
    apply_lora_to_mlp: bool = True,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
) -> SpeechLLM:
    """As :func:`speech_llama3_1_from_hf`, with LoRA.

    Args:
        path: folder of a Llama-3-family model.
        projector: frames to speech vectors; None for text alone.
        lora_attn_modules: attention projections that get LoRA. Default all four.
        apply_lora_to_mlp: also adapt the feed-forward matrices. Default True.
        lora_rank: rank of the updates. Default 8.
        lora_alpha: the update is scaled by alpha / rank. Default 16.
        lora_dropout: dropout before the update.

    Returns:
        The model.

    Raises:
        InputError: if the folder is no Llama of this family.
    """
    lora = {k: v for k, v in locals().items() if k not in ("path", "projector")}
    return lora_speech_llama3_1(projector, **lora, **llama_shape_from_hf(path))


def llama_shape_from_hf(path: str | Path) -> dict[str, Any]:
    """Keyword arguments of :func:`speech_llama3_1` from a Hugging Face ``config.json``.

    Args:
        path: folder that holds ``config.json``.

    Returns:
        The shape, the rotary base and its scaling.

    Raises:
        InputError: if the file is absent, or asks for something this family does not have.
    """
    config = read_hf_config(path)
    where = f"{path}/config.json"
    if config.get("model_type") != "llama":
        raise InputError(
            f"{where}: model_type is {config.get('model_type')!r}; "
            "give a folder of a Llama-3-family model"
        )
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    if config.get("head_dim") not in (None, dim // heads):
        raise InputError(
            f"{where}: head_dim {config['head_dim']} is not hidden_size / num_attention_heads; "
            "torchtune's Llama builders cannot express that, use another model"
        )
    check_plain_layers(config, where)
    rope = rope_settings(config)
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "embed_dim": dim,
        "max_seq_len": config["max_position_embeddings"],
        "intermediate_dim": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_base": int(rope["rope_theta"] or 500_000),
        "scale_factor": _rope_scale(rope, where),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _rope_scale(rope: dict[str, Any], where: str) -> float:
    kind = rope["rope_type"]
    if kind == "default":
        return 1
    fixed = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
    odd = {k: rope.get(k) for k, v in fixed.items() if rope.get(k, v) != v}
    if kind != "llama3" or odd:
        raise InputError(
            f"{where}: rotary scaling {kind!r} with {odd or 'other rules'} is not torchtune's "
            "Llama-3.1 scaling; use a model of the Llama-3 family"
        )
    return rope["factor"]
