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
from torchtune.models.convert_weights import get_mapped_key, tune_to_peft_adapter_config
from torchtune.modules.peft import get_lora_module_names, get_merged_lora_ckpt

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write
from torchtune_speech.models._hf_config import family_of, read_hf_config, rope_settings

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
_TUNE_TO_PEFT = {ours: theirs for theirs, ours in _PEFT_TO_TUNE.items()}


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
        InputError: if files are missing or damaged, or the family is unknown.
    """
    config = read_hf_config(path)
    family = family_of(config, path)
    tensors = read_safetensors(Path(path))
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    try:
        _check_heads(tensors, config)
        converted = {
            get_mapped_key(name, family.names): _rotary_rows(name, tensor, config, to_pairs=True)
            for name, tensor in tensors.items()
            if "rotary_emb.inv_freq" not in name
        }
    except Exception as error:  # torchtune raises nothing more exact for a name it does not know
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: its weights do not fit its config.json ({reason}); download the model again"
        ) from error
    return {f"decoder.{name}": tensor for name, tensor in converted.items()}


def _check_heads(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight") and tensor.shape[0] != heads * head_dim:
            raise ValueError(f"{name} has {tensor.shape[0]} rows, not {heads} x {head_dim}")


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
    hf_names = {ours: theirs for theirs, ours in family_of(config, llm_dir).names.items()}
    weights = {
        get_mapped_key(name, hf_names): _rotary_rows(name, t, config, to_pairs=False)
        .to(dtype)
        .contiguous()
        for name, t in merged.items()
    }
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
    weights = {}
    for name, tensor in adapter.items():
        _, layer, part, projection, matrix, _ = name.split(".")
        theirs = f"model.layers.{layer}.{_TUNE_TO_PEFT[f'{part}.{projection}']}"
        matrix = {"lora_a": "lora_A", "lora_b": "lora_B"}[matrix]
        weights[f"{_PEFT_PREFIX}{theirs}.{matrix}.weight"] = _rotary_rows(
            name, tensor, config, to_pairs=False
        ).contiguous()
    return weights


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
        InputError: if it is not there or damaged, or scales its updates in another way than
            alpha / r.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        raise InputError(
            f"{path}: no adapter_config.json; give a checkpoint folder with a LoRA adapter"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error}); copy or download it again") from None
    if not {"r", "lora_alpha"} <= config.keys():
        raise InputError(f"{file}: lacks r or lora_alpha; give a plain LoRA adapter")
    odd = [k for k in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(k)]
    if odd:
        raise InputError(
            f"{file}: {', '.join(odd)} cannot be expressed by torchtune's LoRA; "
            "give a plain LoRA adapter"
        )
    return config


def load_peft_adapter(path: str | Path, llm_dir: str | Path) -> dict[str, Tensor]:
    """LoRA weights of a PEFT folder under the names of :class:`SpeechLLM`.

    The inverse of :func:`to_peft`, bit for bit: for Llama, torchtune stores the rows of q and k
    with the two halves of each head interleaved, Hugging Face one half after the other.

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
    config = read_hf_config(llm_dir)
    return {
        _tune_adapter_name(name, file): _rotary_rows(name, tensor, config, to_pairs=True)
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


def _rotary_rows(name: str, tensor: Tensor, config: dict[str, Any], *, to_pairs: bool) -> Tensor:
    """Rows of q and k as the rotary embedding at the other end wants them.

    Hugging Face's turns the two halves of a head, torchtune's Llama neighbouring pairs. Rows are
    those of the projections and of LoRA's second matrices; whatever else comes back as it is.

    Args:
        name: of the weight, Hugging Face's or torchtune's.
        tensor: the weight.
        config: ``config.json`` of the LLM.
        to_pairs: halves to pairs, the way into torchtune; else pairs to halves.

    Returns:
        The weight, its rows reordered where the family needs it.
    """
    heads = config["num_attention_heads"]
    if ".k_proj." in name:
        heads = config.get("num_key_value_heads") or heads
    elif ".q_proj." not in name:
        return tensor
    if "lora_a" in name.lower() or not family_of(config).rotary_pairs:
        return tensor
    half = tensor.shape[0] // heads // 2
    sides = (2, half) if to_pairs else (half, 2)
    return tensor.unflatten(0, (heads, *sides)).transpose(1, 2).reshape(tensor.shape)


def check_hf_settings(model: torch.nn.Module, path: str | Path) -> None:
    """Refuse a model whose rotary embedding or norms are not those of the LLM's folder.

    Nothing else would tell: models of one shape differ in them, as Qwen3-4B and
    Qwen3-4B-Instruct-2507 or Llama-3-8B and Llama-3.1-8B do.

    Args:
        model: a :class:`SpeechLLM`, may be on the meta device.
        path: Hugging Face folder of the LLM.

    Raises:
        InputError: saying both values.
    """
    config = read_hf_config(path)
    rope, ours = rope_settings(config), model.decoder.layers[0].attn.pos_embeddings
    scale = 1 if rope["rope_type"] == "default" else rope.get("factor")
    for key, value, name, own in (
        ("rope_theta", rope["rope_theta"], "rope_base", getattr(ours, "base", None)),
        ("rope scaling", scale, "scale_factor", getattr(ours, "scale_factor", None)),
        ("rms_norm_eps", config.get("rms_norm_eps"), "norm_eps", model.decoder.norm.eps),
    ):
        if value is not None and own is not None and value != own:
            raise InputError(
                f"{path}/config.json: {key} is {value:g}, the model's {name} {own:g}; "
                f"use the builder of that LLM, or set model.{name}"
            )


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
