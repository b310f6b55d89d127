"""Weights in and out of Hugging Face folders: the frozen LLM, PEFT adapters, merged exports."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchtune.models.convert_weights import (
    hf_to_tune,
    tune_to_hf,
    tune_to_peft_adapter_config,
    tune_to_peft_adapter_weights,
)
from torchtune.modules.peft import get_lora_module_names, get_merged_lora_ckpt

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write
from torchtune_speech.models._llama3_1 import read_hf_config

_PEFT_PREFIX = "base_model.model."
_PEFT_TO_TUNE = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of every shard of a sharded one.

    Args:
        path: a ``.safetensors`` file, or a folder holding ``model.safetensors`` or
            ``model.safetensors.index.json`` with its shards.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        InputError: if a file is missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in _safetensors_files(path):
        with open_safetensors(file) as f:
            tensors.update({name: f.get_tensor(name) for name in f.keys()})
    return tensors


@contextmanager
def open_safetensors(file: Path) -> Iterator[safe_open]:
    """Open a safetensors file whose tensors are to be read one by one.

    Args:
        file: the file.

    Yields:
        The open file of the safetensors library.

    Raises:
        InputError: if it is missing or damaged, or the text file that git-lfs leaves in its place.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}); copy or download it again") from None


def _safetensors_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = _read_index(path)
    return [_single_file(path)] if index is None else sorted(set(index.values()))


def read_weight_map(path: Path) -> dict[str, Path]:
    """Which file of a Hugging Face folder holds which weight; no weight is read.

    Args:
        path: the folder.

    Returns:
        Name of the weight to file.

    Raises:
        InputError: if there is no safetensors file, or the index or the file is damaged.
    """
    index = _read_index(path)
    if index is not None:
        return index
    single = _single_file(path)
    with open_safetensors(single) as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _read_index(path: Path) -> dict[str, Path] | None:
    """Name of each weight to its shard; None where the folder has no index."""
    file = path / "model.safetensors.index.json"
    if not file.is_file():
        return None
    try:
        shards = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        return {name: path / shard for name, shard in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error!r}); download the model again") from error


def _single_file(path: Path) -> Path:
    single = path / "model.safetensors"
    if single.is_file():
        return single
    raise InputError(
        f"{path}: no model.safetensors or model.safetensors.index.json; "
        "download the model's safetensors files"
    )


def load_hf_weights(path: str | Path) -> dict[str, Tensor]:
    """The LLM's weights under the names of :class:`SpeechLLM` (``decoder.*``).

    Args:
        path: Hugging Face folder with ``config.json`` and safetensors.

    Returns:
        State dict for ``model.load_state_dict(..., strict=False)``.

    Raises:
        InputError: if files are missing or damaged.
    """
    config = read_hf_config(path)
    tensors = read_safetensors(Path(path))
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    try:
        converted = hf_to_tune(tensors, **_head_shape(config))
    except Exception as error:  # torchtune raises nothing more exact for a name it does not know
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: its weights do not fit its config.json ({reason}); download the model again"
        ) from error
    return {f"decoder.{name}": tensor for name, tensor in converted.items()}


def export_merged(
    llm_dir: str | Path, adapter_dir: str | Path, out: str | Path, *, max_shard_size: str = "5GB"
) -> None:
    """Write the LLM with its LoRA merged in as a plain Hugging Face folder.

    Args:
        llm_dir: folder of the frozen LLM.
        adapter_dir: a checkpoint folder with ``adapter_model.safetensors``.
        out: folder to write; it must not exist.
        max_shard_size: upper limit of one safetensors file. Default 5 GB.

    Raises:
        InputError: if an input is missing, the adapter does not fit, or ``out`` exists.
    """
    if Path(out).exists():
        raise InputError(f"{out}: exists; name a new folder")
    config, adapter = read_hf_config(llm_dir), read_adapter_config(adapter_dir)
    lora = load_peft_adapter(adapter_dir, llm_dir)
    merged = load_hf_weights(llm_dir)
    _check_updates(lora, merged, adapter_dir, llm_dir)
    merged |= lora
    dtype = merged["decoder.tok_embeddings.weight"].dtype
    merged = {name.removeprefix("decoder."): t.float() for name, t in merged.items()}
    merged = get_merged_lora_ckpt(merged, rank=adapter["r"], alpha=adapter["lora_alpha"])
    hf = tune_to_hf(merged, **_head_shape(config))
    weights = {name: t.to(dtype).contiguous() for name, t in hf.items()}
    with atomic_write(out) as part:
        part.mkdir()
        for file in Path(llm_dir).iterdir():
            is_weights = ".safetensors" in file.name or file.suffix in (".bin", ".pth")
            if file.is_file() and not is_weights:
                shutil.copyfile(file, part / file.name)  # not its mode, it may be read-only
        save_torch_state_dict(weights, part, max_shard_size=max_shard_size)


