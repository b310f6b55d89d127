"""Cross-entropy from hidden states, without ever holding the logits of all positions."""

import torch
from torch import Tensor

from torchtune_speech.modules._product_dtype import product_dtype

# Rows of a weight that are widened at a time: at a width of 768 they take 12 MB, which a CPU's
# cache still holds when they are multiplied.
_WIDENED = 4096


def linear_cross_entropy_sum(
    hidden_md: Tensor,
    weight_vd: Tensor,
    labels_m: Tensor,
    chunk_size: int | None = None,
    weights_m: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy of an output layer's predictions, chunk by chunk.

    The same as ``cross_entropy(hidden @ weight.T, labels, reduction="sum")`` with the logits in the
    weight's dtype, and softmax and sum in float32. The gradient of the hidden states is computed in
    the forward pass, while a chunk's logits are there: the backward pass needs neither logits nor a
    second product.
    Kept for the backward pass: ``[m, d]`` (and ``[v, d]`` if the weight is trained).

    Args:
        hidden_md: hidden states of the supervised positions, after the last norm, ``[m, d]``.
        weight_vd: weight of the output layer, ``[v, d]``. The products are in its dtype, or in
            the wider one that a CPU is faster in (:func:`product_dtype`).
        labels_m: token to predict at each position, ``[m]``.
        chunk_size: positions whose logits are held at a time. Default: 1024, at a vocabulary of
            128,256 a quarter of a gigabyte in bfloat16 and twice that for its softmax; on a CPU
            128, since memory that was used before is much faster there than more of it, or 512
            where the weight is widened for each chunk.
        weights_m: what each position counts, ``[m]``; a constant, without a gradient. Default
            None: 1 each.

    Returns:
        The sum, a float32 scalar; 0 for no positions.

    Example:
        >>> hidden, weight = torch.randn(5, 8), torch.randn(100, 8)
        >>> loss = linear_cross_entropy_sum(hidden, weight, torch.randint(100, (5,)))
    """
    if chunk_size is None:
        chunk_size = _default_chunk_size(hidden_md.device.type, weight_vd.dtype)
    return _LinearCrossEntropy.apply(hidden_md, weight_vd, labels_m, chunk_size, weights_m)


def _default_chunk_size(device_type: str, dtype: torch.dtype) -> int:
    if device_type != "cpu":
        return 1024
    return 128 if product_dtype(device_type, dtype) == dtype else 512


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_md: Tensor,
        weight_vd: Tensor,
        labels_m: Tensor,
        chunk_size: int,
        weights_m: Tensor | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        loss = hidden_md.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_md) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_vd, dtype=torch.float32) if wants_weight else None
        buffer = weight_vd.new_empty(min(chunk_size, len(hidden_md)), len(weight_vd))
        # The products are in the weight's dtype already: autocast would copy what it casts.
        with torch.autocast(hidden_md.device.type, enabled=False):
            for start in range(0, len(hidden_md), chunk_size):
                part = slice(start, start + chunk_size)
                hidden = hidden_md[part].to(weight_vd.dtype)
                logits = _logits(hidden, weight_vd, buffer[: len(hidden)])
                weights = None if weights_m is None else weights_m[part]
                loss += _cross_entropy_sum_(logits, labels_m[part], weights)
                if wants_hidden:
                    grad_hidden[part] = _grad_hidden(logits, weight_vd)
                if wants_weight:
                    grad_weight += (logits.T @ hidden).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_vd.dtype
        return loss

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _logits(hidden_md: Tensor, weight_vd: Tensor, out_mv: Tensor) -> Tensor:
    """``hidden @ weight.T``, written into ``out``."""
    wide = product_dtype(hidden_md.device.type, weight_vd.dtype)
    if wide == weight_vd.dtype:
        return torch.mm(hidden_md, weight_vd.T, out=out_mv)
    hidden_md = hidden_md.to(wide)
    room = weight_vd.new_empty(_WIDENED, weight_vd.shape[1], dtype=wide)
    for weight, out in zip(weight_vd.split(_WIDENED), out_mv.split(_WIDENED, 1), strict=True):
        out.copy_(hidden_md @ room[: len(weight)].copy_(weight).T)
    return out_mv


def _grad_hidden(grad_mv: Tensor, weight_vd: Tensor) -> Tensor:
    """``grad @ weight``."""
    wide = product_dtype(grad_mv.device.type, weight_vd.dtype)
    if wide == weight_vd.dtype:
        return grad_mv @ weight_vd
    total_md = grad_mv.new_zeros(len(grad_mv), weight_vd.shape[1], dtype=wide)
    room = weight_vd.new_empty(_WIDENED, weight_vd.shape[1], dtype=wide)
    for grad, weight in zip(grad_mv.split(_WIDENED, 1), weight_vd.split(_WIDENED), strict=True):
        total_md.addmm_(grad.to(wide), room[: len(weight)].copy_(weight))
    return total_md


def _cross_entropy_sum_(logits_mv: Tensor, labels_m: Tensor, weights_m: Tensor | None) -> Tensor:
    """Summed cross-entropy in float32; in place, the logits become its gradient.

    On a CPU a few rows at a time, so that what lies between the two stays in its cache.
    """
    rows = 8 if logits_mv.device.type == "cpu" else len(logits_mv)
    loss = logits_mv.new_zeros((), dtype=torch.float32)
    for start in range(0, len(logits_mv), rows):
        part = slice(start, start + rows)
        logits, labels = logits_mv[part], labels_m[part, None]
        log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        label_log_p = log_p.gather(1, labels)
        # Probabilities, less one at the label.
        grad = log_p.exp_().scatter_add_(1, labels, log_p.new_full(labels.shape, -1.0))
        if weights_m is not None:
            weights = weights_m[part, None].float()
            label_log_p, grad = label_log_p * weights, grad.mul_(weights)
        loss -= label_log_p.sum()
        logits.copy_(grad)
    return loss
