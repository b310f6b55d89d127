"""The matrices of the frozen LLM in 4 or 8 bits.

A quantised weight is a tensor that knows how to be multiplied with: ``F.linear`` takes it as it
takes any other. So layers, LoRA and the names of weights stay what they are.
"""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4

from torchtune_speech.errors import InputError

QUANTIZATIONS = ("nf4", "float8")

_MATRIX = re.compile(
    r"decoder\.layers\.\d+\.(attn\.(q_proj|k_proj|v_proj|output_proj)|mlp\.(w1|w2|w3))\.weight"
)
_NF4_BLOCK, _NF4_SCALER_BLOCK = 64, 256
_FLOAT8 = torch.float8_e4m3fn
_FLOAT8_MAX = torch.finfo(_FLOAT8).max
_FLOAT8_SIDE = 16  # of the matrices that torch._scaled_mm takes
_FLOAT8_CAPABILITY = (8, 9)


class Float8Weight(Tensor):
    """A frozen matrix in float8 (e4m3), with a scale for each of its rows.

    Args:
        values_oi: rounded values, ``[out, in]``.
        scale_o1: what each row is multiplied with, float32, ``[out, 1]``.
        dtype: of the matrix that it stands for.
    """

    @staticmethod
    def __new__(
        cls: type, values_oi: Tensor, scale_o1: Tensor, dtype: torch.dtype
    ) -> "Float8Weight":
        return Tensor._make_wrapper_subclass(
            cls, values_oi.shape, dtype=dtype, device=values_oi.device
        )

    def __init__(self, values_oi: Tensor, scale_o1: Tensor, dtype: torch.dtype) -> None:
        self.values_oi, self.scale_o1 = values_oi, scale_o1

    def get_original_weight(self) -> Tensor:
        """The matrix that the values stand for (the name is torchao's), ``[out, in]``."""
        return (self.values_oi.float() * self.scale_o1).to(self.dtype)

    def __repr__(self, **_: Any) -> str:
        return f"Float8Weight({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return ["values_oi", "scale_o1"], self.dtype

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], dtype: torch.dtype, *_: Any
    ) -> "Float8Weight":
        return Float8Weight(inner["values_oi"], inner["scale_o1"], dtype)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return _float8_linear(*args, **kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            weight = args[0]
            return Float8Weight(weight.values_oi.detach(), weight.scale_o1.detach(), weight.dtype)
        raise NotImplementedError(f"{func} of a Float8Weight: only F.linear takes one")


def to_float8(x_td: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to float8 (e4m3), scaled so that its largest value is float8's largest.

    Args:
        x_td: ``[t, d]``.

    Returns:
        The rounded values, ``[t, d]``, and what to multiply each row with, float32, ``[t, 1]``.
    """
    x = x_td.float()
    largest = x.abs().amax(1, keepdim=True)
    scale = (largest / _FLOAT8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scale).to(_FLOAT8), scale


class _Float8Matmul(torch.autograd.Function):
    """``x @ weight.T`` with both in float8, and the gradient of x in the same way.

    The weight is frozen: it gets no gradient. Scales by row as in torchao's rowwise recipe,
    https://github.com/pytorch/ao/tree/main/torchao/float8; there the weight is kept in high
    precision and rounded at each step.
    """

    @staticmethod
    def forward(ctx: Any, x_ti: Tensor, values_oi: Tensor, scale_o1: Tensor) -> Tensor:
        ctx.save_for_backward(values_oi, scale_o1)
        x8, x_scale = to_float8(x_ti)
        return torch._scaled_mm(
            x8, values_oi.t(), scale_a=x_scale, scale_b=scale_o1.t(), out_dtype=x_ti.dtype
        )

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor, None, None]:
        values_oi, scale_o1 = ctx.saved_tensors
        # Here the sum runs over the weight's rows: their scales go into the gradient.
        grad8, grad_scale = to_float8(grad_to * scale_o1.t())
        by_column = values_oi.t().contiguous().t()  # as _scaled_mm wants its second matrix
        grad_x = torch._scaled_mm(
            grad8,
            by_column,
            scale_a=grad_scale,
            scale_b=torch.ones_like(values_oi[:1], dtype=torch.float32),
            out_dtype=grad_to.dtype,
        )
        return grad_x, None, None


def _float8_linear(input: Tensor, weight: Float8Weight, bias: Tensor | None = None) -> Tensor:
    flat = input.flatten(0, -2)
    out = _Float8Matmul.apply(flat, weight.values_oi, weight.scale_o1)
    out = out.unflatten(0, input.shape[:-1])
    return out if bias is None else out + bias


def quantize_weight(weight: Tensor, kind: str, name: str = "weight") -> Tensor:
    """A matrix in fewer bits.

    NF4 has 4 bits for each value, a scale for 64 of them, and the scales in 8 bits with a scale of
    their own for 256 (QLoRA, https://arxiv.org/abs/2305.14314; torchao's and torchtune's tensor).
    A matrix too small for that has fewer scales together.

    Args:
        weight: ``[out, in]``; on the meta device it stays there.
        kind: ``nf4`` or ``float8``.
        name: of the weight, for the message.

    Returns:
        A tensor that ``F.linear`` takes as weight, of the same shape and dtype.

    Raises:
        InputError: if the shape does not fit.
    """
    if kind == "nf4":
        if weight.numel() % _NF4_BLOCK:
            raise InputError(
                f"quantize: nf4 wants matrices of a multiple of {_NF4_BLOCK} values, {name} is "
                f"{tuple(weight.shape)}; set quantize=null for this LLM"
            )
        together = math.gcd(weight.numel() // _NF4_BLOCK, _NF4_SCALER_BLOCK)
        return to_nf4(weight.contiguous(), _NF4_BLOCK, together)
    if any(side % _FLOAT8_SIDE for side in weight.shape):
        raise InputError(
            f"quantize: float8 wants matrices whose sides are multiples of {_FLOAT8_SIDE}, {name} "
            f"is {tuple(weight.shape)}; set quantize=null for this LLM"
        )
    return Float8Weight(*to_float8(weight), weight.dtype)


def quantize_frozen(model: nn.Module, kind: str) -> None:
    """Put the matrices of the decoder's layers into fewer bits, in place.

    These are q, k, v and output of attention and the three of the feed-forward network; not
    embeddings, norms, output layer, LoRA or projector.

    Args:
        model: a :class:`SpeechLLM`; on the meta device, the weights loaded into it later have to be
            quantised alike.
        kind: ``nf4`` or ``float8``.

    Raises:
        InputError: if a matrix does not fit, by name.
    """
    matrices = {
        name: quantize_weight(p.detach(), kind, name)
        for name, p in model.state_dict().items()
        if _MATRIX.fullmatch(name)
    }
    model.load_state_dict(matrices, strict=False, assign=True)


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is in fewer bits, so that nothing but ``F.linear`` may take it.

    Args:
        weight: a parameter.

    Returns:
        True for the tensors of :func:`quantize_weight`.
    """
    return isinstance(weight, (NF4Tensor, Float8Weight))


def weight_bytes(weight: Tensor) -> int:
    """Memory of a weight, quantised or not, scales included.

    Args:
        weight: a parameter, may be on the meta device.

    Returns:
        Bytes.
    """
    if not is_quantized(weight):
        return weight.numel() * weight.element_size()
    return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])


def check_quantize(
    kind: Any, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None
) -> None:
    """Refuse an unknown kind, and one that the device cannot compute.

    Args:
        kind: ``nf4``, ``float8``, or None for neither.
        dtype: precision of the other matrix products.
        device: where they are computed; None to ask no device.

    Raises:
        InputError: saying what to take instead.
    """
    if kind is not None and kind not in QUANTIZATIONS:
        raise InputError(f"quantize: {kind!r} is unknown; use {', '.join(QUANTIZATIONS)} or null")
    if kind != "float8" or device is None or device.type != "cuda":
        return
    have = torch.cuda.get_device_capability(device)
    if have < _FLOAT8_CAPABILITY:
        raise InputError(
            f"quantize: float8 needs a GPU of compute capability {_name(_FLOAT8_CAPABILITY)} or "
            f"later (L4, RTX 40, H100), this one has {_name(have)}; use nf4 or null"
        )
    if dtype != torch.bfloat16:
        raise InputError(
            "quantize: on a GPU the products of float8 come out in bf16; set dtype=bf16, "
            "or quantize=null"
        )


def _name(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
