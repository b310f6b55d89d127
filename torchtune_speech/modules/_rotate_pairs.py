"""Rotary embedding of neighbouring pairs, in one pass."""

import torch
from torch import Tensor


def rotate_pairs(x_bshd: Tensor, cos_sin_bsp2: Tensor) -> Tensor:
    """Turn each pair of neighbours in a head by the angle of its position.

    A pair is a complex number, and a turn a product of two: one pass over memory, and the inverse
    turn for the gradient. ``torch.compile`` makes no code for complex numbers.

    Source: RoFormer, https://arxiv.org/abs/2104.09864, equation 14, with the pairs side by side as
    in Meta's Llama.

    Args:
        x_bshd: queries or keys, ``[b, s, heads, head_dim]``.
        cos_sin_bsp2: float32 cosines and sines, ``[b or 1, s, head_dim / 2, 2]``.

    Returns:
        The same shape and dtype as ``x``; computed in float32.
    """
    return _RotatePairs.apply(x_bshd, torch.view_as_complex(cos_sin_bsp2)[:, :, None])


class _RotatePairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_bshd: Tensor, turns_bs1p: Tensor
    ) -> Tensor:
        ctx.save_for_backward(turns_bs1p)
        return _turn(x_bshd, turns_bs1p)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_bshd: Tensor
    ) -> tuple[Tensor, None]:
        (turns_bs1p,) = ctx.saved_tensors
        return _turn(grad_bshd, turns_bs1p.conj()), None


def _turn(x_bshd: Tensor, turns_bs1p: Tensor) -> Tensor:
    # As complex numbers only pairs side by side can be seen, which a copy in float32 has.
    wide = x_bshd.float().contiguous()
    if wide.storage_offset() % 2:
        wide = wide.clone()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns_bs1p).flatten(-2).to(x_bshd.dtype)
