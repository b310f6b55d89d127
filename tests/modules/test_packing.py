import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.modules import (
    Packing,
    length_groups,
    pad_packed,
    stack_packed,
    stacked_length,
)

LENGTHS = st.lists(st.integers(0, 12), max_size=8)


def packed(lengths, dim=3):
    return torch.arange(1.0, sum(lengths) * dim + 1).view(-1, dim)


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_pad_packed_puts_each_utterance_in_its_row(lengths):
    frames, lengths_u = packed(lengths), torch.tensor(lengths, dtype=torch.long)
    padded, mask = pad_packed(frames, lengths_u)
    assert padded.shape == (len(lengths), max(lengths, default=0), 3)
    for row, row_mask, part in zip(padded, mask, frames.split(lengths), strict=True):
        assert row_mask.tolist() == [True] * len(part) + [False] * (len(row) - len(part))
        assert torch.equal(row[: len(part)], part)
        assert not row[len(part) :].any()
    assert torch.equal(padded[mask], frames)


def test_pad_packed_to_a_given_length():
    padded, mask = pad_packed(packed([2, 1]), torch.tensor([2, 1]), max_length=5)
    assert padded.shape == (2, 5, 3) and mask.sum() == 3
    assert torch.equal(padded[mask], packed([2, 1]))


def test_padding_passes_gradients():
    frames = packed([3, 1, 2]).requires_grad_()
    lengths = torch.tensor([3, 1, 2])
    weights = torch.rand(6, 3)
    padded, mask = pad_packed(frames, lengths)
    (padded[mask] * weights).sum().backward()
    assert torch.equal(frames.grad, weights)


@given(LENGTHS, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_stack_packed_fills_the_remainder_with_zeros(lengths, stack):
    frames, lengths_u = packed(lengths), torch.tensor(lengths, dtype=torch.long)
    vectors = stack_packed(frames, lengths_u, stack)
    expected = []
    for part in frames.split(lengths):
        missing = -len(part) % stack
        expected.append(torch.cat([part, torch.zeros(missing, 3)]).view(-1, stack * 3))
    assert torch.equal(vectors, torch.cat([torch.zeros(0, stack * 3), *expected]))
    assert [len(part) for part in expected] == stacked_length(lengths_u, stack).tolist()
    assert [len(part) for part in expected] == [stacked_length(n, stack) for n in lengths]


@given(st.lists(st.integers(0, 300), max_size=40), st.sampled_from([1, 64, 512]))
@settings(max_examples=60, deadline=None)
def test_length_groups_hold_every_utterance_once_and_bound_padding(lengths, min_frames):
    groups = length_groups(lengths, max_padding=0.15, min_frames=min_frames)
    assert sorted(sum(groups, [])) == [u for u, length in enumerate(lengths) if length]
    for group in groups:
        padded = len(group) * lengths[group[0]]
        before_last = padded - lengths[group[0]]
        assert max(lengths[u] for u in group) == lengths[group[0]]
        if before_last >= min_frames:
            assert sum(lengths[u] for u in group) >= 0.85 * padded - 1e-6


def test_length_groups_are_one_when_lengths_are_near():
    assert len(length_groups([39, 40, 41, 38] * 6, min_frames=1)) == 1


@given(LENGTHS, st.sampled_from([1, 20, 512]))
@settings(max_examples=60, deadline=None)
def test_packing_pads_and_unpads_in_groups(lengths, min_frames):
    frames = packed(lengths)
    packing = Packing.from_lengths(torch.tensor(lengths, dtype=torch.long), min_frames=min_frames)
    assert packing.positions_t.tolist() == [i for length in lengths for i in range(length)]
    if not sum(lengths):
        assert packing.shapes == ()
        return
    groups = packing.pad(frames)
    assert torch.equal(packing.unpad(groups), frames)
    for group, mask in zip(groups, packing.masks, strict=True):
        real = torch.ones(group.shape[:2], dtype=bool) if mask is None else mask[:, 0, 0]
        assert real.any(1).all()  # a row without a real frame would make attention NaN
        for row, row_real in zip(group, real, strict=True):
            owner = [
                part for part in frames.split(lengths) if len(part) and part[0, 0] == row[0, 0]
            ]
            assert torch.equal(row[row_real], owner[0])
            assert torch.isin(row, owner[0]).all()  # padding too is the utterance's own


def test_packing_leaves_even_utterances_where_they_are():
    packing = Packing.from_lengths(torch.tensor([4, 0, 4]))
    assert packing.pad_index is None and packing.masks == (None,)
    frames = packed([4, 4])
    assert packing.pad(frames)[0].data_ptr() == frames.data_ptr()


def test_packing_takes_lengths_of_any_integer_type():
    packing = Packing.from_lengths(torch.tensor([2, 5, 1], dtype=torch.int32), min_frames=1)
    assert torch.equal(packing.unpad(packing.pad(packed([2, 5, 1]))), packed([2, 5, 1]))


def test_spaced_index_leaves_gaps_between_utterances():
    packing = Packing.from_lengths(torch.tensor([2, 0, 3]))
    assert packing.spaced_index(4).tolist() == [0, 1, 10, 11, 12]


@pytest.mark.parametrize("stack", [1, 2, 5])
def test_stack_packed_passes_gradients(stack):
    frames = packed([7, 3]).requires_grad_()
    stack_packed(frames, torch.tensor([7, 3]), stack).sum().backward()
    assert torch.equal(frames.grad, torch.ones_like(frames))
