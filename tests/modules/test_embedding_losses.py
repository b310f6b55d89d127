"""Losses between speech vectors and the LLM's embedding table, beside their plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from torchtune_speech.modules import (
    absolute_error_sum,
    cosine_distance_sum,
    nearest_tokens,
    squared_error_sum,
    unit_rows,
    vocabulary_contrast_sum,
    word_and_pad_squared_error,
)

VOCAB, DIM = 50, 12


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def inputs(count=23, dtype=torch.float32):
    vectors = (2 * torch.randn(count, DIM)).to(dtype).requires_grad_()
    weights = torch.rand(count)
    weights[::5] = 0
    return vectors, torch.randn(count, DIM).to(dtype), weights


def assert_same(found, expected, vectors, reference):
    """Value and gradient of a loss of ours equal those of a plain formula in float64."""
    assert found.dtype == torch.float32 and found.shape == ()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(vectors.grad.double(), reference.grad, atol=1e-5, rtol=1e-5)


def double(vectors):
    return vectors.detach().double().requires_grad_()


@pytest.mark.parametrize("part", [0, 1], ids=["words", "late pads"])
def test_squared_error_of_words_and_pads(part):
    vectors, targets, _ = inputs()
    late = torch.rand(len(vectors)) < 0.5
    reference = double(vectors)
    chosen = late if part else ~late
    expected = sum(
        F.mse_loss(vector, target)
        for vector, target in zip(reference[chosen], targets[chosen].double(), strict=True)
    )
    found = word_and_pad_squared_error(vectors, targets, late)[part]
    assert_same(found, expected, vectors, reference)


def test_squared_error_of_all_positions():
    vectors, targets = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5).bfloat16()
    found = squared_error_sum(vectors, targets)
    expected = sum(F.mse_loss(v, t.float()) for v, t in zip(vectors, targets, strict=True))
    assert torch.allclose(found, expected) and found.dtype == torch.float32
    parts = word_and_pad_squared_error(vectors, targets, torch.arange(7) > 3)
    assert torch.allclose(found, sum(parts))
    empty = squared_error_sum(vectors[:0], targets[:0])
    assert empty == 0 and empty.requires_grad


def test_absolute_error():
    vectors, targets, weights = inputs()
    reference = double(vectors)
    expected = sum(
        w * F.l1_loss(vector, target)
        for w, vector, target in zip(weights, reference, targets.double(), strict=True)
    )
    found = absolute_error_sum(vectors, targets, weights)
    assert_same(found, expected, vectors, reference)


def test_cosine_distance():
    vectors, targets, weights = inputs()
    reference = double(vectors)
    cosines = F.cosine_similarity(reference, targets.double())
    expected = (weights * (1 - cosines)).sum()
    found = cosine_distance_sum(vectors, targets, weights)
    assert_same(found, expected, vectors, reference)


@pytest.mark.parametrize("zero", ["vector", "target"])
def test_a_zero_vector_has_cosine_zero_and_a_finite_gradient(zero):
    vectors, targets, _ = inputs(2)
    with torch.no_grad():
        (vectors if zero == "vector" else targets)[0] = 0
    loss = cosine_distance_sum(vectors, targets, torch.tensor([1.0, 0.0]))
    assert loss.item() == 1
    loss.backward()
    assert vectors.grad.isfinite().all() and vectors.grad.abs().max() < 10
    if zero == "vector":  # the way to the target leads down
        assert F.cosine_similarity(-vectors.grad[0], targets[0], dim=0) > 0.999


def plain_contrast(vectors, table, labels, weights, temperature):
    cosines = F.cosine_similarity(vectors[:, None], table[None], dim=-1)
    losses = F.cross_entropy(cosines / temperature, labels, reduction="none")
    return (weights * losses).sum()


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 23])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrast_with_the_vocabulary(chunk_size, temperature):
    vectors, _, weights = inputs()
    table, labels = 0.02 * torch.randn(VOCAB, DIM), torch.randint(VOCAB, (len(vectors),))
    reference = double(vectors)
    expected = plain_contrast(reference, table.double(), labels, weights, temperature)
    found = vocabulary_contrast_sum(
        vectors, unit_rows(table), labels, weights, temperature, chunk_size
    )
    assert_same(found, expected, vectors, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_contrast_with_a_table_in_half_precision(dtype, autocast):
    vectors, _, weights = inputs()
    table, labels = (0.02 * torch.randn(VOCAB, DIM)).to(dtype), torch.randint(VOCAB, (23,))
    reference = double(vectors)
    expected = plain_contrast(reference, table.double(), labels, weights, 0.05)
    unit = unit_rows(table)
    assert unit.dtype == dtype
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = vocabulary_contrast_sum(vectors, unit, labels, weights)
    assert found.dtype == vectors.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.01)
    found.backward()
    expected.backward()
    error = (vectors.grad - reference.grad).norm() / reference.grad.norm()
    assert error < 0.02


def test_contrast_of_vectors_in_half_precision_has_their_dtype_in_the_gradient():
    vectors, _, weights = inputs(dtype=torch.float16)
    labels = torch.randint(VOCAB, (23,))
    loss = vocabulary_contrast_sum(
        vectors, unit_rows(torch.randn(VOCAB, DIM).half()), labels, weights
    )
    loss.backward()
    assert vectors.grad.dtype == torch.float16 and vectors.grad.isfinite().all()


def test_contrast_of_a_zero_vector_is_that_of_equal_odds():
    vectors = torch.zeros(1, DIM, requires_grad=True)
    table = unit_rows(torch.randn(VOCAB, DIM))
    loss = vocabulary_contrast_sum(vectors, table, torch.tensor([3]), torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(float(VOCAB)).log().item())
    assert vectors.grad.isfinite().all() and vectors.grad.abs().max() < 1000


def test_unit_rows_are_of_length_one_but_for_zero_rows():
    table = torch.randn(9, DIM) * torch.logspace(-5, 3, 9)[:, None]
    table[4] = 0
    unit = unit_rows(table, chunk_size=2)
    assert torch.equal(unit[4], torch.zeros(DIM))
    expected = F.normalize(table, dim=-1)
    torch.testing.assert_close(unit, expected)
    assert not unit_rows(table.requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_nearest_tokens(dtype, chunk_size):
    # Long rows attract no vector by their length.
    table = (torch.randn(VOCAB, DIM) * torch.rand(VOCAB, 1)).to(dtype)
    vectors = torch.randn(40, DIM)
    cosines = F.cosine_similarity(vectors[:, None], table[None].float(), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_tokens(vectors, table, chunk_size)
    assert torch.equal(found, cosines.argmax(-1))
    tokens = torch.randint(VOCAB, (9,))
    assert torch.equal(nearest_tokens(5 * table[tokens], table, chunk_size), tokens)


def test_the_first_of_equal_tokens_is_the_nearest():
    table = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    for chunk_size in (1, 2, 4):
        assert nearest_tokens(torch.tensor([[3.0, 0.0]]), table, chunk_size).tolist() == [1]


def test_no_vectors_are_no_loss_but_stay_in_the_graph():
    vectors, targets, weights = inputs(0)
    labels = torch.zeros(0, dtype=torch.long)
    table = unit_rows(torch.randn(VOCAB, DIM))
    losses = [
        *word_and_pad_squared_error(vectors, targets, weights.bool()),
        absolute_error_sum(vectors, targets, weights),
        cosine_distance_sum(vectors, targets, weights),
        vocabulary_contrast_sum(vectors, table, labels, weights),
    ]
    for loss in losses:
        assert loss.item() == 0 and loss.dtype == torch.float32
    torch.stack(losses).sum().backward()
    assert vectors.grad.shape == (0, DIM)
    assert nearest_tokens(vectors, table).shape == (0,)
