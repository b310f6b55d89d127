"""Parts of torchtune's decoder that give the same for less work."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.peft import LoRALinear

from torchtune_speech.models._attention_mask import SampleAttention
from torchtune_speech.modules import Packing, add_low_rank


def replace_parts(decoder: TransformerDecoder) -> None:
    """Put our attention, our LoRA and our last layer in the place of torchtune's.

    They take over weights and the names of these: checkpoints stay what they are.

    Args:
        decoder: torchtune decoder; changed in place.
    """
    for layer in decoder.layers:
        layer.attn = SampleAttention(layer.attn)
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
    """torchtune's linear layer with LoRA, whose update is added within its own matrix product.

    torchtune scales the update and adds it in passes of their own over the output, which is as
    large as all of the layer's output; here the scale is applied to the few values between the
    two small matrices. Same parts, same parameter names.

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
        out = F.linear(x, self.weight, self.bias)
        if self.disabled:
            return out
        low = self.lora_a(self.dropout(x)) * (self.alpha / self.rank)
        added = add_low_rank(out.flatten(0, -2), low.flatten(0, -2), self.lora_b.weight)
        return added.view_as(out)
