"""Learning rates as a function of the step, and parameter groups."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune.modules.peft import get_adapter_params

from torchtune_speech import config
from torchtune_speech.errors import InputError
from torchtune_speech.models import ProjectorWithTable, SpeechLLM


def learning_rate(
    step: int, *, lr: float, max_steps: int, warmup_steps: int = 0, schedule: str = "cosine"
) -> float:
    """Learning rate of a step.

    A pure function, so that a resumed run has no schedule to restore. Linear warm-up that reaches
    ``lr`` at step ``warmup_steps``, then cosine to 0 at ``max_steps``, or constant.

    Args:
        step: number of the step, from 0.
        lr: peak.
        max_steps: steps of the run.
        warmup_steps: steps of the warm-up. Default 0.
        schedule: ``cosine`` or ``constant``.

    Returns:
        The learning rate.

    Raises:
        InputError: if the schedule is unknown.
    """
    if schedule not in ("cosine", "constant"):
        raise InputError(f"learning_rate: schedule {schedule!r} is neither 'cosine' nor 'constant'")
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    progress = (step - warmup_steps) / max(max_steps - warmup_steps, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def trainable_groups(
    model: SpeechLLM | ProjectorWithTable, *names: str
) -> dict[str, dict[str, nn.Parameter]]:
    """Freeze everything but the named groups.

    Args:
        model: the model.
        *names: ``projector``, ``lora``.

    Returns:
        Group to parameter name to parameter.
    """
    parameters = model.state_dict(keep_vars=True)  # names without the prefixes of wrappers
    has_llm = hasattr(model, "decoder")
    adapter = {id(p) for p in get_adapter_params(model.decoder).values()} if has_llm else set()
    groups = {
        "projector": {
            n: p
            for n, p in parameters.items()
            if n.startswith("projector.") and isinstance(p, nn.Parameter)
        },
        "lora": {n: p for n, p in parameters.items() if id(p) in adapter},
    }
    model.requires_grad_(False)
    wanted = {name: groups[name] for name in names}
    for name, group in wanted.items():
        if not group:
            raise InputError(
                f"model: has no {name} parameters to train; choose a builder that has them"
            )
        for parameter in group.values():
            parameter.requires_grad_(True)
    return wanted


def build_optimizer(
    cfg: DictConfig, groups: Mapping[str, Mapping[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """An optimizer with a parameter group for each part of the model.

    Args:
        cfg: component node of the optimizer; its learning rate is set at each step.
        groups: from :func:`trainable_groups`.

    Returns:
        The optimizer; each of its groups carries its ``name``.
    """
    return config.instantiate(
        cfg,
        [
            {"params": list(group.values()), "name": name, "lr": 0.0}
            for name, group in groups.items()
        ],
    )


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    schedules: Mapping[str, Mapping[str, Any]],
    step: int,
    max_steps: int,
) -> dict[str, float]:
    """Set each group's learning rate for a step.

    Args:
        optimizer: from :func:`build_optimizer`.
        schedules: group to arguments of :func:`learning_rate`.
        step: number of the step.
        max_steps: steps of the run.

    Returns:
        ``lr_<group>`` to learning rate, for the log.
    """
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, max_steps=max_steps, **schedules[group["name"]])
        rates[f"lr_{group['name']}"] = group["lr"]
    return rates


def check_learning_rates(schedules: Any, groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Check the config's ``learning_rate`` node.

    Args:
        schedules: the node; group to ``lr``, ``schedule``, ``warmup_steps`` if it is right.
        groups: names of the groups that will be trained.

    Returns:
        A plain copy of it.

    Raises:
        InputError: if a group is missing, unknown, or has unknown fields.
    """
    if not isinstance(schedules or {}, Mapping):
        raise InputError(
            f"learning_rate: {schedules!r}; give lr, schedule and warmup_steps for each of "
            f"{sorted(groups)}"
        )
    for name, fields in (schedules or {}).items():
        if not isinstance(fields, Mapping):
            raise InputError(
                f"learning_rate.{name}: {fields!r}; give it lr, schedule and warmup_steps"
            )
    schedules = {k: dict(v) for k, v in (schedules or {}).items()}
    if set(schedules) != set(groups):
        raise InputError(
            f"learning_rate: needs one entry each for {sorted(groups)}, found {sorted(schedules)}"
        )
    for name, fields in schedules.items():
        unknown = set(fields) - {"lr", "schedule", "warmup_steps"}
        if unknown or "lr" not in fields:
            raise InputError(
                f"learning_rate.{name}: takes lr, schedule and warmup_steps, found {sorted(fields)}"
            )
        for field in ("lr", "warmup_steps"):
            value = fields.get(field, 0)
            if not isinstance(value, (int, float)) or value < 0:
                raise InputError(
                    f"learning_rate.{name}.{field}: {value!r}; give a number, 0 or more"
                )
        learning_rate(0, max_steps=1, **fields)
    return schedules
