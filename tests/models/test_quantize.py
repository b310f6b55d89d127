"""Matrices in fewer bits: products and gradients against the matrices that they stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchtune.modules.peft import LoRALinear

from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    QUANTIZATIONS,
    check_quantize,
    is_quantized,
    quantize_weight,
    speech_llama3_1,
    weight_bytes,
)
from torchtune_speech.models._decoding_cache import few_rows_linear
from torchtune_speech.models._quantize import quantize_frozen, to_float8

# The sixteen values of NF4, https://arxiv.org/abs/2305.14314, appendix E, to four digits.
NF4 = torch.tensor(
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    + [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
)


@pytest.fixture
def weight():
    """A matrix whose rows and columns differ in size."""
    torch.manual_seed(0)
    sizes = torch.logspace(-2, 1, 128)[:, None] * torch.logspace(-1, 1, 64)
    return torch.randn(128, 64) * sizes


def quantized_linear(weight, kind, lora=False):
    """A linear layer with the weight, and the same layer with what the quantised one stands for."""
    out_dim, in_dim = weight.shape
    layer = LoRALinear(in_dim, out_dim, 4, 8.0) if lora else nn.Linear(in_dim, out_dim)
    if lora:
        nn.init.normal_(layer.lora_b.weight)
    plain = copy.deepcopy(layer)
    small = quantize_weight(weight, kind)
    layer.weight = nn.Parameter(small, requires_grad=False)
    plain.weight = nn.Parameter(small.get_original_weight(), requires_grad=False)
    return layer, plain


def relative(one, two):
    """How far two tensors are apart, relative to the second."""
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize("lora", [False, True])
def test_nf4_multiplies_as_the_matrix_it_stands_for(weight, lora):
    layer, plain = quantized_linear(weight, "nf4", lora)
    x, y = (torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    results = []
    for module, input in ((layer, x.requires_grad_()), (plain, y.requires_grad_())):
        out = module(input)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        grads = [p.grad for p in module.parameters() if p.requires_grad]
        results.append([out, input.grad, *grads])
    assert len(results[0]) == (4 if lora else 3)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert layer.weight.grad is None


def test_nf4_takes_the_nearest_of_its_values():
    blocks = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    ours = quantize_weight(blocks, "nf4").get_original_weight()
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = NF4[(blocks / scale)[..., None].sub(NF4).abs().argmin(-1)] * scale
    # The scales themselves are in 8 bits, about their mean.
    assert ((ours - nearest).abs() <= (scale - scale.mean()).abs().max() / 127).all()
    assert relative(ours, blocks) < 0.1


@pytest.mark.parametrize("lora", [False, True])
def test_float8_multiplies_rounded_rows_with_the_matrix_it_stands_for(weight, lora):
    layer, plain = quantized_linear(weight, "float8", lora)
    x = torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[:, None]
    x[0, 0] = 0  # padding
    values, scale = to_float8(x.view(-1, 64))
    rounded = (values.double() * scale).view_as(x)
    out, expected = layer(x), (plain.weight.double() @ rounded[..., None])[..., 0]
    rest = plain(x) - F.linear(x, plain.weight)  # bias and LoRA
    for row, theirs in zip(out.view(-1, 128), (expected + rest).view(-1, 128), strict=True):
        assert (row - theirs).norm() <= 1e-5 * theirs.norm()
    assert 0 < relative(out, plain(x)) < 0.04


def test_gradients_of_float8_are_those_of_the_matrix_to_4_percent(weight):
    layer, plain = quantized_linear(weight, "float8", lora=True)
    x, y = (torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    grad = torch.randn(40, 128) * torch.logspace(-9, 0, 40)[:, None]
    layer(x.requires_grad_()).backward(grad)
    plain(y.requires_grad_()).backward(grad)
    for row in (0, -1):  # of a token with tiny gradients as of one with large ones
        assert 0 < relative(x.grad[row], y.grad[row]) < 0.04
    torch.testing.assert_close(layer.lora_b.weight.grad, plain.lora_b.weight.grad)
    torch.testing.assert_close(layer.lora_a.weight.grad, plain.lora_a.weight.grad)


def test_rows_in_float8_use_its_whole_range():
    x = torch.randn(5, 64) * torch.logspace(-30, 30, 5)[:, None]
    values, scale = to_float8(x)
    assert (values.float().abs().amax(1) == 448).all()
    # Three bits after the first: half a sixteenth, and at least half the smallest value.
    error = (values.float() * scale - x).abs()
    assert (error <= (x.abs() / 16).maximum(scale * 2**-10) * (1 + 1e-5)).all()


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.14), ("float8", 8.13)])
def test_bytes_are_counted_on_the_meta_device_too(kind, bits):
    for device in ("cpu", "meta"):
        weight = torch.ones(512, 256, dtype=torch.bfloat16, device=device)
        weight[0] = 2
        small = quantize_weight(weight, kind)
        assert small.shape == weight.shape and small.dtype == weight.dtype
        assert small.device.type == device
        assert bits - 0.02 < 8 * weight_bytes(nn.Parameter(small)) / weight.numel() <= bits
        assert weight_bytes(weight) == 2 * weight.numel()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_few_rows_go_through_the_layer(weight, kind):
    layer, _ = quantized_linear(weight, kind)
    x = torch.randn(3, 64)
    assert torch.equal(few_rows_linear(layer, x), layer(x))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_compiled_layer_gives_the_same(weight, kind):
    layer, _ = quantized_linear(weight, kind, lora=True)
    compiled = torch.compile(layer, backend="aot_eager")
    x, y = (torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    ours, theirs = compiled(x.requires_grad_()), layer(y.requires_grad_())
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def shape(**changes):
    """Of a small Llama."""
    small = {"vocab_size": 50, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    return small | {"embed_dim": 32, "max_seq_len": 9, "intermediate_dim": 48} | changes


def test_only_the_matrices_of_the_layers_are_quantised():
    model = speech_llama3_1(nn.Linear(3, 32), **shape())
    quantize_frozen(model, "nf4")
    left = {n for n, p in model.named_parameters() if not is_quantized(p)}
    norms = {f"decoder.layers.{i}.{n}_norm.scale" for i in (0, 1) for n in ("sa", "mlp")}
    tables = {f"decoder.{n}" for n in ("tok_embeddings.weight", "norm.scale", "output.weight")}
    assert left == norms | tables | {"projector.weight", "projector.bias"}
    assert len(dict(model.named_parameters())) - len(left) == 2 * 7


@pytest.mark.parametrize(("kind", "width", "name"), [("nf4", 45, "w1"), ("float8", 40, "w1")])
def test_matrices_that_do_not_fit_are_refused_by_name(kind, width, name):
    model = speech_llama3_1(**shape(intermediate_dim=width))
    with pytest.raises(InputError, match=rf"quantize: {kind} .*layers.0.mlp.{name}.weight.*null"):
        quantize_frozen(model, kind)


def test_what_the_device_cannot_is_refused(monkeypatch):
    gpu, have = torch.device("cuda"), (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have)
    with pytest.raises(InputError, match=r"quantize: 'fp4' is unknown; use nf4, float8 or null"):
        check_quantize("fp4")
    with pytest.raises(InputError, match=r"capability 8.9 or later .* has 8.0; use nf4 or null"):
        check_quantize("float8", torch.bfloat16, gpu)
    check_quantize("nf4", torch.bfloat16, gpu)
    have = (8, 9)
    check_quantize("float8", torch.bfloat16, gpu)
    with pytest.raises(InputError, match="set dtype=bf16"):
        check_quantize("float8", torch.float32, gpu)
    check_quantize("float8", torch.float32, torch.device("cpu"))
