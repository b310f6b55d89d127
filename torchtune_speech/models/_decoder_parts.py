"""Parts of torchtune's decoder that give the same for less work."""

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import FeedForward, TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.peft import LoRALinear

from torchtune_speech.models._attention_mask import SampleAttention
from torchtune_speech.models._quantize import is_quantized
from torchtune_speech.modules import Packing, lora_linear, swiglu


def replace_parts(decoder: TransformerDecoder) -> None:
    """Put our attention, feed-forward network, LoRA and last layer in the place of torchtune's.

    They take over weights and the names of these: checkpoints stay what they are.

    Args:
        decoder: torchtune decoder; changed in place.
    """
    for layer in decoder.layers:
        if not isinstance(layer.attn, SampleAttention):
            layer.attn = SampleAttention(layer.attn)
        mlp = layer.mlp
        if type(mlp) is FeedForward and mlp.w3 is not None and isinstance(mlp.activation, nn.SiLU):
            layer.mlp = GatedFeedForward(mlp)
    decoder.layers[-1] = LastLayer(decoder.layers[-1])
    for module in list(decoder.layers.modules()):
        for name, part in module.named_children():
            if type(part) is LoRALinear and not part._quantize_base:
                setattr(module, name, FusedLoRALinear(part))


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
