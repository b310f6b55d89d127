"""The process a recipe runs in: device, rank, seeds, signals."""

import contextlib
import dataclasses
import os
import signal
import zlib
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor
from torchtune import training, utils

from torchtune_speech.errors import InputError
from torchtune_speech.files import lock_folder
from torchtune_speech.training._device import find_device


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """Where this process stands among the others.

    Args:
        device: where it computes.
        rank: its number, 0 alone.
        world_size: number of processes.
    """

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, in double precision.

        Args:
            *values: numbers of this process.

        Returns:
            The sums, the same in every process.
        """
        if self.world_size == 1:
            return list(values)
        # Doubles, since float32 would lose counts above 2**24.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, *values: float) -> Tensor:
        """Sums over all processes that stay on the device: nothing waits for it.

        Args:
            *values: numbers of this process.

        Returns:
            The sums, float64 ``[len(values)]``. Of a lone process they are on the CPU, where they
            are known; as scalars they may meet tensors of the device all the same.
        """
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size == 1:
            return total
        if self.device.type == "cuda":
            total = total.pin_memory()  # a copy from other memory may wait for the device
        return self.all_reduce(total.to(self.device, non_blocking=True))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of the device over all processes, in place.

        Args:
            tensor: of any shape, on this process's device.

        Returns:
            The same tensor.
        """
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.sum(float(flag))[0] > 0


def join_processes(backend: str, *, timeout: timedelta | None = None) -> None:
    """Join the processes that ``torchrun`` started, also after it has restarted them.

    Args:
        backend: of torch.distributed, such as ``gloo``.
        timeout: longest wait of a collective. Default None: torch's.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun keeps one store over all restarts: processes would find the addresses of those
        # that died, and wait for them. (On several nodes the count may differ between them.)
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def start_process(device: str, *, timeout: timedelta | None = None) -> Process:
    """Join the other processes when ``torchrun`` started several, and set up the device.

    Args:
        device: ``cpu``, ``cuda``, or another torch device type.
        timeout: longest wait for the others. Default None: torch's, 10 to 30 minutes.

    Returns:
        This process.

    Raises:
        InputError: if this machine has no such device.
    """
    here = find_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        join_processes(training.get_distributed_backend(here.type), timeout=timeout)
    world_size, rank = utils.get_world_size_and_rank()
    return Process(here, rank, world_size)


def only_run(output_dir: str | Path, is_main: bool) -> contextlib.AbstractContextManager[None]:
    """Keep other runs out of a folder; the first process has the lock for all of this run's.

    Args:
        output_dir: folder of the run.
        is_main: whether this is the first process.

    Returns:
        What :func:`lock_folder` gives, or nothing.
    """
    return lock_folder(output_dir) if is_main else contextlib.nullcontext()


def compute_dtype(
    name: str, device: torch.device | None = None, *, scaled_loss: bool = False
) -> torch.dtype:
    """Precision of the frozen weights and the matrix products.

    Args:
        name: ``fp32``, ``bf16``, or ``fp16`` where the loss is scaled.
        device: refuse what it cannot compute in; None to ask no device.
        scaled_loss: whether the recipe scales its loss, so that ``fp16`` may be used too.

    Returns:
        The dtype.

    Raises:
        InputError: if the name is unknown or the device cannot.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if scaled_loss:
        dtypes["fp16"] = torch.float16
    if name not in dtypes:
        raise InputError(f"dtype: {name!r} is unknown; use {' or '.join(dtypes)}")
    try:
        return dtypes[name] if device is None else training.get_dtype(name, device)
    except RuntimeError as error:
        raise InputError(f"dtype: {name} does not work on this device; use fp32") from error


def end_process(stopped: bool = False) -> None:
    """Leave the process group, if there is one.

    Args:
        stopped: whether SIGTERM ended the run early, which whoever started it is to know.

    Raises:
        SystemExit: with code 143, a shell's code for SIGTERM, if ``stopped``.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    if stopped:
        raise SystemExit(128 + signal.SIGTERM)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that a resumed run needs no saved generator state.

    Args:
        seed: of the run.
        step: number of the step.
        rank: of this process, so that dropout differs between processes.
    """
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}".encode()))


class StopSignal:
    """Remembers SIGTERM, so that a step can be finished and saved before leaving.

    Example:
        >>> with StopSignal() as stop:
        ...     for step in plan:
        ...         ...
        ...         if process.any(stop.requested):
        ...             break
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
