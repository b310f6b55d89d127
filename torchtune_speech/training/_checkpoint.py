"""Stage checkpoints: folders ``step_N`` that are whole or absent, holding data only.

``projector.safetensors``, ``adapter_model.safetensors`` with ``adapter_config.json`` (PEFT),
``stage.json``, and ``state/`` with what a resumed run needs.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor, distribute_tensor

from torchtune_speech.data import ChatFormat, resolve_token
from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, read_json, write_json
from torchtune_speech.models import (
    ProjectorWithTable,
    SpeechLLM,
    load_peft_adapter,
    peft_config,
    read_hf_config,
    read_safetensors,
    to_peft,
)
from torchtune_speech.training._process import Process

FORMAT = 1
SCALER_FILE = "scaler.json"
Groups = Mapping[str, Mapping[str, nn.Parameter]]


def save_checkpoint(
    output_dir: str | Path,
    step: int,
    *,
    model: SpeechLLM | ProjectorWithTable,
    groups: Groups,
    optimizer: torch.optim.Optimizer,
    plan_state: Mapping[str, Any],
    stage: Mapping[str, Any],
    llm_dir: str | Path,
    process: Process,
    keep_last: int | None = None,
    scaler: GradScaler | None = None,
) -> Path:
    """Write ``output_dir/step_N``; every process takes part, the main one writes.

    Args:
        output_dir: folder of the run.
        step: steps done.
        model: the model.
        groups: trained parameters, from :func:`trainable_groups`.
        optimizer: its state is saved.
        plan_state: state of the plan after the last step.
        stage: what ``stage.json`` tells of the run; see :func:`stage_info`.
        llm_dir: folder of the LLM, for the order of LoRA's rows.
        process: this process.
        keep_last: remove all but this many newest checkpoints; None keeps all.
        scaler: of the loss; its state is saved where it is enabled.

    Returns:
        The folder.

    Raises:
        InputError: if it cannot be written, a full disk say; earlier checkpoints stay whole.
    """
    folder = Path(output_dir) / f"step_{step}"
    weights = {
        group: {name: _full(p) for name, p in named.items()} for group, named in groups.items()
    }
    optimizer_state = {
        f"{name}/{key}": _full(value)
        for named in groups.values()
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    if process.is_main:
        for stale in Path(output_dir).glob(".step_*.partial"):  # of a run that was killed
            shutil.rmtree(stale)
        if folder.exists():  # not whole, or the run would stand after it
            shutil.rmtree(folder)
        try:
            with atomic_write(folder) as part:
                (part / "state").mkdir(parents=True)
                _write_weights(part, weights, model, llm_dir)
                save_file(optimizer_state, part / "state" / "optimizer.safetensors")
                write_json(part / "state" / "plan.json", plan_state)
                if scaler is not None and scaler.is_enabled():
                    write_json(part / "state" / SCALER_FILE, scaler.state_dict())
                write_json(part / "stage.json", {"format": FORMAT, "step": step, **stage})
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{folder}: cannot be written: {error}; it needs "
                f"{_gigabytes(_checkpoint_bytes(groups))}, {_gigabytes(_free_bytes(folder))} are "
                "free; make room and set resume=true, earlier checkpoints are whole"
            ) from error
        for old in list_checkpoints(output_dir)[: -keep_last if keep_last else 0]:
            # Whole or no checkpoint, also when killed on the way; the next save removes the rest.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.partial")))
    process.barrier()
    return folder


def check_space(cfg: DictConfig, groups: Groups, max_steps: int) -> None:
    """Refuse a run whose checkpoints have no room on the disk.

    Args:
        cfg: configuration of a training recipe.
        groups: trained parameters.
        max_steps: steps of the run.

    Raises:
        InputError: saying how much is needed and how much is free.
    """
    every, keep = cfg.save_every_n_steps, cfg.keep_last
    saves = 1 if every is None else -(-max_steps // every)
    # A new one is whole before the oldest goes.
    most = saves if keep is None else min(saves, keep + 1)
    there = len(list_checkpoints(cfg.output_dir))
    needed = max(1, most - there) * _checkpoint_bytes(groups)
    free = _free_bytes(Path(cfg.output_dir))
    if needed > free:
        raise InputError(
            f"output_dir: {cfg.output_dir} has {_gigabytes(free)} free, its checkpoints need "
            f"{_gigabytes(needed)}; make room, lower keep_last, or name another output_dir"
        )


def _checkpoint_bytes(groups: Groups) -> int:
    """Trained weights and the two moments of Adam, all in float32."""
    return 3 * 4 * sum(p.numel() for named in groups.values() for p in named.values())


def _free_bytes(path: Path) -> int:
    """Free space where a file or folder is to be, which need not exist yet."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _write_weights(
    part: Path,
    weights: Mapping[str, dict[str, Tensor]],
    model: SpeechLLM | ProjectorWithTable,
    llm_dir: str | Path,
) -> None:
    if "projector" in weights:
        projector = {name.removeprefix("projector."): t for name, t in weights["projector"].items()}
        save_file(projector, part / "projector.safetensors")
    if "lora" in weights:
        adapter = {name.removeprefix("decoder."): t for name, t in weights["lora"].items()}
        save_file(to_peft(adapter, read_hf_config(llm_dir)), part / "adapter_model.safetensors")
        write_json(
            part / "adapter_config.json", peft_config(**lora_settings(model), base=str(llm_dir))
        )


