import pytest
import torch
import torch.nn.functional as F

from torchtune_speech.modules import Packing, _attention, packed_attention
from torchtune_speech.modules._short_attention import short_attention


@pytest.mark.parametrize("length", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("kind", ["all", "causal", "masked"])
def test_output_and_gradients_equal_torch_s_attention(length, kind):
    torch.manual_seed(length)
    q, k, v = (torch.randn(3, length, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, length) < 0.6
    mask[:, -1] = True
    causal, mask = kind == "causal", mask if kind == "masked" else None
    attn_mask = None if mask is None else mask[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=causal)
    found = short_attention(q, k, v, mask, causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), weights),
        torch.autograd.grad(expected, (q, k, v), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_in_bfloat16_is_that_of_float32_to_its_precision(
    monkeypatch, causal, autocast, wide
):
    monkeypatch.setattr(_attention, "product_dtype", lambda *_: wide)
    torch.manual_seed(0)
    packing = Packing.from_lengths(torch.tensor([200, 30, 7]), min_frames=1)
    qkv = torch.randn(237, 3, 2, 16).bfloat16()
    exact = packed_attention(qkv.float(), packing, causal)
    assert len(packing.shapes) > 1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = packed_attention(qkv, packing, causal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("dtype", "length", "torch_s"),
    [(torch.bfloat16, 64, False), (torch.float32, 64, True), (torch.bfloat16, 1100, True)],
)
def test_only_short_utterances_in_bfloat16_bypass_torch_s_kernel_on_a_cpu(dtype, length, torch_s):
    packing = Packing.from_lengths(torch.tensor([length]), min_frames=1)
    qkv = torch.randn(length, 3, 1, 8, dtype=dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        packed_attention(qkv, packing)
    names = {event.key for event in profiler.key_averages()}
    assert any("scaled_dot_product" in name for name in names) is torch_s
