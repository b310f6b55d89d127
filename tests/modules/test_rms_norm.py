import pytest
import torch
from torchtune.modules import RMSNorm

from torchtune_speech.modules import rms_norm


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    norm = RMSNorm(24, eps=1e-5)
    torch.nn.init.normal_(norm.scale, mean=1.0, std=0.3)
    return norm


def both(theirs, x):
    """Outputs and gradients of torchtune's norm and ours, for input and scale."""
    found = []
    grad = torch.randn_like(x)
    for norm in (theirs, lambda x: rms_norm(x, theirs.scale, theirs.eps)):
        x = x.detach().requires_grad_()
        out = norm(x)
        found.append((out, *torch.autograd.grad(out, (x, theirs.scale), grad)))
    return found


def test_equals_torchtunes(theirs):
    for one, two in zip(*both(theirs, torch.randn(2, 5, 24)), strict=True):
        torch.testing.assert_close(one, two)


def test_in_bfloat16_it_rounds_once(theirs):
    theirs.scale.data = theirs.scale.data.bfloat16()
    x = torch.randn(2, 5, 24).bfloat16()
    exact = rms_norm(x.float(), theirs.scale.float(), theirs.eps)
    (_, _, grad_scale), (out, grad_x, our_grad_scale) = both(theirs, x)
    assert torch.equal(out, exact.bfloat16())
    assert grad_x.dtype == torch.bfloat16
    torch.testing.assert_close(our_grad_scale, grad_scale, rtol=0.02, atol=0.02)


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    x, scale = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 7), (7,)))
    # It computes in float32, so the steps have to be large.
    torch.autograd.gradcheck(
        lambda x, scale: rms_norm(x, scale, 1e-3).double(),
        (x.requires_grad_(), scale.requires_grad_()),
        eps=1e-2,
        atol=1e-3,
    )


def test_input_is_left_as_it_was():
    x = torch.randn(3, 8)
    before = x.clone()
    rms_norm(x, torch.full((8,), 2.0), 1e-5)
    assert torch.equal(x, before)


def test_rows_of_zeros_stay_zeros():
    x = torch.zeros(2, 8, requires_grad=True)
    out = rms_norm(x, torch.ones(8), 1e-5)
    out.sum().backward()
    assert not out.any() and x.grad.isfinite().all()


def test_keeps_its_input_alone():
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    x = torch.randn(1, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rms_norm(x, torch.ones(32, dtype=torch.bfloat16), 1e-5)
    large = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
