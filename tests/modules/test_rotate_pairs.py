import pytest
import torch
from torchtune.models.llama3_1 import Llama3ScaledRoPE

from torchtune_speech.modules import rotate_pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_torchtunes_rotary(dtype, packed):
    torch.manual_seed(0)
    rope = Llama3ScaledRoPE(16, max_seq_len=32, base=500_000, scale_factor=8)
    x, grad = (torch.randn(2, 9, 3, 16, dtype=dtype) for _ in range(2))
    positions = torch.randint(32, (2, 9)) if packed else None
    cos_sin = rope.cache[positions] if packed else rope.cache[None, :9]
    found = []
    for turn in (
        lambda x: rope(x, input_pos=positions),
        lambda x: rotate_pairs(x, cos_sin),
    ):
        x = x.detach().requires_grad_()
        out = turn(x)
        found.append((out, *torch.autograd.grad(out, x, grad)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
        assert two.dtype == dtype


def test_gradient_turns_back():
    angle = torch.tensor(0.3)
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    out = rotate_pairs(x, torch.stack((angle.cos(), angle.sin())).view(1, 1, 1, 2))
    (grad,) = torch.autograd.grad(out, x, out.detach())
    torch.testing.assert_close(grad, x.detach())  # turned, and back
    wanted = torch.stack((angle.cos() - 2 * angle.sin(), angle.sin() + 2 * angle.cos()))
    torch.testing.assert_close(out.flatten(), wanted)


def test_tensors_of_any_layout():
    torch.manual_seed(0)
    rope = Llama3ScaledRoPE(8, max_seq_len=4)
    x = torch.randn(1, 4, 2, 8)
    wanted = rope(x)
    flipped = x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    out = rotate_pairs(flipped, rope.cache[None])
    torch.testing.assert_close(out, wanted)
    out.sum().backward()  # whose gradient has no strides
    odd = torch.zeros(x.numel() + 1)[1:].view_as(x).copy_(x)
    torch.testing.assert_close(rotate_pairs(odd, rope.cache[None]), wanted)
