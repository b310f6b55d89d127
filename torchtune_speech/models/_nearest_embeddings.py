"""A projector whose vectors are rounded to the LLM's embeddings."""

import torch
from torch import Tensor, nn

from torchtune_speech.modules import nearest_tokens


class NearestEmbeddings(nn.Module):
    """Gives, in the place of each speech vector, the embedding of the token nearest to it.

    For a projector that was taught to say the LLM's tokens (SpeechMapper). What the LLM then reads
    is a transcript: of mistakes, those of hearing are left, and what is no word is lost. It has no
    gradient, so it is for decoding.

    Args:
        projector: the projector.
        embedding: the LLM's embedding table, not split over processes.
    """

    def __init__(self, projector: nn.Module, embedding: nn.Embedding) -> None:
        super().__init__()
        self.projector, self.embedding = projector, embedding

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
        embeddings_nd = self.embedding(nearest_tokens(vectors_nd, self.embedding.weight))
        return (embeddings_nd, *logits) if return_ctc else embeddings_nd
