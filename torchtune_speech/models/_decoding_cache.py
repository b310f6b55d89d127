"""Keys and values of a batch that is being decoded, and a decoder layer's pass over them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import scaled_dot_product_attention
from torchtune.modules import (
    FeedForward,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

from torchtune_speech.models._attention_mask import SampleAttention
from torchtune_speech.models._quantize import is_quantized

# From here on rows times weight is as fast.
_FEW_ROWS = 64


class DecodingCache:
    """Keys and values of prompts and of the tokens decoded after them.

    The first pass reads all prompts, one after another without padding. Every later pass reads one
    token of each row. The slots are laid out once, for the longest prompt and the longest answer::

        row 0  prompt prompt prompt prompt | new new
        row 1  prompt prompt               | new new new

    so that reordering the hypotheses of a beam moves the new part only, and a row can be set back
    to an earlier token by itself.

    Args:
        decoder: whose layers it is for.
        lengths: length of each prompt, in tokens.
        new_len: longest answer, in tokens.
        dtype: of keys and values, the one attention computes in.
        device: where they lie.

    Attributes:
        lengths: length of each row's prompt.
        counts: new tokens of each row that are in the cache.
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        lengths: Sequence[int],
        new_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.lengths, self.counts = list(lengths), [0] * len(lengths)
        self.prompt_len, self._read = max(lengths), False
        self._device, self._dtype = device, dtype
        self._layers = []
        for layer in decoder.layers:
            attn = layer.attn
            shape = (len(lengths), attn.num_kv_heads, self.prompt_len + new_len, attn.head_dim)
            # Zeros: what is masked still gets multiplied, and NaN times nothing is NaN.
            self._layers.append(
                tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            )

    def begin(self) -> Tensor:
        """Get ready for a pass.

        Returns:
            Position of each token of the pass in its row, ``[t]``.
        """
        if not self._read:
            return torch.cat([torch.arange(n) for n in self.lengths]).to(self._device)
        end = self.prompt_len + max(self.counts) + 1
        lengths = torch.tensor(self.lengths, device=self._device)
        counts = torch.tensor(self.counts, device=self._device)
        self._end, self._mask, self._slots = end, None, self.prompt_len + counts
        self._rows = torch.arange(len(self.lengths), device=self._device)
        if min(self.lengths) < self.prompt_len or len(set(self.counts)) > 1:
            slots = torch.arange(end, device=self._device)
            new = (slots >= self.prompt_len) & (slots <= self._slots[:, None])
            visible = (slots < lengths[:, None]) | new
            mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
            self._mask = mask.masked_fill_(~visible, -torch.inf)[:, None, None]
        return lengths + counts

    def end(self) -> None:
        """Count what the pass has read."""
        if self._read:
            self.counts = [count + 1 for count in self.counts]
        self._read = True

    def attend(self, index: int, q_thd: Tensor, k_tgd: Tensor, v_tgd: Tensor) -> Tensor:
        """Attention of a pass's tokens to their own rows, themselves included.

        Args:
            index: number of the layer.
            q_thd: queries, ``[t, heads, head_dim]``.
            k_tgd: keys, ``[t, kv_heads, head_dim]``.
            v_tgd: values, ``[t, kv_heads, head_dim]``.

        Returns:
            ``[t, heads * head_dim]``.
        """
        q, k, v = (x.to(self._dtype) for x in (q_thd, k_tgd, v_tgd))
        keys, values = self._layers[index]
        attend = self._attend_token if self._read else self._attend_prompts
        return attend(q, k, v, keys, values).flatten(1)

    def _attend_prompts(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Row by row, so that nothing is computed for padding and no mask is needed."""
        out = []
        rows = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        for row, parts in enumerate(rows):
            q_, k_, v_ = (x.transpose(0, 1)[None] for x in parts)
            keys[row, :, : k_.shape[2]], values[row, :, : v_.shape[2]] = k_[0], v_[0]
            attended = scaled_dot_product_attention(
                q_, k_, v_, is_causal=True, enable_gqa=q_.shape[1] != k_.shape[1]
            )
            out.append(attended[0].transpose(0, 1))
        return torch.cat(out)

    def _attend_token(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        keys[self._rows, :, self._slots] = k
        values[self._rows, :, self._slots] = v
        # The queries that share a key head stand where a sequence would: no key is copied.
        grouped = q.unflatten(1, (keys.shape[1], -1))
        out = scaled_dot_product_attention(
            grouped, keys[:, :, : self._end], values[:, :, : self._end], attn_mask=self._mask
        )
        return out.flatten(1, 2)

    def rewind(self, row: int, count: int) -> None:
        """Forget a row's last tokens.

        Args:
            row: its number.
            count: how many new tokens stay.
        """
        self.counts[row] = count

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows, in a new order; a row may come several times.

        Args:
            rows: numbers of the rows.
        """
        index = torch.tensor(rows, device=self._device)
        for i, layer in enumerate(self._layers):  # so that no second cache is ever whole
            self._layers[i] = tuple(x.index_select(0, index) for x in layer)
        self.lengths = [self.lengths[i] for i in rows]
        self.counts = [self.counts[i] for i in rows]

    def reorder(self, rows: Sequence[int]) -> None:
        """Exchange the new tokens of rows that share a prompt.

        Args:
            rows: for each row, the row whose new tokens it takes.
        """
        index = torch.tensor(rows, device=self._device)
        new = slice(self.prompt_len, self.prompt_len + max(self.counts))
        for layer in self._layers:
            for x in layer:
                x[:, :, new] = x[:, :, new].index_select(0, index)
        self.counts = [self.counts[i] for i in rows]


def cached_layer(
    layer: TransformerSelfAttentionLayer,
    h_td: Tensor,
    positions_t: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    keep: Tensor | None = None,
) -> Tensor:
    """A decoder layer over single tokens, with attention left to the caller.

    Args:
        layer: the layer.
        h_td: hidden states, ``[t, d]``.
        positions_t: position of each token in its sample, ``[t]``.
        attend: queries ``[t, heads, head_dim]``, keys and values ``[t, kv_heads, head_dim]`` to
            ``[t, heads * head_dim]``.
        keep: tokens whose state is wanted, ``[m]``; of the last layer it is wanted where an answer
            begins. Default None: all.

    Returns:
        Hidden states after the layer, ``[t, d]`` or ``[m, d]``.
    """
    with _gathered(layer):
        attn = layer.attn
        q, k, v = _queries_keys_values(attn, layer.sa_norm(h_td), positions_t)
        attended = attend(q, k, v).to(h_td.dtype)
        if keep is not None:
            h_td, attended = h_td[keep], attended[keep]
        h_td = layer.sa_scale(few_rows_linear(attn.output_proj, attended)) + h_td
        return layer.mlp_scale(_feed_forward(layer.mlp, layer.mlp_norm(h_td))) + h_td


def few_rows_linear(linear: nn.Module, x_td: Tensor) -> Tensor:
    """A linear layer; on a CPU, fast for few rows.

    A step of decoding multiplies large matrices with few rows. Taken as weight times rows, on a
    CPU that is computed up to four times as fast as rows times weight.

    Args:
        linear: ``nn.Linear``, torchtune's ``TiedLinear``, or any other module (LoRA among them),
            which is called as it is, as is one with a quantised weight.
        x_td: ``[t, d]``.

    Returns:
        ``[t, d_out]``.
    """
    plain = linear.tied_module if isinstance(linear, TiedLinear) else linear
    few = x_td.device.type == "cpu" and len(x_td) <= _FEW_ROWS
    if not few or type(plain) not in (nn.Linear, nn.Embedding) or is_quantized(plain.weight):
        return linear(x_td)
    out = torch.mm(plain.weight, x_td.t()).t()
    bias = getattr(plain, "bias", None)
    return out if bias is None else out + bias


def _feed_forward(mlp: nn.Module, x_td: Tensor) -> Tensor:
    if not isinstance(mlp, FeedForward) or mlp.w3 is None:
        return mlp(x_td)
    gate, up = few_rows_linear(mlp.w1, x_td), few_rows_linear(mlp.w3, x_td)
    return few_rows_linear(mlp.w2, mlp.activation(gate).mul_(up))


def _queries_keys_values(
    attn: SampleAttention, x_td: Tensor, positions_t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        few_rows_linear(project, x_td).unflatten(-1, (-1, attn.head_dim))
        for project in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    if attn.norm_first:
        q, k = attn.q_norm(q), attn.k_norm(k)
    if attn.pos_embeddings is not None:
        both = torch.cat([q, k], dim=1)[None]  # one call for both
        both = attn.pos_embeddings(both, input_pos=positions_t[None])[0]
        q, k = both.split([q.shape[1], k.shape[1]], dim=1)
    # torchtune's order: normalised after the rotary embedding.
    if attn.q_norm is not None and not attn.norm_first:
        q, k = attn.q_norm(q), attn.k_norm(k)
    return q, k, v


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """With its weights together, where they are sharded over processes."""
    sharded = isinstance(module, FSDPModule)
    if sharded:
        module.unshard()
    try:
        yield
    finally:
        if sharded:
            module.reshard()
