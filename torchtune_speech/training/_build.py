"""A SpeechLLM with real weights: frozen LLM, projector, LoRA; in one process or sharded."""

import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchtune import training
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.peft import get_adapter_params

from torchtune_speech import config
from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    ProjectorWithTable,
    SpeechLLM,
    check_hf_settings,
    check_quantize,
    check_shapes,
    is_quantized,
    load_embedding_table,
    load_hf_weights,
    quantize_frozen,
    quantize_weight,
    read_adapter_config,
    read_hf_config,
)
from torchtune_speech.training._checkpoint import (
    find_adapter,
    load_trained,
    lora_settings,
)
from torchtune_speech.training._compile import compile_layers
from torchtune_speech.training._process import Process


def meta_speech_llm(
    model: DictConfig,
    projector: nn.Module | None,
    dtype: torch.dtype,
    quantize: str | None = None,
) -> SpeechLLM:
    """The model without memory: frozen weights in ``dtype``, trainable ones in float32.

    Args:
        model: component node of a SpeechLLM builder.
        projector: the projector; it is moved to the meta device too.
        dtype: of the frozen LLM.
        quantize: fewer bits for the matrices of its layers, ``nf4`` or ``float8``. Default None.

    Returns:
        The model on the meta device.

    Raises:
        InputError: if projector and LLM differ in width, or a matrix cannot be quantised.
    """
    if projector is not None:
        projector = projector.to("meta")
    with torch.device("meta"), training.set_default_dtype(dtype):
        built = config.instantiate(model, projector=projector)
    for module in built.decoder.modules():
        for name in ("lora_a", "lora_b"):
            if hasattr(module, name):
                getattr(module, name).float()
    if (
        projector is not None
        and built.projector.out_dim != built.decoder.tok_embeddings.embedding_dim
    ):
        raise InputError(
            f"projector.out_dim: {built.projector.out_dim}, but the LLM's embeddings are "
            f"{built.decoder.tok_embeddings.embedding_dim} wide; set projector.out_dim to that"
        )
    if quantize is not None:
        quantize_frozen(built, quantize)
    return built


def build_speech_llm(
    model: DictConfig,
    *,
    llm_dir: str | Path,
    projector: nn.Module | None = None,
    projector_checkpoint: str | Path | None = None,
    adapter_checkpoint: str | Path | None = None,
    process: Process,
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
    seed: int = 0,
    activation_checkpointing: bool = False,
    compile: bool = False,
    shard: bool = True,
    shard_llm: bool = True,
) -> SpeechLLM:
    """Build the model, load the LLM, and shard it when there are several processes.

    Args:
        model: component node of a SpeechLLM builder.
        llm_dir: Hugging Face folder of the LLM.
        projector: freshly initialised projector, the same in every process.
        projector_checkpoint: run or checkpoint whose projector replaces the initial one.
        adapter_checkpoint: run, checkpoint or PEFT folder whose LoRA replaces the initial one.
        process: this process.
        dtype: of the frozen LLM; trainable weights are float32.
        quantize: fewer bits for the matrices of its layers, ``nf4`` or ``float8``: see
            :func:`quantize_weight`. Default None.
        seed: of LoRA's initial values.
        activation_checkpointing: recompute the decoder's layers in the backward pass.
        compile: compile the decoder's layers; see :func:`compile_layers`.
        shard: split the weights over the processes; False gives each the whole model.
        shard_llm: split the frozen LLM too; False holds it whole in each process, which needs not
            gather it at each use, and splits projector and LoRA alone. Quantised weights are whole
            in each process either way.

    Returns:
        The model on the process's device, everything frozen.

    Raises:
        InputError: if weights are missing or do not fit, or the device cannot compute so.
    """
    check_quantize(quantize, dtype, process.device)
    initial = (
        {f"projector.{k}": v for k, v in projector.state_dict().items()}
        if projector is not None
        else {}
    )
    built = meta_speech_llm(model, projector, dtype, quantize)
    # Small and often the wrong ones: read before the LLM, which takes minutes.
    trained = _trained_projector(built, projector_checkpoint, llm_dir)
    trained |= _trained_lora(built, adapter_checkpoint, llm_dir)
    weights = load_hf_weights(llm_dir)
    check_shapes(built, weights, llm_dir)
    check_hf_settings(built, llm_dir)
    weights = weights | initial | initial_lora(built, seed) | trained
    missing = set(built.state_dict()) - set(weights)
    if missing == {"decoder.output.weight"} and read_hf_config(llm_dir).get("tie_word_embeddings"):
        raise InputError(
            f"{llm_dir}: its output layer is its embedding table; set model.tie_embeddings=true"
        )
    if missing:
        raise InputError(
            f"{llm_dir}: {len(missing)} weights are missing, among them {sorted(missing)[0]}; "
            "download the model again"
        )
    if activation_checkpointing:
        recompute_layers(built)
    if compile:
        compile_layers(built)
    if quantize is not None:
        _load_quantized(built, weights, process, quantize)
    shard = shard and process.world_size > 1
    if shard and not shard_llm:
        _load_whole(built, weights, process, _frozen_names(built))
    _load(built, weights, process, shard)
    return built.requires_grad_(False)


