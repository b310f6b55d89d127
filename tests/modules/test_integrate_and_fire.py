"""Frames that add up to tokens: beside a loop, beside CTC's own paths, packed and alone."""

import itertools

import pytest
import torch

from torchtune_speech.modules import ctc_greedy, integrate_and_fire, new_token_probs


def by_loop(frames, weights, num_slots):
    """Pour each frame into the slot that is being filled; what flows over goes to the next."""
    slots, slot, room = torch.zeros(num_slots, frames.shape[1], dtype=frames.dtype), 0, 1.0
    for frame, weight in zip(frames, weights.tolist(), strict=True):
        while weight > 0 and slot < num_slots:
            poured = min(weight, room)
            slots[slot] += poured * frame
            weight, room = weight - poured, room - poured
            if room < 1e-12:
                slot, room = slot + 1, 1.0
    return slots


@pytest.mark.parametrize("slots", [(9, 9, 9, 9), (3, 1, 2, 1)])
def test_each_utterance_is_poured_as_by_a_loop(slots):
    torch.manual_seed(0)
    lengths, slots = torch.tensor([7, 0, 12, 3]), torch.tensor(slots)
    frames = torch.randn(22, 5, dtype=torch.float64)
    weights = torch.rand(22, dtype=torch.float64)
    result = integrate_and_fire(frames, weights, lengths, slots)
    parts = zip(frames.split(lengths.tolist()), weights.split(lengths.tolist()), slots, strict=True)
    expected = torch.cat([by_loop(f, w, int(n)) for f, w, n in parts])
    assert (result - expected).abs().max() < 1e-12


def test_gradients_reach_frames_and_weights():
    torch.manual_seed(0)
    frames = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)
    lengths, slots = torch.tensor([4, 2]), torch.tensor([4, 2])
    assert torch.autograd.gradcheck(
        lambda f, w: integrate_and_fire(f, w, lengths, slots), (frames, weights)
    )


def test_no_frames_no_slots():
    empty = torch.zeros(0, dtype=torch.long)
    assert integrate_and_fire(torch.zeros(0, 3), torch.zeros(0), empty, empty).shape == (0, 3)


def test_expected_number_of_symbols_is_that_of_all_ctc_paths():
    torch.manual_seed(0)
    logits = torch.randn(5, 3)  # blank and two symbols
    probs, expected = logits.softmax(-1), 0.0
    for path in itertools.product(range(3), repeat=5):
        probability = torch.stack([probs[t, k] for t, k in enumerate(path)]).prod()
        symbols = [k for k, _ in itertools.groupby(path) if k != 0]
        expected += float(probability) * len(symbols)
    assert new_token_probs(logits, torch.tensor([5])).sum().item() == pytest.approx(expected, 1e-5)


def test_an_utterance_does_not_see_the_end_of_the_one_before():
    sure = 30 * torch.eye(3)[[1, 1, 1, 2]]
    lengths = torch.tensor([2, 0, 2])
    assert new_token_probs(sure, lengths).round().tolist() == [1, 0, 1, 1]


def test_slots_of_sure_frames_are_the_tokens_of_greedy_decoding():
    path = torch.tensor([0, 2, 2, 0, 2, 1, 1, 0, 3, 0])
    lengths = torch.tensor([10])
    logits = 40 * torch.eye(4)[path]
    frames = torch.eye(4)[path]
    slots = integrate_and_fire(frames, new_token_probs(logits, lengths), lengths, lengths)
    (tokens,) = ctc_greedy(logits, lengths)
    assert slots[: len(tokens)].argmax(-1).tolist() == list(tokens)
    assert (slots[len(tokens) :] < 1e-6).all()