def stage_info(
    stage: str,
    *,
    config: Mapping[str, Any],
    fingerprints: Mapping[str, Any],
    metrics: Mapping[str, Any],
    evaluation_due: bool = False,
) -> dict[str, Any]:
    """What ``stage.json`` tells of a run.

    Args:
        stage: name of the recipe.
        config: its resolved configuration.
        fingerprints: of the feature store, the data and the LLM.
        metrics: last evaluation.
        evaluation_due: whether this step is still to be evaluated; see :func:`save_evaluation`.
            Default False.

    Returns:
        JSON data.
    """
    packages = ("torchtune-speech", "torch", "torchtune", "torchao", "transformers")
    return {
        "stage": stage,
        "config": config,
        "versions": {name: version(name) for name in packages},
        "fingerprints": fingerprints,
        "metrics": metrics,
        "evaluation_due": evaluation_due,
    }


def save_evaluation(
    output_dir: str | Path, step: int, metrics: Mapping[str, Any], process: Process
) -> None:
    """Tell of an evaluation in the checkpoint of its step; all else stays as it is.

    Args:
        output_dir: folder of the run.
        step: steps done. Nothing is written where the run has no checkpoint of them.
        metrics: the evaluation.
        process: this process; all take part, the main one writes.
    """
    process.barrier()  # all have read that it was due
    file = Path(output_dir) / f"step_{step}" / "stage.json"
    if process.is_main and file.is_file():
        for stale in file.parent.glob(".stage.*.partial.json"):  # of a run that was killed here
            stale.unlink()
        write_json(file, read_json(file) | {"metrics": metrics, "evaluation_due": False})


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first.

    Args:
        output_dir: folder of the run.

    Returns:
        Their folders.
    """
    found = [
        p
        for p in Path(output_dir).glob("step_*")
        if re.fullmatch(r"step_\d+", p.name) and (p / "stage.json").is_file()
    ]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder, or the newest one of a run.

    Args:
        path: ``.../step_N``, or the ``output_dir`` of a run.

    Returns:
        The checkpoint folder.

    Raises:
        InputError: if there is none, or its format is newer than this version reads.
    """
    path = Path(path)
    if not (path / "stage.json").is_file():
        found = list_checkpoints(path)
        if not found:
            raise InputError(
                f"{path}: no checkpoint there; give the output_dir of a finished stage, "
                "or one of its step_N folders"
            )
        path = found[-1]
    if read_json(path / "stage.json").get("format", 0) > FORMAT:
        raise InputError(f"{path}: written by a newer version of torchtune-speech; update this one")
    return path


def is_checkpoint(path: str | Path) -> bool:
    """Whether :func:`find_checkpoint` finds one.

    Args:
        path: ``.../step_N``, or the ``output_dir`` of a run.

    Returns:
        True if a whole checkpoint is there.
    """
    return (Path(path) / "stage.json").is_file() or bool(list_checkpoints(path))


def is_peft_folder(path: str | Path) -> bool:
    """Whether a folder holds an adapter that is not from a run of ours.

    Args:
        path: a folder.

    Returns:
        True for a PEFT folder without ``stage.json``.
    """
    path = Path(path)
    return (path / "adapter_config.json").is_file() and not (path / "stage.json").is_file()


def find_adapter(path: str | Path) -> Path:
    """The folder that a LoRA adapter lies in.

    Args:
        path: a PEFT folder, or see :func:`find_checkpoint`.

    Returns:
        The folder.

    Raises:
        InputError: if it is neither.
    """
    return Path(path) if is_peft_folder(path) else find_checkpoint(path)


def read_stage(path: str | Path) -> dict[str, Any]:
    """``stage.json`` of a checkpoint.

    Args:
        path: see :func:`find_checkpoint`.

    Returns:
        The parsed file.
    """
    return read_json(find_checkpoint(path) / "stage.json")


def projector_digest(path: str | Path) -> str:
    """What tells the projector of a checkpoint from any other.

    Args:
        path: see :func:`find_checkpoint`.

    Returns:
        SHA-256 of the file with its weights, as hexadecimal digits.
    """
    return _file_digest(find_checkpoint(path) / "projector.safetensors")