def build_projector_with_table(
    *,
    llm_dir: str | Path,
    projector: nn.Module,
    projector_checkpoint: str | Path | None = None,
    process: Process,
    dtype: torch.dtype = torch.float32,
    contrast: bool = False,
) -> ProjectorWithTable:
    """A projector and the LLM's embedding table, without the rest of the LLM.

    Args:
        llm_dir: Hugging Face folder of the LLM.
        projector: freshly initialised projector, the same in every process.
        projector_checkpoint: run or checkpoint whose projector replaces the initial one.
        process: this process, which holds all of it.
        dtype: of the table; the projector is float32.
        contrast: whether the table's rows are wanted at length 1, too.

    Returns:
        The model on the process's device, the table frozen.

    Raises:
        InputError: if weights are missing or do not fit.
    """
    table = load_embedding_table(llm_dir, dtype)
    built = ProjectorWithTable(projector, table, contrast=contrast)
    built.load_state_dict(_trained_projector(built, projector_checkpoint, llm_dir), strict=False)
    return built.to(process.device)


def recompute_layers(model: SpeechLLM) -> None:
    """Have the decoder's layers keep only what comes in, and compute the rest again, in place.

    Args:
        model: the model, may be on the meta device.
    """
    training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})


def _trained_projector(
    model: SpeechLLM | ProjectorWithTable, checkpoint: str | Path | None, llm_dir: str | Path
) -> dict[str, Tensor]:
    if checkpoint is None:
        return {}
    names = {name for name in model.state_dict() if name.startswith("projector.")}
    loaded = load_trained(projector=checkpoint, llm_dir=llm_dir)
    # A CTC head may be left behind, or begin with this run.
    loaded = {k: v for k, v in loaded.items() if k in names or not _is_ctc(k)}
    check_shapes(model, loaded, checkpoint)
    missing = sorted(name for name in names - set(loaded) if not _is_ctc(name))
    if missing:
        raise InputError(
            f"{checkpoint}: holds no {missing[0]}; "
            "use the projector settings that this checkpoint was made with"
        )
    return loaded


def _is_ctc(name: str) -> bool:
    return name.startswith("projector.ctc_")


def _trained_lora(
    model: SpeechLLM, checkpoint: str | Path | None, llm_dir: str | Path
) -> dict[str, Tensor]:
    if checkpoint is None:
        return {}
    loaded = load_trained(adapter=checkpoint, llm_dir=llm_dir)
    if not get_adapter_params(model.decoder):
        raise InputError(f"{checkpoint}: holds LoRA, but the model has none; use a lora_ builder")
    theirs, ours = read_adapter_config(find_adapter(checkpoint)), lora_settings(model)
    for field, name in (("r", "rank"), ("lora_alpha", "alpha")):
        if theirs[field] != ours[name]:
            raise InputError(
                f"{checkpoint}: LoRA of {name} {theirs[field]}, but model.lora_{name} is "
                f"{ours[name]}; set model.lora_{name}={theirs[field]}"
            )
    check_shapes(model, loaded, checkpoint)
    return loaded


def _load_quantized(
    model: SpeechLLM, weights: dict[str, Tensor], process: Process, kind: str
) -> None:
    """Move and quantise one matrix after the other; each is taken out of ``weights``."""
    wanted = {name: p.dtype for name, p in model.state_dict().items() if is_quantized(p)}
    moved = {
        name: quantize_weight(weights.pop(name).to(process.device, dtype), kind, name)
        for name, dtype in wanted.items()
    }
    model.load_state_dict(moved, strict=False, assign=True)


def _frozen_names(model: SpeechLLM) -> set[str]:
    """What no recipe trains: the LLM without LoRA."""
    adapter = {id(p) for p in get_adapter_params(model.decoder).values()}
    return {
        name
        for name, p in model.state_dict(keep_vars=True).items()
        if name.startswith("decoder.") and id(p) not in adapter
    }


def _load_whole(
    model: SpeechLLM, weights: dict[str, Tensor], process: Process, names: Iterable[str]
) -> None:
    """Move weights to the device as they are; each is taken out of ``weights``."""
    dtypes = {name: p.dtype for name, p in model.state_dict().items()}
    moved = {
        name: weights.pop(name).to(process.device, dtypes[name])
        for name in names
        if name in weights
    }
    model.load_state_dict(moved, strict=False, assign=True)


def _load(model: SpeechLLM, weights: dict[str, Tensor], process: Process, shard: bool) -> None:
    """Fill what is meta; rotary caches, which no checkpoint holds, are computed afresh."""
    if shard:
        _shard(model)
        training.load_from_full_model_state_dict(model, weights, process.device, strict=False)
    else:
        _load_whole(model, weights, process, list(model.state_dict()))
    with training.set_default_dtype(torch.float32), process.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):
                module.rope_init()


def _shard(model: SpeechLLM) -> None:
    """Split layers, projector and the rest over the processes, but for weights that are there.

    These are quantised, or are to be whole in each process, and need not be gathered at each use.
    """
    whole = {p for p in model.parameters() if not p.is_meta}
    # The layer with its wrapper for recomputation: decoding asks the layer for its weights.
    for part in (*model.decoder.layers, model.projector, model):
        if part is not None:
            fully_shard(part, reshard_after_forward=True, ignored_params=whole)


def initial_lora(model: SpeechLLM, seed: int) -> dict[str, Tensor]:
    """LoRA's initial values: A uniform as in the reference implementation, B zero.

    A function of the seed and the name alone, so that every process and every way of building the
    model starts alike. Source: https://github.com/microsoft/LoRA, ``loralib/layers.py``.

    Args:
        model: a SpeechLLM, may be on the meta device.
        seed: of the random values.

    Returns:
        Name to float32 tensor; empty without LoRA.
    """
    adapter = {id(p) for p in get_adapter_params(model.decoder).values()}
    values = {}
    for name, p in model.state_dict(keep_vars=True).items():
        if id(p) not in adapter:
            continue
        values[name] = torch.zeros(p.shape)
        if "lora_a" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            nn.init.kaiming_uniform_(values[name], a=math.sqrt(5), generator=generator)
    return values
