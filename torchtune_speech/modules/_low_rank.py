"""A frozen linear layer with LoRA's update, without passes of their own for the update."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_speech.modules._product_dtype import product_dtype


def lora_linear(
    x_ti: Tensor, weight_oi: Tensor, a_ri: Tensor, b_or: Tensor, scale: float
) -> Tensor:
    """``x @ weight.T + scale * (x @ a.T) @ b.T`` with a frozen weight.

    Source: LoRA, https://arxiv.org/abs/2106.09685, section 4.1. Update and gradient are added
    within a matrix product to what the frozen weight gives. All products are in the dtype of the
    weight, or in the wider one that a CPU is faster in (:func:`product_dtype`).

    Args:
        x_ti: ``[t, in_dim]``.
        weight_oi: frozen weight, ``[out_dim, in_dim]``; gets no gradient.
        a_ri: LoRA's first matrix, ``[rank, in_dim]``.
        b_or: LoRA's second matrix, ``[out_dim, rank]``.
        scale: alpha / rank.

    Returns:
        ``[t, out_dim]``, in the dtype of the weight.
    """
    return _LoRALinear.apply(x_ti, weight_oi, a_ri, b_or, scale)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_ti: Tensor,
        weight_oi: Tensor,
        a_ri: Tensor,
        b_or: Tensor,
        scale: float,
    ) -> Tensor:
        dtype, device = weight_oi.dtype, x_ti.device.type
        ctx.dtypes, ctx.scale = (x_ti.dtype, a_ri.dtype, b_or.dtype), scale
        ctx.wide = wide = product_dtype(device, dtype)
        x_ti, a_ri, b_or = x_ti.to(dtype), a_ri.to(dtype).to(wide), b_or.to(dtype).to(wide)
        with torch.autocast(device, enabled=False):
            x_wide = x_ti.to(wide)
            low_tr = (x_wide @ a_ri.t()).mul_(scale)
            out_to = F.linear(x_wide, weight_oi.to(wide)).addmm_(low_tr, b_or.t())
        ctx.save_for_backward(x_ti, weight_oi, a_ri, b_or, low_tr)
        return out_to.to(dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_to: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x_ti, weight_oi, a_ri, b_or, low_tr = ctx.saved_tensors
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        wants_x, _, wants_a, wants_b, _ = ctx.needs_input_grad
        grad_x = grad_a = grad_b = None
        # Compiled, the backward pass is traced under the autocast of the forward pass.
        with torch.autocast(grad_to.device.type, enabled=False):
            grad_to = grad_to.to(ctx.wide)
            grad_low = (grad_to @ b_or).mul_(ctx.scale)
            if wants_x:
                grad_x = (grad_to @ weight_oi.to(ctx.wide)).addmm_(grad_low, a_ri).to(x_dtype)
            if wants_a:
                grad_a = (grad_low.t() @ x_ti.to(ctx.wide)).to(a_dtype)
            if wants_b:
                # This way round, since a CPU takes ten times as long for grad.T @ low.
                grad_b = (low_tr.t() @ grad_to).t().to(b_dtype)
        return grad_x, None, grad_a, grad_b, None
