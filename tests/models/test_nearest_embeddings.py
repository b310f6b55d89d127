"""Speech vectors rounded to the LLM's embeddings."""

import torch
from torch import nn

from torchtune_speech.models import NearestEmbeddings


class Said(nn.Module):
    """Says given vectors, and as CTC logits the lengths."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = vectors

    def output_length(self, frames):
        return frames // 2

    def forward(self, frames_td, frame_lengths_u, return_ctc=False):
        return (self.vectors, frame_lengths_u) if return_ctc else self.vectors


def test_each_vector_becomes_the_embedding_of_its_direction():
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 16)
    tokens = torch.tensor([7, 0, 49, 7])
    near = embedding.weight[tokens] * torch.tensor([[0.1], [1.0], [5.0], [2.0]])
    said = Said(near + 0.01 * torch.randn(4, 16))
    rounded = NearestEmbeddings(said, embedding, 3, torch.ones(50).bool())
    lengths = torch.tensor([3, 1])
    assert torch.equal(rounded(torch.zeros(4, 2), lengths), embedding.weight[tokens])
    vectors, logits = rounded(torch.zeros(4, 2), lengths, return_ctc=True)
    assert torch.equal(vectors, embedding.weight[tokens]) and logits is lengths
    assert rounded.output_length(8) == 4


def test_what_is_no_text_becomes_the_pad():
    torch.manual_seed(0)
    embedding, is_text = nn.Embedding(50, 16), torch.arange(50) < 40
    said = Said(embedding.weight[[7, 45, 44, 39]] * 2)
    rounded = NearestEmbeddings(said, embedding, 44, is_text)
    vectors = rounded(torch.zeros(4, 2), torch.tensor([4]))
    assert torch.equal(vectors, embedding.weight[[7, 44, 44, 39]])
