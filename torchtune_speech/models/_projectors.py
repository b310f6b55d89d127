"""Projectors: from packed encoder frames to vectors in the embedding space of an LLM."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchtune_speech.errors import InputError
from torchtune_speech.modules import (
    Activation,
    ConformerEncoderLayer,
    FramewiseLayer,
    Packing,
    TransformerEncoderLayer,
    rotary_angles,
    stack_packed,
    stacked_length,
)

Positions = Literal["rotary", "learned"]


class EncoderProjector(nn.Module):
    """Encoder frames to speech vectors: norm, stack, project in, layers, norm, project out.

    Frames come packed, and go packed: utterances one after another in one tensor, together with
    their lengths. No utterance sees another, so that an utterance's vectors do not depend on its
    batch. Everything is computed in ``forward``, each layer is called once in it, and an empty
    batch gives an empty output that is connected to the parameters: with FSDP every rank runs the
    same collectives whatever its utterances are. ``layers`` is a list that may be sharded,
    compiled or checkpointed layer by layer.

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings.
        embed_dim: width of the layers.
        layers: called as ``layer(x_td, packing, rotary)``.
        norm: what stands between the layers and the last linear map; layer normalisation by
            default.
        stack: consecutive frames joined into one vector before the layers.
        out_stack: consecutive vectors joined into one after the layers and the CTC head: CTC
            wants more frames than symbols, an LLM wants few.
        input_norm: layer normalisation of each frame. It takes a frame's loudness away, which may
            matter to filter banks and does not to encoder frames.
        rotary_dim: width of an attention head for rotary positions.
        max_positions: number of learned positions, added before the layers.
        dropout: on what enters the layers.
        ctc_vocab_size: symbols of a CTC head, blank included; None for no head.
        ctc_layer: layer, counted from 1, after which the CTC head sits; the last by default, 0 is
            before the first.
        output_scale: multiplies the initial weights of the last linear map. At 1 the elements of
            a speech vector start with a standard deviation near 0.6 (after layer normalisation);
            the token embeddings of an LLM have about 0.01 to 0.02 where it is large. The nearer
            the two, the more a speech vector weighs like a word in the residual stream.

    Raises:
        InputError: if ``ctc_layer`` is not one of the layers, or a width or stack is below 1.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        embed_dim: int,
        layers: Sequence[nn.Module],
        norm: nn.Module | None = None,
        stack: int = 1,
        out_stack: int = 1,
        input_norm: bool = True,
        rotary_dim: int | None = None,
        max_positions: int | None = None,
        dropout: float = 0.0,
        ctc_vocab_size: int | None = None,
        ctc_layer: int | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        counts = {"in_dim": in_dim, "out_dim": out_dim, "embed_dim": embed_dim}
        counts |= {"stack": stack, "out_stack": out_stack}
        given = {"ctc_vocab_size": ctc_vocab_size, "max_positions": max_positions}
        counts |= {name: value for name, value in given.items() if value is not None}
        for name, value in counts.items():
            check_count(name, value)
        if ctc_layer is not None and not 0 <= ctc_layer <= len(layers):
            raise InputError(f"projector.ctc_layer: {ctc_layer}; give 0 to {len(layers)}, or null")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.stack, self.out_stack = stack, out_stack
        self.rotary_dim, self.output_scale = rotary_dim, output_scale
        self.ctc_layer = len(layers) if ctc_layer is None else ctc_layer
        self.input_norm = nn.LayerNorm(in_dim) if input_norm else nn.Identity()
        self.in_proj = nn.Linear(stack * in_dim, embed_dim)
        learned = max_positions is not None
        self.positions = nn.Embedding(max_positions, embed_dim) if learned else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = norm or nn.LayerNorm(embed_dim)
        self.out_proj = nn.Linear(out_stack * embed_dim, out_dim)
        self.ctc_norm = self.ctc_proj = None
        if ctc_vocab_size is not None:
            self.ctc_norm = nn.LayerNorm(embed_dim)
            self.ctc_proj = nn.Linear(embed_dim, ctc_vocab_size)
        self._scale_parameters()

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
        if self.positions is not None:
            self.positions.weight.mul_(0.02)

    def output_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of speech vectors of an utterance: the one source for placeholders.

        Args:
            frames: encoder frames of one utterance, or of many, any shape.

        Returns:
            As many speech vectors; 0 for 0 frames, at least 1 for any other.
        """
        return stacked_length(self.ctc_length(frames), self.out_stack)

    def ctc_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of CTC logit vectors of an utterance; differs by ``out_stack`` only."""
        return stacked_length(frames, self.stack)

    def forward(
        self, frames_td: Tensor, frame_lengths_u: Tensor, return_ctc: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project a batch.

        Args:
            frames_td: frames of all utterances, packed, ``[t, in_dim]``; cast to the dtype of the
                parameters.
            frame_lengths_u: frames of each utterance, ``[u]``. Keep it on the CPU: from a GPU it
                has to be copied back first.
            return_ctc: return the logits of the CTC head as well.

        Returns:
            Speech vectors, packed, ``[n, out_dim]`` where n is the sum of
            ``output_length(frame_lengths_u)``; with ``return_ctc`` a pair of them and CTC logits
            ``[sum(ctc_length(frame_lengths_u)), ctc_vocab_size]``.

        Raises:
            InputError: if the frames have another width, or an utterance is longer than learned
                positions reach.
            ValueError: if the lengths do not add up to the frames, or there is no CTC head.
        """
        lengths_u = check_packed(frames_td, frame_lengths_u, self.in_dim)
        if return_ctc and self.ctc_proj is None:
            raise ValueError("the projector has no CTC head; build it with ctc_vocab_size")
        x = self.input_norm(frames_td.to(self.out_proj.weight.dtype))
        x = self.in_proj(stack_packed(x, lengths_u, self.stack))
        lengths_u = self.ctc_length(lengths_u)
        packing = Packing.from_lengths(lengths_u, x.device)
        if self.positions is not None:
            x = x + self._learned_positions(packing)
        rotary = None
        if self.rotary_dim is not None:
            rotary = rotary_angles(packing.positions_t, self.rotary_dim)
        x = ctc_input = self.dropout(x)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, packing, rotary)
            if number == self.ctc_layer:
                ctc_input = x
        vectors = self.out_proj(stack_packed(self.norm(x), lengths_u, self.out_stack))
        return (vectors, self.ctc_proj(self.ctc_norm(ctc_input))) if return_ctc else vectors

    def _learned_positions(self, packing: Packing) -> Tensor:
        longest, limit = max(packing.lengths_u.tolist(), default=0), self.positions.num_embeddings
        if longest > limit:
            raise InputError(
                f"projector: an utterance has {longest} vectors, learned positions end at {limit}; "
                "raise max_positions or use positions=rotary"
            )
        return self.positions(packing.positions_t)


def transformer_projector(
    in_dim: int,
    out_dim: int,
    *,
    num_layers: int = 4,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    ffn_dim: int | None = None,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    positions: Positions = "rotary",
    max_positions: int = 2048,
    stack: int = 1,
    out_stack: int = 1,
    input_norm: bool = True,
    ctc_vocab_size: int | None = None,
    ctc_layer: int | None = None,
    output_scale: float = 1.0,
) -> EncoderProjector:
    """Build a pre-norm, bidirectional Transformer encoder between speech encoder and LLM.

    The system of https://arxiv.org/abs/2506.01808 has 4 layers over 1024-dim frames and 4096-dim
    vectors out. Its heads, feed-forward width, kind of norm, positions and dropout are not
    public: the defaults here are the usual ones.

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings.
        num_layers: number of layers.
        embed_dim: width of the layers; ``in_dim`` by default.
        num_heads: attention heads; about one for every 64 of ``embed_dim`` by default.
        ffn_dim: hidden width of the feed-forward networks; 4 times ``embed_dim`` by default.
        activation: ``gelu``, ``silu`` or ``swiglu``.
        dropout: on what enters the layers, on residual branches and hidden units.
        positions: ``rotary`` works at any length, ``learned`` up to ``max_positions``.
        max_positions: longest utterance, after stacking, for learned positions.
        stack: see :class:`EncoderProjector`.
        out_stack: see :class:`EncoderProjector`.
        input_norm: see :class:`EncoderProjector`.
        ctc_vocab_size: see :class:`EncoderProjector`.
        ctc_layer: see :class:`EncoderProjector`.
        output_scale: see :class:`EncoderProjector`.

    Returns:
        The projector.

    Example:
        >>> projector = transformer_projector(160, 192, stack=2)
        >>> frames, lengths = torch.randn(12, 160), torch.tensor([7, 5])
        >>> projector(frames, lengths).shape, projector.output_length(lengths)
        (torch.Size([7, 192]), tensor([4, 3]))
    """
    embed_dim = embed_dim or in_dim
    num_heads = head_count(embed_dim, num_heads)

    def layer() -> nn.Module:
        return TransformerEncoderLayer(
            embed_dim, num_heads, ffn_dim or 4 * embed_dim, activation=activation, dropout=dropout
        )

    return EncoderProjector(
        in_dim=in_dim,
        out_dim=out_dim,
        embed_dim=embed_dim,
        layers=[layer() for _ in range(num_layers)],
        stack=stack,
        out_stack=out_stack,
        input_norm=input_norm,
        dropout=dropout,
        ctc_vocab_size=ctc_vocab_size,
        ctc_layer=ctc_layer,
        output_scale=output_scale,
        **_position_arguments(positions, max_positions, embed_dim, num_heads),
    )


def conformer_projector(
    in_dim: int,
    out_dim: int,
    *,
    num_layers: int = 4,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    ffn_dim: int | None = None,
    kernel_size: int = 31,
    dropout: float = 0.0,
    positions: Positions = "rotary",
    max_positions: int = 2048,
    stack: int = 1,
    out_stack: int = 1,
    input_norm: bool = True,
    ctc_vocab_size: int | None = None,
    ctc_layer: int | None = None,
    output_scale: float = 1.0,
) -> EncoderProjector:
    """Build a Conformer encoder between speech encoder and LLM.

    Convolutions over neighbouring frames help most where the frames are raw (filter banks); after
    a speech encoder https://arxiv.org/abs/2506.01808 found the plain Transformer better. Widths
    are not public: the defaults here are the usual ones.

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings.
        num_layers: number of layers.
        embed_dim: width of the layers; ``in_dim`` by default.
        num_heads: attention heads; about one for every 64 of ``embed_dim`` by default.
        ffn_dim: hidden width of the two feed-forward networks of each layer; 4 times
            ``embed_dim`` by default.
        kernel_size: frames that a convolution sees; odd.
        dropout: on what enters the layers, on residual branches and hidden units.
        positions: ``rotary`` works at any length, ``learned`` up to ``max_positions``.
        max_positions: longest utterance, after stacking, for learned positions.
        stack: see :class:`EncoderProjector`.
        out_stack: see :class:`EncoderProjector`.
        input_norm: see :class:`EncoderProjector`.
        ctc_vocab_size: see :class:`EncoderProjector`.
        ctc_layer: see :class:`EncoderProjector`.
        output_scale: see :class:`EncoderProjector`.

    Returns:
        The projector.
    """
    embed_dim = embed_dim or in_dim
    num_heads = head_count(embed_dim, num_heads)

    def layer() -> nn.Module:
        return ConformerEncoderLayer(
            embed_dim, num_heads, ffn_dim or 4 * embed_dim, kernel_size=kernel_size, dropout=dropout
        )

    return EncoderProjector(
        in_dim=in_dim,
        out_dim=out_dim,
        embed_dim=embed_dim,
        layers=[layer() for _ in range(num_layers)],
        stack=stack,
        out_stack=out_stack,
        input_norm=input_norm,
        dropout=dropout,
        ctc_vocab_size=ctc_vocab_size,
        ctc_layer=ctc_layer,
        output_scale=output_scale,
        **_position_arguments(positions, max_positions, embed_dim, num_heads),
    )


def mlp_projector(
    in_dim: int,
    out_dim: int,
    *,
    hidden_dim: int | None = None,
    num_layers: int = 2,
    dropout: float = 0.0,
    stack: int = 1,
    out_stack: int = 1,
    input_norm: bool = True,
    ctc_vocab_size: int | None = None,
    output_scale: float = 1.0,
) -> EncoderProjector:
    """Build a multi-layer perceptron between speech encoder and LLM: each vector by itself.

    Args:
        in_dim: width of the encoder frames.
        out_dim: width of the LLM's embeddings.
        hidden_dim: width of the hidden layers; ``out_dim`` by default.
        num_layers: number of linear maps, at least 2, with GELU between them.
        dropout: on the first hidden layer.
        stack: see :class:`EncoderProjector`.
        out_stack: see :class:`EncoderProjector`.
        input_norm: see :class:`EncoderProjector`.
        ctc_vocab_size: see :class:`EncoderProjector`.
        output_scale: see :class:`EncoderProjector`.

    Returns:
        The projector.

    Raises:
        InputError: if there are fewer than 2 layers.
    """
    if num_layers < 2:
        raise InputError(f"projector.num_layers: {num_layers}; an MLP has at least 2 layers")
    hidden_dim = hidden_dim or out_dim
    return EncoderProjector(
        in_dim=in_dim,
        out_dim=out_dim,
        embed_dim=hidden_dim,
        layers=[FramewiseLayer(hidden_dim) for _ in range(num_layers - 2)],
        norm=nn.GELU(),
        stack=stack,
        out_stack=out_stack,
        input_norm=input_norm,
        dropout=dropout,
        ctc_vocab_size=ctc_vocab_size,
        output_scale=output_scale,
    )


def check_packed(frames_td: Tensor, frame_lengths_u: Tensor, in_dim: int) -> Tensor:
    """Refuse frames that do not fit the projector or their lengths.

    Args:
        frames_td: frames of all utterances, packed.
        frame_lengths_u: frames of each utterance, ``[u]``.
        in_dim: width that the projector reads.

    Returns:
        The lengths as int64 on the CPU.

    Raises:
        InputError: if the frames have another width.
        ValueError: if the lengths do not add up to the frames.
    """
    if frames_td.shape[-1] != in_dim:
        raise InputError(
            f"projector: frames are {frames_td.shape[-1]} wide, in_dim is {in_dim}; "
            "use the feature store that fits the projector, or set in_dim"
        )
    lengths_u = frame_lengths_u.to("cpu", torch.long)
    if int(lengths_u.sum()) != len(frames_td):
        raise ValueError(f"{len(frames_td)} frames, but lengths of {int(lengths_u.sum())}")
    return lengths_u


def check_count(name: str, value: int) -> None:
    """Refuse a size of a projector that is none.

    Args:
        name: argument of the builder.
        value: its value.

    Raises:
        InputError: if it is no whole number of 1 or more.
    """
    if not isinstance(value, int) or value < 1:
        raise InputError(f"projector.{name}: {value!r}; give a whole number of 1 or more")


def head_count(embed_dim: int, num_heads: int | None) -> int:
    """As given; else the most heads of an even width that divide it and are at least 64 wide.

    Args:
        embed_dim: width of the layers.
        num_heads: the heads that are wanted, or None.

    Returns:
        Number of attention heads.

    Raises:
        InputError: if the heads do not divide the width.
    """
    check_count("embed_dim", embed_dim)
    if num_heads is not None:
        check_count("num_heads", num_heads)
        if embed_dim % num_heads:
            raise InputError(
                f"projector.num_heads: {num_heads} does not divide embed_dim {embed_dim}; "
                "change one of the two"
            )
        return num_heads
    fitting = [h for h in range(max(1, embed_dim // 64), 0, -1) if embed_dim % h == 0]
    # Of an even width, which rotary positions need, where there is one.
    return next((h for h in fitting if embed_dim // h % 2 == 0), fitting[0])


def rotary_head_dim(embed_dim: int, num_heads: int, cure: str) -> int:
    """Width of an attention head, for rotary positions.

    Args:
        embed_dim: width of the layers.
        num_heads: attention heads, which divide it.
        cure: what to do about an odd width.

    Returns:
        The width.

    Raises:
        InputError: if it is odd.
    """
    head_dim = embed_dim // num_heads
    if head_dim % 2:
        raise InputError(
            f"projector.num_heads: {num_heads} heads of embed_dim {embed_dim} are {head_dim} wide, "
            f"rotary positions need an even width; {cure}"
        )
    return head_dim


def _position_arguments(
    positions: Positions, max_positions: int, embed_dim: int, num_heads: int
) -> dict[str, int]:
    if positions == "learned":
        return {"max_positions": max_positions}
    if positions != "rotary":
        raise InputError(f"projector.positions: {positions!r}; use rotary or learned")
    cure = "change it, or set positions=learned"
    return {"rotary_dim": rotary_head_dim(embed_dim, num_heads, cure)}
