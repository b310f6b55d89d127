"""A Hugging Face folder's ``config.json``: which family of LLMs, and how its weights are kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torchtune_speech.errors import InputError


class Family(NamedTuple):
    """How a family's weights are kept, in Hugging Face's files and in torchtune's decoder.

    Attributes:
        names: Hugging Face's name to torchtune's; ``{}`` stands for the number of the layer.
        rotary_pairs: torchtune's rotary embedding of this family turns neighbouring values, where
            Hugging Face turns the two halves of a head: rows of q and k change places.
    """

    names: Mapping[str, str]
    rotary_pairs: bool


_LLAMA_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.layers.{}.self_attn.q_proj.weight": "layers.{}.attn.q_proj.weight",
    "model.layers.{}.self_attn.k_proj.weight": "layers.{}.attn.k_proj.weight",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.attn.v_proj.weight",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.attn.output_proj.weight",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.mlp.w1.weight",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.mlp.w2.weight",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.mlp.w3.weight",
    "model.layers.{}.input_layernorm.weight": "layers.{}.sa_norm.scale",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.mlp_norm.scale",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "output.weight",
}
_QWEN3_NAMES = _LLAMA_NAMES | {
    "model.layers.{}.self_attn.q_norm.weight": "layers.{}.attn.q_norm.scale",
    "model.layers.{}.self_attn.k_norm.weight": "layers.{}.attn.k_norm.scale",
}

FAMILIES = {
    "llama": Family(_LLAMA_NAMES, rotary_pairs=True),
    "qwen3": Family(_QWEN3_NAMES, rotary_pairs=False),
}
"""Families of LLMs by the ``model_type`` of their ``config.json``."""


def read_hf_config(path: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a Hugging Face model folder.

    Args:
        path: the folder.

    Returns:
        The parsed file.

    Raises:
        InputError: if the folder or the file is absent, or not JSON.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise InputError(
            f"{path}: no config.json there; give the folder of a Hugging Face model "
            "(download one with `tune download`)"
        )
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: not valid JSON ({error}); download the model again") from None


def family_of(config: Mapping[str, Any], path: str | Path = "the LLM's folder") -> Family:
    """The family that a ``config.json`` is of.

    Args:
        config: the parsed file.
        path: its folder, for the message.

    Returns:
        How this family's weights are kept.

    Raises:
        InputError: if the family is none of :data:`FAMILIES`.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise InputError(
            f"{path}/config.json: model_type is {kind!r}; give a folder of one of the families "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def check_plain_layers(config: Mapping[str, Any], where: str) -> None:
    """Refuse biases, activations and windows that torchtune's decoders do not have.

    Args:
        config: the parsed ``config.json``.
        where: its path, for the message.

    Raises:
        InputError: naming the setting.
    """
    for key, plain in (
        ("attention_bias", False),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("hidden_act", "silu"),
    ):
        if config.get(key) not in (None, plain):
            raise InputError(
                f"{where}: {key} is {config[key]!r}, which torchtune's decoder cannot express; use "
                "another model"
            )


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says of rotary embeddings.

    transformers 5 writes ``rope_parameters``, earlier versions ``rope_scaling`` and ``rope_theta``.

    Args:
        config: the parsed file.

    Returns:
        The settings of ``rope_parameters``; ``rope_type`` is always there, ``rope_theta`` is
        None where the file says nothing.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta")
    return rope
