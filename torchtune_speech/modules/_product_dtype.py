"""The dtype in which a device multiplies matrices fastest."""

import contextlib
import functools
import time

import torch
from torch._subclasses.fake_tensor import FakeTensor

_SIZE = 512  # of the matrices that are tried: large enough to be typical, 1 to 5 ms a product
_CLEARLY = 1.25  # a faster dtype is taken if it is that much faster: noise must not decide


@torch.compiler.assume_constant_result
def product_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype to widen bfloat16 operands to before they are multiplied, on a CPU slow in these.

    A CPU without instructions for bfloat16 takes several times as long for its products as in
    float32, and some that have them take twice as long; others are twice as fast. Widening is
    exact and sums are in float32 either way: a result differs by as much as between two kernels.
    Weights and activations stay in bfloat16 where they are kept, at half the memory.

    Tried once a process, in some 50 ms. On tensors without content, which stand for those of any
    device, nothing is widened.

    Args:
        device_type: where the operands are, e.g. ``cpu``.
        dtype: what they are stored in.

    Returns:
        float32 for bfloat16 on such a CPU; else ``dtype``.

    Example:
        >>> wide = product_dtype(x.device.type, x.dtype)
        >>> y = (x.to(wide) @ w.to(wide)).to(x.dtype)
    """
    if device_type != "cpu" or dtype != torch.bfloat16 or isinstance(torch.empty(0), FakeTensor):
        return dtype
    return torch.float32 if _is_slow_in_bfloat16() else dtype


def fast_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Within it autocast does not narrow to bfloat16, on a CPU slow in it.

    For modules with weights in float32: they are then multiplied as they are.

    Args:
        device_type: where the operands are.

    Returns:
        A context manager; one that does nothing elsewhere, and without autocast.

    Example:
        >>> with fast_autocast(frames.device.type):
        ...     vectors = projector(frames, frame_lengths)
    """
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        if product_dtype(device_type, dtype) != dtype:
            return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


@functools.cache
def _is_slow_in_bfloat16() -> bool:
    operands = {d: torch.ones(_SIZE, _SIZE, dtype=d) for d in (torch.float32, torch.bfloat16)}
    taken: dict[torch.dtype, list[float]] = {d: [] for d in operands}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(5):  # in turns, so that a busy moment hits both
            for dtype, x in operands.items():
                began = time.perf_counter()
                torch.mm(x, x)
                taken[dtype].append(time.perf_counter() - began)
    return min(taken[torch.bfloat16]) > _CLEARLY * min(taken[torch.float32])
