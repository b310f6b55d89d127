"""The projector of SpeechMapper: blocks of convolution, Transformer layers, linear map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchtune_speech.errors import InputError
from torchtune_speech.models._projectors import (
    check_count,
    check_packed,
    head_count,
    rotary_head_dim,
)
from torchtune_speech.modules import (
    Activation,
    PackedConv1d,
    Packing,
    TransformerEncoderLayer,
    ctc_compress,
    rotary_angles,
    stacked_length,
)

PerBlock = int | Sequence[int]


class CTCCompression(nn.Module):
    """In the place of a block's convolution: the mean of the vectors of each token CTC hears.

    The tokens then stand in order from the first slot on, where the targets of SpeechMapper have
    them, and the layers need not learn to carry them there. CTC decides alone: no gradient of the
    slots reaches its logits.

    Args:
        stride: vectors that come in for a slot that goes out.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def output_length(self, vectors: int | Tensor) -> int | Tensor:
        """Number of slots: ``ceil(vectors / stride)``."""
        return stacked_length(vectors, self.stride)

    def forward(self, x_td: Tensor, lengths_u: Tensor, ctc_logits_tv: Tensor) -> Tensor:
        """Compress: see :func:`ctc_compress`.

        Args:
            x_td: packed vectors, ``[t, d]``.
            lengths_u: vectors of each utterance, ``[u]``.
            ctc_logits_tv: of the same vectors, blank first, ``[t, v]``; its other labels are
                those that the slots are to stand for.

        Returns:
            Packed slots, ``[sum(output_length(lengths_u)), d]``; zero behind the last token.
        """
        return ctc_compress(x_td, ctc_logits_tv, lengths_u, self.output_length(lengths_u))


