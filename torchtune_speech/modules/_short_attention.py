"""Attention for a CPU that multiplies matrices in bfloat16, block of queries by block."""

import torch
from torch import Tensor

_BLOCK = 128  # queries: their weights stay in a CPU's cache until they are used


def short_attention(
    q_nld: Tensor, k_nld: Tensor, v_nld: Tensor, mask_nl: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention by plain matrix products, with all weights kept.

    torch's fused kernel for CPUs computes in float32; products in bfloat16 are several times
    faster where a CPU has instructions for them. The weights are held until the backward pass, so
    this is for sequences of up to about a thousand.

    Source: https://arxiv.org/abs/1706.03762, equation 1.

    Args:
        q_nld: queries of each sequence and head, ``[n, l, head_dim]``.
        k_nld: keys, of the same shape.
        v_nld: values, of the same shape.
        mask_nl: True on the keys that may be seen, ``[n, l]``; None for all. Each sequence has
            one at least.
        causal: see what precedes alone. Default False. Not together with a mask.

    Returns:
        Shape ``[n, l, head_dim]``.
    """
    if causal:
        length = q_nld.shape[1]
        bias = q_nld.new_full((1, length, length), -torch.inf).triu_(1)
    elif mask_nl is not None:
        bias = q_nld.new_zeros(mask_nl.shape).masked_fill_(~mask_nl, -torch.inf)[:, None]
    else:
        bias = q_nld.new_zeros(1, 1, 1)
    return _ShortAttention.apply(q_nld, k_nld, v_nld, bias, causal)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        causal: bool,
    ) -> Tensor:
        length, scale = q.shape[1], q.shape[2] ** -0.5
        all_weights, outputs = [], []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            seen = end if causal else length
            part = bias[:, start:end, :seen] if causal else bias
            scores = torch.baddbmm(part, q[:, start:end], k[:, :seen].mT, alpha=scale)
            all_weights.append(scores.softmax(dim=-1))
            outputs.append(torch.bmm(all_weights[-1], v[:, :seen]))
        ctx.save_for_backward(q, k, v, *all_weights)
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *all_weights = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        end = 0
        for weights in all_weights:
            start, end, seen = end, end + weights.shape[1], weights.shape[2]
            grad_out = grad[:, start:end]
            grad_weights = torch.bmm(grad_out, v[:, :seen].mT)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_scores.mul_(scale)
            grad_q[:, start:end] = torch.bmm(grad_scores, k[:, :seen])
            grad_k[:, :seen] += torch.bmm(grad_scores.mT, q[:, start:end])
            grad_v[:, :seen] += torch.bmm(weights.mT, grad_out)
        return grad_q, grad_k, grad_v, None, None
