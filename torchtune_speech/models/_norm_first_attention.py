"""Qwen3's attention: queries and keys are normalised, then turned by their positions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from torchtune_speech.models._attention_mask import SampleAttention
from torchtune_speech.modules import Packing, apply_rotary


class HalvesRotary(nn.Module):
    """Rotary position embedding of the two halves of each head, as Hugging Face orders them.

    Angles are computed where they are used: a table for 262,144 positions would take 134 MB, and
    would have to be restored after building on the meta device.

    Source: RoFormer, https://arxiv.org/abs/2104.09864

    Args:
        head_dim: width of an attention head; even.
        base: slowest wavelength is about ``2 * pi * base`` tokens.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        """Turn queries or keys.

        Args:
            x: ``[b, s, heads, head_dim]``.
            input_pos: position of each token in its sample, ``[b, s]``; None for 0 to s - 1.

        Returns:
            The same shape and dtype.
        """
        if input_pos is None:
            input_pos = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        exponents = torch.arange(0, self.head_dim, 2, device=x.device) / self.head_dim
        # To the last bit as Hugging Face has it: at position 100,000 a rounding more or less of
        # the frequency is a hundredth of a radian.
        angles = input_pos.flatten()[:, None] * (1.0 / self.base**exponents)
        return apply_rotary(x.flatten(0, 1), (angles.cos(), angles.sin())).view_as(x)


class NormFirstAttention(SampleAttention):
    """Attention that normalises each head of q and k before the rotary embedding, as Qwen3 does.

    torchtune's attention does it afterwards, which is something else as soon as the norms' scales
    are not all alike. Parts and parameter names are those of torchtune's.

    Source: https://arxiv.org/abs/2505.09388, section 2; the order is that of ``Qwen3Attention`` in
    Hugging Face transformers.

    Args:
        attn: the attention whose parts it takes over; it has ``q_norm`` and ``k_norm``.
    """

    norm_first = True

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        mask: Tensor | BlockMask | Packing | None = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: hidden states, ``[b, s, d]``.
            y: the same; torchtune's layers give it a second time.
            mask: see :class:`SampleAttention`; None for causal attention.
            input_pos: position of each token in its sample, ``[b, s]``.

        Returns:
            ``[b, s, d]``.
        """
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = self.pos_embeddings(self.q_norm(q), input_pos=input_pos)
        k = self.pos_embeddings(self.k_norm(k), input_pos=input_pos)
        share = self.num_heads // self.num_kv_heads
        if share > 1:
            k, v = (h.repeat_interleave(share, dim=2) for h in (k, v))
        out = self._attention_call(
            *(h.transpose(1, 2) for h in (q, k, v)),
            mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=mask is None and self.is_causal,
        )
        return self.output_proj(out.transpose(1, 2).flatten(2))

    def setup_cache(self, *_: Any, **__: Any) -> None:
        """Refuse: torchtune's own cache is not for this attention, take :class:`DecodingCache`."""
        raise NotImplementedError("use torchtune_speech.models.DecodingCache")
