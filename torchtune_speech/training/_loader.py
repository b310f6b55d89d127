"""From a data set to the batches of each step."""

import itertools
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from torchtune_speech.data import (
    Batch,
    Plan,
    SpeechDataset,
    Step,
    StepBatches,
    TranscriptDataset,
    plan_sources,
)
from torchtune_speech.errors import InputError


def build_plan(
    dataset: SpeechDataset | TranscriptDataset,
    *,
    max_seq_len: int,
    rows_per_step: int,
    mixture: Mapping[str, Any] | None = None,
    paired: bool = False,
    packed: bool = True,
    seed: int = 0,
) -> Plan:
    """The plan of a run over a data set.

    Args:
        dataset: the samples.
        max_seq_len: length of a row, in tokens; of transcripts, in frames.
        rows_per_step: rows of one optimizer step.
        mixture: weights of the sources; see :func:`plan_sources`.
        paired: follow each speech step by its text twins.
        packed: several samples a row.
        seed: of the shuffling.

    Returns:
        The plan.
    """
    return Plan(
        plan_sources(dataset.samples, mixture),
        dataset.lengths,
        twin_lengths=dataset.twin_lengths() if paired else None,
        max_seq_len=max_seq_len,
        rows_per_step=rows_per_step,
        paired=paired,
        packed=packed,
        seed=seed,
    )


def resolve_max_steps(plan: Plan, *, max_steps: int | None, epochs: int | None) -> int:
    """Steps of a run.

    Args:
        plan: a plan.
        max_steps: number of steps, or None.
        epochs: passes over the speech samples, or None.

    Returns:
        The number of steps.

    Raises:
        InputError: unless exactly one of the two is given.
    """
    if (max_steps is None) == (epochs is None):
        raise InputError("max_steps, epochs: give one of the two, and set the other to null")
    return max_steps if max_steps is not None else plan.steps_in_epochs(epochs)


class _StepsWithBatches(Dataset):
    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: Step) -> tuple[Step, list[Batch]]:
        return step, self.batches[step]


class _Steps:
    """The plan's next steps as a sampler; a fresh iteration goes on where the plan stands."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.plan, self.count = plan, count

    def __iter__(self) -> Iterator[Step]:
        return itertools.islice(self.plan, self.count)


def _as_is(item: Any) -> Any:
    return item


def _ignore_sigterm(worker: int) -> None:
    """Slurm and torchrun send SIGTERM to the whole process group, and the step is to be finished.

    A worker ends when its parent does, since torch lets it watch for that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def step_loader(
    plan: Plan,
    batches: StepBatches,
    *,
    steps: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> DataLoader:
    """Steps with their batches, prepared ahead by worker processes.

    The plan runs ahead of training as far as the workers prefetch; a checkpoint therefore takes the
    state that each :class:`Step` carries, not the plan's own.

    Args:
        plan: where the steps come from.
        batches: makes the batches of a step.
        steps: how many steps to take.
        num_workers: worker processes; 0 prepares batches in this process.
        device: where the batches go. For a GPU they come in pinned memory: only from there are
            they copied while the host goes on.

    Returns:
        A loader of ``(step, batches)``, on the CPU.
    """
    return DataLoader(
        _StepsWithBatches(batches),
        sampler=_Steps(plan, steps),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_is,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_ignore_sigterm,
        pin_memory=torch.device(device).type == "cuda",
    )
