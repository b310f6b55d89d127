"""A projector whose vectors are rounded to the LLM's embeddings."""

import torch
from torch import Tensor, nn

from torchtune_speech.modules import nearest_tokens, read_as_pads


class NearestEmbeddings(nn.Module):
    """Gives, in the place of each speech vector, the embedding of the token nearest to it.

    For a projector that was taught to say the LLM's tokens (SpeechMapper). What the LLM then reads
    is a transcript: of mistakes, those of hearing are left, and what is no word is lost. A vector
    that is read as no text, see :func:`read_as_pads`, becomes the pad's embedding. It has no
    gradient, so it is for decoding.

    Args:
        projector: the projector.
        embedding: the LLM's embedding table, not split over processes.
        pad_token: row of the table that stands behind each transcript.
        is_text_v: rows that are tokens of text, boolean, ``[v]``.
    """

    def __init__(
        self, projector: nn.Module, embedding: nn.Embedding, pad_token: int, is_text_v: Tensor
    ) -> None:
        super().__init__()
        self.projector, self.embedding = projector, embedding
        self.pad_token, self.is_text_v = pad_token, is_text_v

    def output_length(self, frames: int | Tensor) -> int | Tensor:
        """Number of speech vectors of an utterance: the projector's."""
        return self.projector.output_length(frames)

    @torch.no_grad()
    def forward(
        self, frames_td: Tensor, frame_lengths_u: Tensor, return_ctc: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project and round; see :meth:`SpeechMapperProjector.forward` for arguments and result.

        A token is nearest if its embedding has the largest cosine with the vector.
        """
        output = self.projector(frames_td, frame_lengths_u, return_ctc=return_ctc)
        vectors_nd, *logits = output if return_ctc else (output,)
        table_vd = self.embedding.weight
        nearest_n = nearest_tokens(vectors_nd, table_vd)
        is_pad_n = read_as_pads(nearest_n, table_vd, self.pad_token, self.is_text_v)
        embeddings_nd = self.embedding(nearest_n.masked_fill(is_pad_n, self.pad_token))
        return (embeddings_nd, *logits) if return_ctc else embeddings_nd
