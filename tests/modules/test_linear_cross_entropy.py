import pytest
import torch
import torch.nn.functional as F

from torchtune_speech.modules import _linear_cross_entropy, linear_cross_entropy_sum


def inputs(count=23, dim=16, vocab=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, dim, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (count,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1024])
def test_loss_and_gradients_equal_those_of_all_logits(chunk_size):
    hidden, weight, labels = inputs()
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = linear_cross_entropy_sum(hidden, weight, labels, chunk_size)
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, labels = inputs()
    linear_cross_entropy_sum(hidden, weight.detach(), labels, 8).backward()
    assert hidden.grad is not None and weight.grad is None


def test_bfloat16_is_summed_in_float32():
    hidden, weight, labels = inputs(count=300, dtype=torch.bfloat16)
    logits = (hidden @ weight.T).float()
    expected = F.cross_entropy(logits, labels, reduction="sum")
    loss = linear_cross_entropy_sum(hidden, weight, labels, 64)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("widened", [7, 50, 4096])  # the vocabulary has 50
def test_products_in_float32_give_what_those_in_bfloat16_give(monkeypatch, widened):
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    monkeypatch.setattr(_linear_cross_entropy, "_WIDENED", widened)
    losses, gradients = [], []
    for wide in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(_linear_cross_entropy, "product_dtype", lambda *_, wide=wide: wide)
        loss = linear_cross_entropy_sum(hidden, weight, labels, 8)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for wide, plain in zip(*gradients, strict=True):
        assert wide.dtype == torch.bfloat16
        torch.testing.assert_close(wide, plain, rtol=0.05, atol=0.05)


def test_autocast_changes_nothing():
    hidden, weight, labels = inputs()
    plain = linear_cross_entropy_sum(hidden, weight, labels, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = linear_cross_entropy_sum(hidden, weight, labels, 8)
    assert cast.item() == plain.item()


def test_no_positions_are_no_loss():
    hidden, weight, labels = inputs(count=0)
    loss = linear_cross_entropy_sum(hidden, weight, labels)
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, 16)


def test_never_more_than_a_chunk_of_logits_is_held():
    """The largest tensor of the forward pass has as many rows as a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == 50:
                self.rows = max(self.rows, out.shape[0])
            return out

    hidden, weight, labels = inputs(count=40, dim=4)  # less than a chunk: weight.T has as many rows
    with Largest() as largest:
        linear_cross_entropy_sum(hidden, weight.detach(), labels, 8).backward()
    assert largest.rows == 8


@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
def test_positions_are_weighed(chunk_size):
    hidden, weight, labels = inputs()
    weights = torch.linspace(0, 2, len(labels))
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = (weights * losses).sum()
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = linear_cross_entropy_sum(hidden, weight, labels, chunk_size, weights)
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
