"""Parts of torchtune's decoder that give the same for less work."""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.modules import (
    FeedForward,
    RMSNorm,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.peft import LoRALinear

from torchtune_speech.models._attention_mask import SampleAttention
from torchtune_speech.models._quantize import is_quantized
from torchtune_speech.modules import Packing, lora_linear, rms_norm, rotate_pairs, swiglu


def replace_parts(decoder: TransformerDecoder) -> None:
    """Put our parts in the place of torchtune's.

    They take over weights and the names of these: checkpoints stay what they are.

    Args:
        decoder: torchtune decoder; changed in place.
    """
    rotary: dict[nn.Module, nn.Module] = {}  # all layers share one
    for layer in decoder.layers:
        if not isinstance(layer.attn, SampleAttention):
            layer.attn = SampleAttention(layer.attn)
        rope = layer.attn.pos_embeddings
        if type(rope) is Llama3ScaledRoPE:
            if rope not in rotary:
                rotary[rope] = OnePassRotary(rope)
            layer.attn.pos_embeddings = rotary[rope]
        mlp = layer.mlp
        if type(mlp) is FeedForward and mlp.w3 is not None and isinstance(mlp.activation, nn.SiLU):
            layer.mlp = GatedFeedForward(mlp)
    decoder.layers[-1] = LastLayer(decoder.layers[-1])
    for module in list(decoder.modules()):
        for name, part in module.named_children():
            if type(part) is LoRALinear and not part._quantize_base:
                setattr(module, name, FusedLoRALinear(part))
            elif type(part) is RMSNorm:
                setattr(module, name, SlimRMSNorm(part))


class LastLayer(TransformerSelfAttentionLayer):
    """A decoder's last layer: behind its attention it goes on with the wanted positions alone.

    Nothing looks at the others any more, and where a fifth of the positions is supervised, four
    fifths of the feed-forward network's work is saved. Same parts, same parameter names.

    Args:
        layer: the layer whose parts it takes over.
    """

    def __init__(self, layer: TransformerSelfAttentionLayer) -> None:
        super().__init__(
            layer.attn,
            layer.mlp,
            sa_norm=layer.sa_norm,
            mlp_norm=layer.mlp_norm,
            sa_scale=layer.sa_scale,
            mlp_scale=layer.mlp_scale,
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | BlockMask | Packing | None = None,
        input_pos: Tensor | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: hidden states, ``[b, s, d]``.
            mask: see torchtune's layer.
            input_pos: position of each token in its sample, ``[b, s]``.
            select: flat positions that are wanted, ``[m]``; None for all.

        Returns:
            ``[m, d]``, or ``[b, s, d]`` without ``select``.
        """
        normed = self.sa_norm(x)
        h = x + self.sa_scale(self.attn(normed, normed, mask=mask, input_pos=input_pos))
        if select is not None:
            h = h.flatten(0, 1).index_select(0, select)
        return h + self.mlp_scale(self.mlp(self.mlp_norm(h)))


class FusedLoRALinear(LoRALinear):
    """torchtune's linear layer with LoRA, without passes of their own for the update.

    torchtune scales the update and adds it in passes over the output, which is as large as all of
    the layer's output; see :func:`lora_linear`. Same parts, same parameter names. With dropout, a
    bias or a quantised weight it is torchtune's layer.

    Args:
        linear: the layer whose parts it takes over.
    """

    def __init__(self, linear: LoRALinear) -> None:
        nn.Module.__init__(self)  # torchtune's constructor would draw weights
        self.in_dim, self.out_dim = linear.in_dim, linear.out_dim
        self.rank, self.alpha, self.use_bias = linear.rank, linear.alpha, linear.use_bias
        self.disabled, self.merged, self._quantize_base = linear.disabled, linear.merged, False
        self.weight, self.bias, self.dropout = linear.weight, linear.bias, linear.dropout
        self.lora_a, self.lora_b = linear.lora_a, linear.lora_b

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer and update.

        Args:
            x: ``[..., in_dim]``.

        Returns:
            ``[..., out_dim]``.
        """
        plain = not is_quantized(self.weight) and isinstance(self.dropout, nn.Identity)
        if self.disabled or self.use_bias or not plain:
            return super().forward(x)
        out = lora_linear(
            x.flatten(0, -2),
            self.weight,
            self.lora_a.weight,
            self.lora_b.weight,
            self.alpha / self.rank,
        )
        return out.unflatten(0, x.shape[:-1])


class GatedFeedForward(FeedForward):
    """torchtune's gated feed-forward network, which keeps less for the backward pass.

    Args:
        mlp: the network whose parts it takes over; its activation is SiLU.
    """

    def __init__(self, mlp: FeedForward) -> None:
        super().__init__(
            gate_proj=mlp.w1, down_proj=mlp.w2, up_proj=mlp.w3, activation=mlp.activation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: ``[..., dim]``.

        Returns:
            ``[..., dim]``.
        """
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class SlimRMSNorm(RMSNorm):
    """torchtune's RMS norm, which keeps less for the backward pass; see :func:`rms_norm`.

    Args:
        norm: the norm whose scale it takes over.
    """

    def __init__(self, norm: RMSNorm) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps, self.scale = norm.normalized_shape, norm.eps, norm.scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: ``[..., dim]``.

        Returns:
            ``[..., dim]``.
        """
        return rms_norm(x, self.scale, self.eps)


class OnePassRotary(Llama3ScaledRoPE):
    """torchtune's rotary embedding in one pass over a CPU's memory; see :func:`rotate_pairs`.

    On a GPU and compiled it is torchtune's.

    Args:
        rope: the embedding whose settings it takes over.
    """

    def __init__(self, rope: Llama3ScaledRoPE) -> None:
        super().__init__(
            rope.dim,
            rope.max_seq_len,
            rope.base,
            rope.scale_factor,
            rope.low_freq_factor,
            rope.high_freq_factor,
            rope.old_context_len,
        )

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        """Turn queries or keys.

        Args:
            x: ``[b, s, heads, head_dim]``.
            input_pos: position of each token in its sample, ``[b, s]``; None for 0 to s - 1.

        Returns:
            The same shape and dtype.
        """
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not self.is_cache_built:
            return super().forward(x, input_pos=input_pos)
        cos_sin = self.cache[None, : x.shape[1]] if input_pos is None else self.cache[input_pos]
        return rotate_pairs(x, cos_sin.float())
