"""Moving small tensors to the device without waiting for it."""

import torch
from torch import Tensor


def copy_to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the host does not wait for a GPU.

    A copy to a GPU from memory that is not pinned waits until the GPU has done all it was given
    before. So this pins it first, which is cheap for the index tensors it is meant for.

    Args:
        tensor: anywhere.
        device: where to.

    Returns:
        The tensor there; itself if it is there already.

    Source: https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