def adapter_digest(path: str | Path) -> str | None:
    """What tells the LoRA of an adapter from any other.

    Args:
        path: see :func:`find_adapter`.

    Returns:
        SHA-256 of the file with its weights, as hexadecimal digits; None without that file, of
        which :func:`load_trained` tells.
    """
    file = find_adapter(path) / "adapter_model.safetensors"
    return _file_digest(file) if file.is_file() else None


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_1_fingerprint(path: str | Path | None, chat: ChatFormat) -> dict[str, Any]:
    """What a projector's stage 1 of SpeechMapper was, for the stages that go on from it.

    Args:
        path: checkpoint that the projector starts from; None for a fresh projector.
        chat: the LLM's chat format.

    Returns:
        ``stage_1``: ``projector`` (its digest), ``pad_token`` (an id) and ``normalizer``; None for
        a projector that had no stage 1. Nothing where an older checkpoint does not tell.
    """
    if path is None:
        return {"stage_1": None}
    stage = read_stage(path)
    if stage["stage"] != "speechmapper":
        found = stage["fingerprints"]
        return {"stage_1": found["stage_1"]} if "stage_1" in found else {}
    return {
        "stage_1": {
            "projector": projector_digest(path),
            "pad_token": resolve_token(stage["config"]["pad_token"], chat),
            "normalizer": stage["config"]["normalizer"],
        }
    }


def load_trained(
    *, projector: str | Path | None = None, adapter: str | Path | None = None, llm_dir: str | Path
) -> dict[str, Tensor]:
    """Trained weights of checkpoints under the names of :class:`SpeechLLM`.

    Args:
        projector: checkpoint whose projector is wanted; None for none.
        adapter: checkpoint whose LoRA is wanted; None for none. Any PEFT folder will do.
        llm_dir: folder of the LLM.

    Returns:
        Name to tensor.

    Raises:
        InputError: if a checkpoint lacks the part that is wanted.
    """
    weights: dict[str, Tensor] = {}
    if projector is not None:
        file = find_checkpoint(projector) / "projector.safetensors"
        if not file.is_file():
            raise InputError(
                f"{file.parent}: holds no projector; "
                "give a checkpoint of projector or multimodal_fuse"
            )
        weights |= {f"projector.{name}": t for name, t in read_safetensors(file).items()}
    if adapter is not None:
        weights |= load_peft_adapter(find_adapter(adapter), llm_dir)
    return weights


def load_state(
    checkpoint: Path, optimizer: torch.optim.Optimizer, groups: Groups
) -> dict[str, Any]:
    """Restore the optimizer of a resumed run.

    Args:
        checkpoint: folder ``step_N``.
        optimizer: of the same parameters; sharded ones get their shard.
        groups: the same groups as at saving.

    Returns:
        State of the plan.
    """
    named = {name: p for group in groups.values() for name, p in group.items()}
    place = {p: i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in read_safetensors(
        checkpoint / "state" / "optimizer.safetensors"
    ).items():
        name, key = full_name.rsplit("/", 1)
        if name not in named:
            raise InputError(
                f"{checkpoint}: optimizer state of {name}, which this run does not train; "
                "resume with the run's own config"
            )
        parameter = named[name]
        if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
            tensor = distribute_tensor(
                tensor.to(parameter.device), parameter.device_mesh, parameter.placements
            )
        state.setdefault(place[parameter], {})[key] = tensor
    # It knows which tensors the optimizer wants on which device; a fused one its step count too.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads((checkpoint / "state" / "plan.json").read_text())


def load_scaler(checkpoint: Path, scaler: GradScaler) -> None:
    """Restore the scale of the loss of a resumed run, if it and this one have one.

    Args:
        checkpoint: folder ``step_N``.
        scaler: of the loss.
    """
    file = checkpoint / "state" / SCALER_FILE
    if scaler.is_enabled() and file.is_file():
        scaler.load_state_dict(read_json(file))


def lora_settings(model: SpeechLLM) -> dict[str, Any]:
    """LoRA's settings, read off the model.

    Args:
        model: a SpeechLLM with LoRA.

    Returns:
        Arguments of :func:`peft_config`, without ``base``.
    """
    adapted = {
        name.rsplit(".", 1)[-1]: module
        for name, module in model.decoder.layers[0].named_modules()
        if hasattr(module, "lora_a")
    }
    any_module = next(iter(adapted.values()))
    return {
        "lora_attn_modules": [
            n for n in ("q_proj", "k_proj", "v_proj", "output_proj") if n in adapted
        ],
        "apply_lora_to_mlp": "w1" in adapted,
        "rank": any_module.rank,
        "alpha": any_module.alpha,
    }


def _full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()
