import pytest
import torch
import torch.nn.functional as F

from torchtune_speech.modules import _low_rank, lora_linear, swiglu


def parts(dtype=torch.float32):
    torch.manual_seed(0)
    x, w = torch.randn(5, 6).to(dtype).requires_grad_(), torch.randn(7, 6).to(dtype)
    a, b = torch.randn(3, 6, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    return x, w, a, b


def test_output_and_gradients_equal_the_plain_ones():
    x, w, a, b = parts()
    weights = torch.randn(5, 7)
    plain = x @ w.T + 2.0 * (x @ a.T) @ b.T
    ours = lora_linear(x, w, a, b, 2.0)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad((plain * weights).sum(), (x, a, b))
    found = torch.autograd.grad((ours * weights).sum(), (x, a, b))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_frozen_weight_in_bfloat16_under_an_update_in_float32(monkeypatch, autocast, wide):
    monkeypatch.setattr(_low_rank, "product_dtype", lambda *_: wide)
    x, w, a, b = parts(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = lora_linear(x, w, a, b, 2.0)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert (x.grad.dtype, a.grad.dtype, b.grad.dtype) == (torch.bfloat16, *2 * [torch.float32])
    exact = [t.detach().float().requires_grad_() for t in (x, a, b)]
    (exact[0] @ w.float().T + 2.0 * (exact[0] @ exact[1].T) @ exact[2].T).sum().backward()
    for ours, plain in zip((x, a, b), exact, strict=True):
        torch.testing.assert_close(ours.grad.float(), plain.grad, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
def test_compiled_under_autocast_it_gives_the_same(monkeypatch, wide):
    monkeypatch.setattr(_low_rank, "product_dtype", lambda *_: wide)
    found = []
    for run in (lora_linear, torch.compile(lora_linear, backend="aot_eager", fullgraph=True)):
        x, w, a, b = parts(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            out = run(x, w, a, b, 2.0)
        found.append((out, *torch.autograd.grad(out.float().sum(), (x, a, b))))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0.02, atol=0.02)


def test_what_is_widened_for_the_products_is_not_kept(monkeypatch):
    monkeypatch.setattr(_low_rank, "product_dtype", lambda *_: torch.float32)
    x, w, a, b = parts(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora_linear(x, w, a, b, 2.0)
    wide = {tuple(t.shape) for t in kept if t.dtype == torch.float32}
    assert len(kept) == 5 and not wide & {(5, 6), (7, 6)}


def test_what_is_frozen_gets_no_gradient():
    x, w, a, b = parts()
    lora_linear(x.detach(), w, a, b, 1.0).sum().backward()
    assert x.grad is None and w.grad is None and a.grad is not None and b.grad is not None


def test_the_gate_and_its_gradients_equal_the_plain_ones():
    torch.manual_seed(0)
    gate, up = (torch.randn(2, 5, 6, requires_grad=True) for _ in range(2))
    weights, plain, ours = torch.randn(2, 5, 6), F.silu(gate) * up, swiglu(gate, up)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad((plain * weights).sum(), (gate, up))
    found = torch.autograd.grad((ours * weights).sum(), (gate, up))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
