"""What a machine without a GPU can tell of copies to one."""

from unittest.mock import Mock

import pytest
import torch

from torchtune_speech.modules._transfer import copy_to_device


def test_a_tensor_that_is_there_is_not_copied():
    tensor = torch.arange(3)
    assert copy_to_device(tensor, "cpu") is tensor


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)])
def test_to_a_gpu_from_pinned_memory_without_waiting(device):
    tensor = Mock(device=torch.device("cpu"))
    copied = copy_to_device(tensor, device)
    pinned = tensor.pin_memory.return_value
    pinned.to.assert_called_once_with(device, non_blocking=True)
    assert copied is pinned.to.return_value


@pytest.mark.parametrize(("source", "target"), [("cuda", "cpu"), ("cuda", "cuda"), ("cpu", "meta")])
def test_others_are_waited_for(source, target):
    tensor = Mock(device=torch.device(source))  # what comes from a GPU is not there before it is
    copy_to_device(tensor, target)
    tensor.to.assert_called_once_with(target)
    tensor.pin_memory.assert_not_called()
