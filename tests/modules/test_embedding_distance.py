"""The distance of speech vectors to the embeddings of what CTC hears."""

import torch

from torchtune_speech.modules import embedding_distance_sum

TABLE = torch.tensor([[1.0, 0.0], [0.0, 3.0]])


def sure(*labels):
    """Logits that leave no doubt; label 0 is the blank, 1 + i the token i."""
    return 100.0 * torch.eye(3)[list(labels)]


def test_embeddings_of_what_is_heard_are_at_distance_zero():
    vectors = torch.stack([TABLE[1], torch.zeros(2), TABLE[0]])
    assert embedding_distance_sum(vectors, sure(2, 0, 1), TABLE).item() < 1e-6


def test_the_distance_is_relative_to_the_size_of_embeddings():
    # Mean squared norm of the table: (1 + 9) / 2; squared distances 4 and 1.
    vectors = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    expected = (4.0 + 1.0) / 5.0
    assert abs(embedding_distance_sum(vectors, sure(1, 0), TABLE).item() - expected) < 1e-5
    scaled = embedding_distance_sum(10 * vectors, sure(1, 0), 10 * TABLE)
    assert abs(scaled.item() - expected) < 1e-5


def test_doubt_is_weighed():
    logits = torch.tensor([[0.0, 0.0, -100.0]])  # blank or token 0, even odds
    vectors = torch.tensor([[0.5, 0.0]])
    assert embedding_distance_sum(vectors, logits, TABLE).item() < 1e-6


def test_a_token_may_stand_for_the_blank():
    logits = torch.tensor([[0.0, 0.0, -100.0]])  # blank or token 0, even odds
    vectors = torch.tensor([[0.5, 1.5]])
    assert embedding_distance_sum(vectors, logits, TABLE, blank_token=1).item() < 1e-6
    assert embedding_distance_sum(TABLE[1:], sure(0), TABLE, blank_token=1).item() < 1e-6


def test_only_the_vectors_are_taught():
    vectors = torch.randn(3, 2, requires_grad=True)
    logits = torch.randn(3, 3, requires_grad=True)
    table = TABLE.clone().requires_grad_()
    embedding_distance_sum(vectors, logits, table).backward()
    assert vectors.grad.abs().sum() > 0
    assert logits.grad is None
    assert table.grad is None
