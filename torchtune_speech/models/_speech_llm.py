"""A decoder that reads speech vectors between its token embeddings."""

from functools import partial

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import TransformerDecoder

from torchtune_speech.models._decoder_parts import replace_parts
from torchtune_speech.models._decoding_cache import DecodingCache, cached_layer, few_rows_linear
from torchtune_speech.modules import (
    Packing,
    embedding_distance_sum,
    fast_autocast,
    linear_cross_entropy_sum,
    squared_error_sum,
)


def splice_speech(embeddings_bsd: Tensor, vectors_nd: Tensor, speech_index_n: Tensor) -> Tensor:
    """Put speech vectors where the placeholders are.

    Args:
        embeddings_bsd: token embeddings, ``[b, s, d]``.
        vectors_nd: speech vectors of all utterances of the batch, concatenated, ``[n, d]``.
        speech_index_n: positions of the placeholders in the flattened ``[b * s]`` batch, in
            order, ``[n]``.

    Returns:
        A new tensor ``[b, s, d]`` in the dtype of the embeddings.

    Raises:
        ValueError: if there are not as many vectors as placeholders; a silent mismatch would
            hand each utterance the speech of another.
    """
    if vectors_nd.shape[0] != speech_index_n.shape[0]:
        raise ValueError(
            f"{vectors_nd.shape[0]} speech vectors for {speech_index_n.shape[0]} placeholders: "
            "the plan's lengths and projector.output_length disagree"
        )
    flat = embeddings_bsd.flatten(0, 1)
    return flat.index_copy(0, speech_index_n, vectors_nd.to(flat.dtype)).view_as(embeddings_bsd)