class SpeechMapperBlock(nn.Module):
    """Convolution, Transformer encoder layers, norm, and a linear map to the next width.

    The layers have positions of two kinds: sinusoids, added, tell which vector of the utterance
    this is, and rotary ones how far two are apart.

    Args:
        conv: makes what the layers get, ``embed_dim`` wide: called as ``conv(x_td, lengths_u)``,
            or with CTC logits, too (:class:`CTCCompression`); has ``output_length``.
        embed_dim: width of the layers.
        out_dim: width of what goes out.
        layers: called as ``layer(x_td, packing, rotary)``.
        rotary_dim: width of an attention head.
        dropout: on what enters the layers.
    """

    def __init__(
        self,
        *,
        conv: nn.Module,
        embed_dim: int,
        out_dim: int,
        layers: Sequence[nn.Module],
        rotary_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_dim, self.rotary_dim = out_dim, rotary_dim
        self.conv = conv
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dim)
        self.up_proj = nn.Linear(embed_dim, out_dim)

    def forward(
        self, x_td: Tensor, lengths_u: Tensor, *ctc_logits_tv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            x_td: packed vectors, ``[t, in_dim]``.
            lengths_u: vectors of each utterance, ``[u]``, on the CPU.
            *ctc_logits_tv: for :class:`CTCCompression`, ``[t, v]``.

        Returns:
            Packed vectors, ``[n, out_dim]``, and their number in each utterance, ``[u]``.
        """
        x = self.conv(x_td, lengths_u, *ctc_logits_tv)
        lengths_u = self.conv.output_length(lengths_u)
        packing = Packing.from_lengths(lengths_u, x.device)
        sinusoids = torch.cat(rotary_angles(packing.positions_t, x.shape[-1]), dim=-1)
        x = self.dropout(x + sinusoids.to(x.dtype))
        rotary = rotary_angles(packing.positions_t, self.rotary_dim)
        for layer in self.layers:
            x = layer(x, packing, rotary)
        return self.up_proj(self.norm(x)), lengths_u


class SpeechMapperProjector(nn.Module):
    """Encoder frames to speech vectors: norm, blocks, linear maps.

    Packed in and packed out, without padding, like :class:`EncoderProjector`: an utterance's
    vectors do not depend on its batch, and an empty batch is connected to all parameters.

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings, and of what the last block gives.
        blocks: called as ``block(x_td, lengths_u)``.
        num_out_layers: linear maps after the last block, at least 1.
        input_norm: see :class:`EncoderProjector`.
        ctc_vocab_size: see :class:`EncoderProjector`.
        ctc_block: block, counted from 1, after which the CTC head sits. A block behind it whose
            ``conv`` is :class:`CTCCompression` gets its logits.
        output_scale: see :class:`EncoderProjector`.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        blocks: Sequence[SpeechMapperBlock],
        num_out_layers: int = 1,
        input_norm: bool = True,
        ctc_vocab_size: int | None = None,
        ctc_block: int = 1,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.ctc_block, self.output_scale = ctc_block, output_scale
        self.input_norm = nn.LayerNorm(in_dim) if input_norm else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        maps = [nn.Linear(out_dim, out_dim) for _ in range(num_out_layers - 1)]
        self.out_layers = nn.Sequential(*(part for linear in maps for part in (nn.GELU(), linear)))
        self.norm = nn.LayerNorm(out_dim)
        self.out_proj = nn.Linear(out_dim, out_dim)
        self.ctc_norm = self.ctc_proj = None
        if ctc_vocab_size is not None:
            ctc_dim = blocks[ctc_block - 1].out_dim
            self.ctc_norm = nn.LayerNorm(ctc_dim)
            self.ctc_proj = nn.Linear(ctc_dim, ctc_vocab_size)
        self._scale_parameters()

    @property
    def layers(self) -> nn.ModuleList:
        """The Transformer layers of all blocks, to shard, compile or recompute one by one."""
        return nn.ModuleList(layer for block in self.blocks for layer in block.layers)

    @property
    def compresses_by_ctc(self) -> bool:
        """Whether the CTC head decides what a speech vector is made of."""
        return any(isinstance(block.conv, CTCCompression) for block in self.blocks)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as after building on the meta device and ``to_empty``."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self._scale_parameters()

    @torch.no_grad()
    def _scale_parameters(self) -> None:
        self.out_proj.weight.mul_(self.output_scale)
        self.out_proj.bias.zero_()

    def output_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of speech vectors of an utterance: the one source for placeholders.

        Args:
            frames: encoder frames of one utterance, or of many, any shape.

        Returns:
            As many speech vectors, the frames divided by all strides and rounded up; 0 for 0
            frames, at least 1 for any other.
        """
        return self._length_after(frames, len(self.blocks))

    def ctc_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of CTC logit vectors of an utterance: the rate after ``ctc_block``."""
        return self._length_after(frames, self.ctc_block)

    def _length_after(self, frames: int | Tensor, num_blocks: int) -> int | Tensor:
        for block in self.blocks[:num_blocks]:
            frames = block.conv.output_length(frames)
        return frames

    def forward(
        self, frames_td: Tensor, frame_lengths_u: Tensor, return_ctc: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project a batch.

        Args:
            frames_td: frames of all utterances, packed, ``[t, in_dim]``; cast to the dtype of the
                parameters.
            frame_lengths_u: frames of each utterance, ``[u]``, best on the CPU.
            return_ctc: return the logits of the CTC head as well.

        Returns:
            Speech vectors, packed, ``[n, out_dim]`` where n is the sum of
            ``output_length(frame_lengths_u)``; with ``return_ctc`` a pair of them and CTC logits
            ``[sum(ctc_length(frame_lengths_u)), ctc_vocab_size]``.

        Raises:
            InputError: if the frames have another width.
            ValueError: if the lengths do not add up to the frames, or there is no CTC head.
        """
        lengths_u = check_packed(frames_td, frame_lengths_u, self.in_dim)
        if return_ctc and self.ctc_proj is None:
            raise ValueError("the projector has no CTC head; build it with ctc_vocab_size")
        x = self.input_norm(frames_td.to(self.out_proj.weight.dtype))
        ctc_logits = None
        for number, block in enumerate(self.blocks, start=1):
            if isinstance(block.conv, CTCCompression):
                x, lengths_u = block(x, lengths_u, ctc_logits)
            else:
                x, lengths_u = block(x, lengths_u)
            if number == self.ctc_block and (self.compresses_by_ctc or return_ctc):
                ctc_logits = self.ctc_proj(self.ctc_norm(x))
        vectors = self.out_proj(self.norm(self.out_layers(x)))
        return (vectors, ctc_logits) if return_ctc else vectors


def speechmapper_projector(
    in_dim: int = 1024,
    out_dim: int = 4096,
    *,
    block_dims: PerBlock = (1024, 2048),
    kernel_sizes: PerBlock = 6,
    strides: PerBlock = 2,
    num_layers: PerBlock = 6,
    num_heads: PerBlock | None = None,
    ffn_dims: PerBlock = 2048,
    num_out_layers: int = 2,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    input_norm: bool = True,
    ctc_vocab_size: int | None = None,
    ctc_block: int = 1,
    ctc_compress: bool = False,
    output_scale: float = 1.0,
) -> SpeechMapperProjector:
    """Build the projector of SpeechMapper, which is trained on the LLM's embedding table first.

    Each block is a convolution over time, which may shorten, Transformer encoder layers, and a
    linear map to the width of the next block, after the last one to ``out_dim``. Where a value may
    differ between blocks, give one number for all or a list with one for each.

    The two systems:

    - **Version 1**, https://arxiv.org/abs/2601.20417: all defaults. 1024 -> 2048 -> 4096, kernels
      of 6, strides of 2, 6 layers a block, no CTC head: 277.0M parameters, 277M in the paper.
      Feed-forward width and head of the network are not public. With layers as wide as what comes
      into their block and feed-forward networks of 2048 in both (torch's default), one last linear
      map would make 260.3M, two make the paper's figure: hence ``num_out_layers`` of 2.
    - **Version 2**, https://arxiv.org/abs/2607.01960: ``out_dim=2560``, ``strides=[1, 4]``,
      ``ctc_vocab_size`` that of the labels. 1024 -> 2048 -> 2560, the CTC head after block 1 at
      the full rate: 253.4M parameters without the CTC head.

    Not public either, and the usual ones here: heads, kind of norm, positions (rotary and
    sinusoidal in each block, so that there is no longest utterance), activation, dropout.

    The hard part of the task is to carry each token to the front, where the targets have it.
    With ``ctc_compress`` (ours, not the papers') it need not be learnt: behind the CTC head,
    vectors are averaged into as many slots as CTC hears tokens (:class:`CTCCompression`), in the
    place of the next block's convolution. CTC's labels must then be the LLM's tokens
    (``dataset.ctc: tokens``).

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings.
        block_dims: width of each block's convolution and layers; as many blocks as numbers.
        kernel_sizes: vectors that a convolution sees.
        strides: vectors that come into a block for one that goes out; at most the kernel.
        num_layers: Transformer encoder layers.
        num_heads: attention heads; about one for every 64 of the block's width by default.
        ffn_dims: hidden width of the feed-forward networks.
        num_out_layers: linear maps of width ``out_dim`` after the last block, at least 1; GELU
            before all but the last, layer normalisation before the last.
        activation: ``gelu``, ``silu`` or ``swiglu``.
        dropout: on what enters the layers, on residual branches and hidden units.
        input_norm: layer normalisation of each frame.
        ctc_vocab_size: symbols of a CTC head, blank included; None for no head.
        ctc_block: block, counted from 1, after which the CTC head sits, at the rate there.
        ctc_compress: let CTC average the vectors into tokens, instead of the convolution of the
            block behind ``ctc_block``.
        output_scale: multiplies the initial weights of the last linear map: see
            :class:`EncoderProjector`.

    Returns:
        The projector.

    Raises:
        InputError: if a number does not fit, naming the key.

    Example:
        >>> projector = speechmapper_projector(
        ...     160, 192, block_dims=[160, 192], strides=[1, 4], num_layers=3, ffn_dims=768
        ... )
        >>> frames, lengths = torch.randn(12, 160), torch.tensor([7, 5])
        >>> projector(frames, lengths).shape, projector.output_length(lengths)
        (torch.Size([4, 192]), tensor([2, 2]))
    """
    block_dims = [block_dims] if isinstance(block_dims, int) else list(block_dims)
    dims = _per_block("block_dims", block_dims, len(block_dims))
    counts = {"in_dim": in_dim, "out_dim": out_dim, "num_out_layers": num_out_layers}
    counts |= {"ctc_vocab_size": 1 if ctc_vocab_size is None else ctc_vocab_size}
    for name, value in counts.items():
        check_count(name, value)
    if not isinstance(ctc_block, int) or not 1 <= ctc_block <= len(dims):
        raise InputError(f"projector.ctc_block: {ctc_block!r}; give 1 to {len(dims)}")
    kernels = _per_block("kernel_sizes", kernel_sizes, len(dims))
    steps = _per_block("strides", strides, len(dims))
    depths = _per_block("num_layers", num_layers, len(dims))
    hidden = _per_block("ffn_dims", ffn_dims, len(dims))
    heads = [None] * len(dims)
    if num_heads is not None:
        heads = _per_block("num_heads", num_heads, len(dims))
    heads = [head_count(dim, count) for dim, count in zip(dims, heads, strict=True)]
    if ctc_compress and (ctc_vocab_size is None or ctc_block == len(dims)):
        raise InputError(
            "projector.ctc_compress: needs a CTC head and a block behind it; set ctc_vocab_size, "
            f"and ctc_block below {len(dims)}"
        )
    widths = [in_dim, *dims[1:], out_dim]  # between the blocks

    def layer(block: int) -> nn.Module:
        return TransformerEncoderLayer(
            dims[block], heads[block], hidden[block], activation=activation, dropout=dropout
        )

    def conv(block: int) -> nn.Module:
        if ctc_compress and block == ctc_block:  # counted from 0: the one behind the head
            return CTCCompression(steps[block])
        return PackedConv1d(widths[block], dims[block], kernels[block], steps[block])

    blocks = [
        SpeechMapperBlock(
            conv=conv(block),
            embed_dim=dims[block],
            out_dim=widths[block + 1],
            layers=[layer(block) for _ in range(depths[block])],
            rotary_dim=rotary_head_dim(dims[block], heads[block], "change num_heads or block_dims"),
            dropout=dropout,
        )
        for block in range(len(dims))
    ]
    return SpeechMapperProjector(
        in_dim=in_dim,
        out_dim=out_dim,
        blocks=blocks,
        num_out_layers=num_out_layers,
        input_norm=input_norm,
        ctc_vocab_size=ctc_vocab_size,
        ctc_block=ctc_block,
        output_scale=output_scale,
    )


def _per_block(name: str, value: PerBlock, num_blocks: int) -> list[int]:
    """One number for each block."""
    values = [value] * num_blocks if isinstance(value, int) else list(value)
    if not values or len(values) != num_blocks:
        raise InputError(
            f"projector.{name}: {values}; give one number, or one for each of the "
            f"{num_blocks} blocks of block_dims"
        )
    for number in values:
        check_count(name, number)
    return values
