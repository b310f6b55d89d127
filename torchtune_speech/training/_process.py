"""The process a recipe runs in: device, rank, seeds, signals."""

import dataclasses
import os
import signal
import zlib
from types import FrameType

import torch
import torch.distributed as dist
from torchtune import training, utils


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

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.sum(float(flag))[0] > 0


def start_process(device: str) -> Process:
    """Join the other processes when ``torchrun`` started several, and set up the device.

    Args:
        device: ``cpu``, ``cuda``, or another torch device type.

    Returns:
        This process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group(training.get_distributed_backend(torch.device(device).type))
    world_size, rank = utils.get_world_size_and_rank()
    return Process(utils.get_device(device=device), rank, world_size)


def end_process() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
