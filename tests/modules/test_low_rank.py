import pytest
import torch

from torchtune_speech.modules import add_low_rank


def test_sum_and_gradients_equal_the_plain_ones():
    torch.manual_seed(0)
    out, low, b = (torch.randn(*shape, requires_grad=True) for shape in ((5, 7), (5, 3), (7, 3)))
    weights = torch.randn(5, 7)
    expected = torch.autograd.grad(((out + low @ b.T) * weights).sum(), (out, low, b))
    found = torch.autograd.grad((add_low_rank(out, low, b) * weights).sum(), (out, low, b))
    torch.testing.assert_close(add_low_rank(out, low, b), out + low @ b.T)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_frozen_layer_in_bfloat16_under_a_trained_update_in_float32(autocast):
    torch.manual_seed(0)
    out = torch.randn(5, 7).bfloat16().requires_grad_()
    low, b = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        added = add_low_rank(out, low, b)
    assert added.dtype == torch.bfloat16
    added.float().sum().backward()
    assert (out.grad.dtype, low.grad.dtype, b.grad.dtype) == (torch.bfloat16, *2 * [torch.float32])
    torch.testing.assert_close(low.grad, b.sum(0).expand(5, 3), rtol=0.02, atol=0.02)


def test_what_is_frozen_gets_no_gradient():
    out, low = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 3)
    b = torch.ones(4, 3, requires_grad=True)
    add_low_rank(out, low, b).sum().backward()
    assert low.grad is None and b.grad.tolist() == [[2.0] * 3] * 4
