"""The device a recipe was told to use."""

import torch
from torchtune import utils

from torchtune_speech.errors import InputError


def find_device(name: str | None) -> torch.device:
    """This process's device, which is of the type asked for or an error.

    Args:
        name: ``cpu``, ``cuda``, or another torch device type; None for the best there is.

    Returns:
        The device, with its number where there are several.

    Raises:
        InputError: if this machine has no such device.
    """
    try:
        here = utils.get_device(device=name)
        # On a machine without a GPU torchtune takes the CPU for cuda, and says nothing.
        found = name is None or here.type == torch.device(name).type
    except (RuntimeError, AttributeError, AssertionError):
        found = False
    if not found:
        raise InputError(f"device: {name}: not on this machine; set device=cpu, or another")
    return here