class SpeechLLM(nn.Module):
    """A torchtune decoder with a projector for speech.

    The forward pass walks the decoder's public parts (embeddings, layers, norm, output) instead
    of calling it, so that speech vectors can be spliced in and only the selected positions reach
    the output layer. Nothing in the decoder is patched; some of its parts are replaced by ones that
    give the same for less (:func:`replace_parts`).

    Args:
        decoder: torchtune decoder, with or without LoRA.
        projector: maps encoder frames to speech vectors of the decoder's width
            (``forward(frames_td, frame_lengths_u) -> vectors_nd``); None for a text-only model.

    Example:
        >>> model = speech_llama3_1_8b(transformer_projector(in_dim=1024, out_dim=4096))
        >>> logits = model(tokens, frames=frames, frame_lengths=lengths, speech_index=index)
    """

    def __init__(self, decoder: TransformerDecoder, projector: nn.Module | None = None) -> None:
        super().__init__()
        replace_parts(decoder)
        self.decoder = decoder
        self.projector = projector

    def forward(
        self,
        tokens: Tensor,
        *,
        frames: Tensor | None = None,
        frame_lengths: Tensor | None = None,
        speech_index: Tensor | None = None,
        keep_index: Tensor | None = None,
        mask: Tensor | BlockMask | Packing | None = None,
        input_pos: Tensor | None = None,
        select: Tensor | None = None,
        labels: Tensor | None = None,
        target_tokens: Tensor | None = None,
        return_ctc: bool = False,
        only_ctc: bool = False,
        with_distance: bool = False,
        blank_token: int | None = None,
        cache: DecodingCache | None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:
        """Logits, at all positions or at the selected ones, or the loss of these.

        Args:
            tokens: token ids with any id at the placeholders, ``[b, s]``.
            frames: encoder frames of all utterances, concatenated, ``[t, d_in]``. None when the
                batch holds text alone. When a batch of a speech step happens to hold none, give
                empty tensors: the projector then runs on a dummy frame, so that every process
                takes part in the same collectives.
            frame_lengths: frames of each utterance, ``[u]``.
            speech_index: flat positions of the placeholders, ``[n]``.
            keep_index: which of the projector's vectors, concatenated, go there, ``[n]``. None for
                all. CTC sees all of them either way.
            mask: what :func:`block_causal_mask` gives, or a mask as torchtune's decoder takes it.
            input_pos: position of each token in its sample, ``[b, s]``.
            select: flat positions whose logits are wanted, ``[m]``; None for all.
            labels: token to predict at each of the selected positions, ``[m]``: return the summed
                cross-entropy instead of logits, without holding these
                (:func:`linear_cross_entropy_sum`).
            target_tokens: token whose embedding each of the projector's vectors is to be, kept or
                not: also return the summed squared error between the two
                (:func:`squared_error_sum`).
            return_ctc: also return the projector's CTC logits, ``[n, labels]``.
            only_ctc: run the projector alone, without the decoder.
            with_distance: with ``only_ctc``, also return the summed distance of the speech vectors
                to the embeddings of what CTC hears (:func:`embedding_distance_sum`); the CTC
                labels must be the LLM's tokens, one logit vector for each speech vector.
            blank_token: what stands for CTC's blank in that distance.
            cache: keys and values of a batch that is being decoded. The first pass takes all its
                prompts, concatenated, ``[1, t]``; every later one a token of each row, ``[b, 1]``.
                The cache then says what sees what: no ``mask``, no ``input_pos``; the logits are
                ``[m, vocab]`` or ``[b, vocab]``.

        Returns:
            Logits ``[m, vocab]``, or ``[b, s, vocab]`` without ``select``; with ``labels`` the
            loss, a float32 scalar; with ``return_ctc`` a pair of one of these and CTC logits; with
            ``target_tokens`` one of these, CTC logits (None when not asked for) and that error;
            with ``only_ctc`` a pair of CTC logits and that distance (None when not asked for).
        """
        if only_ctc:
            return self._only_ctc(frames, frame_lengths, with_distance, blank_token)
        h = self.decoder.tok_embeddings(tokens)
        vectors = ctc_logits = None
        if frames is not None:
            vectors, ctc_logits = self._project(frames, frame_lengths, return_ctc)
            h = self._add_speech(h, vectors, frame_lengths, speech_index, keep_index)
        if cache is None:
            *layers, last = self.decoder.layers
            for layer in layers:
                h = layer(h, mask=mask, input_pos=input_pos)
            h = last(h, mask=mask, input_pos=input_pos, select=select)
        else:
            h = self._decode(h, cache, select)
        h, output = self.decoder.norm(h), self.decoder.output
        if labels is not None:
            # Llama 3.2's output layer is no module but a reference to the embedding table.
            table = output if isinstance(output, nn.Linear) else output.tied_module
            result = linear_cross_entropy_sum(h, table.weight, labels)
        else:
            result = output(h) if cache is None else few_rows_linear(output, h)
        if target_tokens is not None:
            return result, ctc_logits, self._target_error(vectors, frame_lengths, target_tokens)
        return (result, ctc_logits) if return_ctc else result

    def _add_speech(
        self,
        h: Tensor,
        vectors: Tensor,
        frame_lengths: Tensor,
        speech_index: Tensor,
        keep_index: Tensor | None,
    ) -> Tensor:
        if frame_lengths.numel() == 0:  # only the dummy frame was projected
            return h + 0.0 * vectors.sum().to(h.dtype)
        if keep_index is not None:
            vectors = vectors.index_select(0, keep_index)
        return splice_speech(h, vectors, speech_index)

    def _target_error(
        self, vectors: Tensor, frame_lengths: Tensor, target_tokens: Tensor
    ) -> Tensor:
        if frame_lengths.numel() == 0:  # only the dummy frame was projected
            return 0.0 * vectors.float().sum()
        return squared_error_sum(vectors, self.decoder.tok_embeddings(target_tokens))

    def _decode(self, h: Tensor, cache: DecodingCache, select: Tensor | None) -> Tensor:
        """States of all tokens of a pass, or of the selected ones, one after the other."""
        positions, h_td = cache.begin(), h.flatten(0, 1)
        last = len(self.decoder.layers) - 1
        for index, layer in enumerate(self.decoder.layers):
            keep = select if index == last else None
            h_td = cached_layer(layer, h_td, positions, partial(cache.attend, index), keep)
        cache.end()
        return h_td

    def _only_ctc(
        self,
        frames: Tensor,
        frame_lengths: Tensor,
        with_distance: bool,
        blank_token: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        vectors, ctc_logits = self._project(frames, frame_lengths, return_ctc=True)
        if not with_distance:
            return ctc_logits, None
        if frame_lengths.numel() == 0:  # only the dummy frame was projected
            return ctc_logits, 0.0 * vectors.float().sum()
        table = self.decoder.tok_embeddings.weight
        return ctc_logits, embedding_distance_sum(
            vectors, ctc_logits, table, blank_token=blank_token
        )

    def _project(
        self, frames: Tensor, frame_lengths: Tensor, return_ctc: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.projector is None:
            raise ValueError("this model has no projector and cannot take speech")
        if frame_lengths.numel() == 0:
            frames = frames.new_zeros(1, frames.shape[-1])
            frame_lengths = frame_lengths.new_ones(1)
        with fast_autocast(frames.device.type):
            output = self.projector(frames, frame_lengths, return_ctc=return_ctc)
        return output if return_ctc else (output, None)