def _check_updates(
    lora: dict[str, Tensor], base: dict[str, Tensor], adapter_dir: str | Path, llm_dir: str | Path
) -> None:
    for name, a in lora.items():
        if not name.endswith(".lora_a.weight"):
            continue
        module = name.removesuffix(".lora_a.weight")
        b, weight = lora.get(f"{module}.lora_b.weight"), base.get(f"{module}.weight")
        if b is None or weight is None or weight.shape != (b.shape[0], a.shape[1]):
            raise InputError(
                f"{adapter_dir}: its LoRA does not fit {module} of {llm_dir}; "
                "give the LLM that it was trained with"
            )


def to_peft(adapter: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """LoRA weights under PEFT's names, with the rows of q and k in Hugging Face's order.

    Args:
        adapter: ``layers.*.lora_a.weight`` and ``lora_b.weight`` of torchtune's decoder.
        config: ``config.json`` of the LLM.

    Returns:
        Name to tensor as in ``adapter_model.safetensors``.
    """
    return {
        k: v.contiguous()
        for k, v in tune_to_peft_adapter_weights(adapter, **_head_shape(config)).items()
    }


def peft_config(
    *, lora_attn_modules: list[str], apply_lora_to_mlp: bool, rank: int, alpha: float, base: str
) -> dict[str, Any]:
    """``adapter_config.json`` of PEFT.

    Args:
        lora_attn_modules: torchtune names of the adapted attention projections.
        apply_lora_to_mlp: whether the feed-forward matrices are adapted.
        rank: rank of the updates.
        alpha: scale of the updates.
        base: folder or hub id of the LLM.

    Returns:
        The configuration.
    """
    modules = get_lora_module_names(list(lora_attn_modules), apply_lora_to_mlp, False)
    return tune_to_peft_adapter_config(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": modules,
        },
        base,
    )


def read_adapter_config(path: str | Path) -> dict[str, Any]:
    """``adapter_config.json`` of a checkpoint folder.

    Args:
        path: the folder.

    Returns:
        The parsed file.

    Raises:
        InputError: if it is not there, or scales its updates in another way than alpha / r.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        raise InputError(
            f"{path}: no adapter_config.json; give a checkpoint folder with a LoRA adapter"
        )
    config = json.loads(file.read_text())
    odd = [k for k in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(k)]
    if odd:
        raise InputError(
            f"{file}: {', '.join(odd)} cannot be expressed by torchtune's LoRA; "
            "give a plain LoRA adapter"
        )
    return config


def load_peft_adapter(path: str | Path, llm_dir: str | Path) -> dict[str, Tensor]:
    """LoRA weights of a PEFT folder under the names of :class:`SpeechLLM`.

    The inverse of :func:`to_peft`, bit for bit: torchtune stores the rows of q and k with the two
    halves of each head interleaved, Hugging Face one half after the other.

    Args:
        path: folder with ``adapter_model.safetensors``.
        llm_dir: folder of the LLM, whose head counts the permutation needs.

    Returns:
        ``decoder.layers.*.lora_a.weight`` and ``lora_b.weight``.

    Raises:
        InputError: if the file is missing, damaged, or adapts something unknown.
    """
    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(
            f"{path}: no adapter_model.safetensors; give a checkpoint folder with a LoRA adapter"
        )
    shape = _head_shape(read_hf_config(llm_dir))
    return {
        _tune_adapter_name(name, file): _tune_adapter_rows(name, tensor, shape)
        for name, tensor in read_safetensors(file).items()
    }


def _tune_adapter_name(name: str, file: Path) -> str:
    match = re.fullmatch(
        re.escape(_PEFT_PREFIX)
        + r"model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])(?:\.default)?\.weight",
        name,
    )
    if not match or match[2] not in _PEFT_TO_TUNE:
        raise InputError(
            f"{file}: unknown adapter weight {name!r}; "
            "only LoRA on attention and feed-forward layers is supported"
        )
    return f"decoder.layers.{match[1]}.{_PEFT_TO_TUNE[match[2]]}.lora_{match[3].lower()}.weight"


def _tune_adapter_rows(name: str, tensor: Tensor, shape: dict[str, int]) -> Tensor:
    heads = {"q_proj": shape["num_heads"], "k_proj": shape["num_kv_heads"]}.get(name.split(".")[-3])
    if heads is None or "lora_B" not in name:
        return tensor
    rows, rank = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, rank).transpose(1, 2).reshape(rows, rank)


def _head_shape(config: dict[str, Any]) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "dim": config["hidden_size"],
    }


def check_shapes(model: torch.nn.Module, weights: dict[str, Tensor], origin: str | Path) -> None:
    """Refuse weights that do not fit the model, before anything is loaded.

    Args:
        model: the model they are meant for.
        weights: names and tensors to load.
        origin: where they come from, for the message.

    Raises:
        InputError: naming the first weight that the model lacks or has in another shape.
    """
    expected = {name: tuple(p.shape) for name, p in model.state_dict(keep_vars=True).items()}
    for name, tensor in weights.items():
        if name not in expected:
            raise InputError(
                f"{origin}: weight {name} is not in the model; "
                "use the model settings that this checkpoint was made with"
            )
        if tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{origin}: {name} has shape {tuple(tensor.shape)}, the model {expected[name]}; "
                "use the model settings that this checkpoint was made with"
            )
