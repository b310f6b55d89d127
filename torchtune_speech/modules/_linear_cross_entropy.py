"""Cross-entropy from hidden states, without ever holding the logits of all positions."""

import torch
from torch import Tensor


def linear_cross_entropy_sum(
    hidden_md: Tensor, weight_vd: Tensor, labels_m: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Summed cross-entropy of an output layer's predictions, chunk by chunk.

    The same as ``cross_entropy(hidden @ weight.T, labels, reduction="sum")`` with the logits in
    float32. The gradient of the hidden states is computed in the forward pass, while a chunk's
    logits are there: the backward pass needs neither logits nor a second product.
    Kept for the backward pass: ``[m, d]`` (and ``[v, d]`` if the weight is trained).

    Args:
        hidden_md: hidden states of the supervised positions, after the last norm, ``[m, d]``.
        weight_vd: weight of the output layer, ``[v, d]``. The products are in its dtype.
        labels_m: token to predict at each position, ``[m]``.
        chunk_size: positions whose logits are held at a time. Default: 1024, at a vocabulary of
            128,256 half a gigabyte in float32; on a CPU 128, where memory that was used before is
            much faster than more of it.

    Returns:
        The sum, a float32 scalar; 0 for no positions.

    Example:
        >>> hidden, weight = torch.randn(5, 8), torch.randn(100, 8)
        >>> loss = linear_cross_entropy_sum(hidden, weight, torch.randint(100, (5,)))
    """
    if chunk_size is None:
        chunk_size = 128 if hidden_md.device.type == "cpu" else 1024
    return _LinearCrossEntropy.apply(hidden_md, weight_vd, labels_m, chunk_size)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_md: Tensor,
        weight_vd: Tensor,
        labels_m: Tensor,
        chunk_size: int,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        loss = hidden_md.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_md) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_vd, dtype=torch.float32) if wants_weight else None
        rows = min(chunk_size, len(hidden_md))
        all_logits = weight_vd.new_empty(rows, len(weight_vd))
        all_log_p = weight_vd.new_empty(rows, len(weight_vd), dtype=torch.float32)
        # The products are in the weight's dtype already: autocast would copy what it casts.
        with torch.autocast(hidden_md.device.type, enabled=False):
            for start in range(0, len(hidden_md), chunk_size):
                part = slice(start, start + chunk_size)
                hidden, labels = hidden_md[part].to(weight_vd.dtype), labels_m[part, None]
                logits = torch.mm(hidden, weight_vd.T, out=all_logits[: len(hidden)])
                log_p = all_log_p[: len(hidden)]
                torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=log_p)
                loss -= log_p.gather(1, labels).sum()
                if not (wants_hidden or wants_weight):
                    continue
                # Gradient of the logits: probabilities, less one at the label.
                grad = log_p.exp_()
                grad.scatter_add_(1, labels, grad.new_full(labels.shape, -1.0))
                grad = logits.copy_(grad) if logits.dtype != grad.dtype else grad
                if wants_hidden:
                    grad_hidden[part] = grad @ weight_vd
                if wants_weight:
                    grad_weight += (grad.T @ hidden).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_vd.dtype
        return loss

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None
