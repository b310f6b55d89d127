"""One vector for each symbol CTC hears: beside a loop, packed and alone, and in long utterances."""

import itertools

import pytest
import torch

from torchtune_speech.modules import ctc_compress, ctc_greedy


def by_loop(frames, logits, num_slots, blank):
    """Group one utterance's frames by their likeliest symbol, average each group but blanks'."""
    slots, number = torch.zeros(num_slots, frames.shape[1], dtype=frames.dtype), 0
    for symbol, group in itertools.groupby(range(len(frames)), lambda t: int(logits[t].argmax())):
        if symbol != blank and number < num_slots:
            slots[number] = frames[list(group)].mean(0)
            number += 1
    return slots


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("slots", [(9, 0, 9, 9), (3, 0, 2, 1)])
def test_each_utterance_is_compressed_as_by_a_loop(slots, blank):
    torch.manual_seed(0)
    lengths, slots = torch.tensor([7, 0, 12, 3]), torch.tensor(slots)
    frames, logits = torch.randn(22, 5, dtype=torch.float64), torch.randn(22, 4)
    result = ctc_compress(frames, logits, lengths, slots, blank)
    parts = zip(*(x.split(lengths.tolist()) for x in (frames, logits)), slots, strict=True)
    expected = torch.cat([by_loop(f, x, int(n), blank) for f, x, n in parts])
    torch.testing.assert_close(result, expected)


def test_an_utterance_does_not_see_the_end_of_the_one_before():
    heard, frames = torch.eye(3)[[1, 1, 1, 2]], torch.tensor([[1.0], [3.0], [4.0], [5.0]])
    slots = ctc_compress(frames, heard, torch.tensor([2, 0, 2]), torch.tensor([2, 0, 2]))
    assert slots[:, 0].tolist() == [2, 0, 4, 5]


def test_gradients_reach_the_frames_and_not_the_logits():
    torch.manual_seed(0)
    frames = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(6, 3, requires_grad=True)
    lengths, slots = torch.tensor([4, 2]), torch.tensor([4, 2])
    assert torch.autograd.gradcheck(lambda f: ctc_compress(f, logits, lengths, slots), frames)
    ctc_compress(frames, logits, lengths, slots).sum().backward()
    assert logits.grad is None


def test_no_frames_no_slots():
    empty = torch.zeros(0, dtype=torch.long)
    assert ctc_compress(torch.zeros(0, 3), torch.zeros(0, 4), empty, empty).shape == (0, 3)


def test_doubt_does_not_add_up_over_a_long_utterance():
    """Expected counts would: a tenth of a token in each frame moves all that come later."""
    path = torch.tensor([0, 2, 2, 0, 2, 1, 1, 0, 3, 0]).repeat(50)
    lengths = torch.tensor([500])
    logits = 5.5 * torch.eye(40)[path]
    assert 0.8 < logits.softmax(-1).max() < 0.9
    slots = ctc_compress(torch.eye(40)[path], logits, lengths, lengths)
    (tokens,) = ctc_greedy(logits, lengths)
    assert slots[: len(tokens)].argmax(-1).tolist() == list(tokens)
    assert slots[: len(tokens)].max(-1).values.min() == 1
    assert not slots[len(tokens) :].any()


def test_long_runs_are_averaged_in_bfloat16_as_well():
    frames = torch.full((600, 2), 3.0, dtype=torch.bfloat16)
    logits, lengths = torch.tensor([0.0, 1.0]).expand(600, 2), torch.tensor([600])
    result = ctc_compress(frames, logits, lengths, torch.tensor([1]), 0)
    assert torch.equal(result, torch.full((1, 2), 3.0, dtype=torch.bfloat16))
