"""RMS norm that keeps its input alone for the backward pass."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, scale_d: Tensor, eps: float) -> Tensor:
    """``scale * x / rms(x)``, computed in float32 and rounded once.

    Autograd would keep the input in float32 and the input over its root mean square, too: in
    bfloat16 four times as much, and more passes over it.

    Source: https://arxiv.org/abs/1910.07467, equation 4.

    Args:
        x: ``[..., d]``.
        scale_d: ``[d]``.
        eps: added to the mean square.

    Returns:
        The same shape and dtype as ``x``.
    """
    return _RMSNorm.apply(x, scale_d, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale_d: Tensor, eps: float
    ) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rrms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale_d, rrms)
        return (wide * rrms).mul_(scale_d).to(x.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale_d, rrms = ctx.saved_tensors
        grad, wide = grad.float(), x.float()
        grad_x = grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = (grad * wide * rrms).flatten(0, -2).sum(0).to(scale_d.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad * scale_d
            along = (scaled * wide).mean(dim=-1, keepdim=True).mul_(rrms**3)
            grad_x = scaled.mul_(rrms).sub_(wide * along).to(x.dtype)
        return grad_x, grad_scale, None
