import pytest
import torch
import torch.nn.functional as F

from torchtune_speech.modules import ctc_greedy, ctc_loss_sum, ctc_possible


@pytest.mark.parametrize("blank", [0, 4])
def test_loss_and_gradient_equal_torch_utterance_by_utterance(blank):
    torch.manual_seed(0)
    lengths = [7, 12, 5]
    targets = [[1, 2, 2], [3, 1, 1, 1, 2], [2]]
    logits = torch.randn(24, 5, requires_grad=True)
    loss, count = ctc_loss_sum(
        logits,
        torch.tensor(lengths),
        torch.tensor(sum(targets, [])),
        torch.tensor([len(t) for t in targets]),
        blank=blank,
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = sum(
        F.ctc_loss(
            part.log_softmax(-1)[:, None],
            torch.tensor([target]),
            torch.tensor([len(part)]),
            torch.tensor([len(target)]),
            blank=blank,
            reduction="sum",
        )
        for part, target in zip(logits.split(lengths), targets, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert count == 3


def test_impossible_and_unknown_targets_are_skipped_and_counted():
    torch.manual_seed(0)
    logits = torch.randn(10, 4, requires_grad=True)
    lengths = torch.tensor([3, 3, 4, 0])
    # 3 vectors hold 1 2 1, but not 1 1 2 (a blank must come between); 0 vectors hold no symbol;
    # an empty target is an unknown transcript, not silence.
    targets, target_lengths = torch.tensor([1, 2, 1, 1, 1, 2, 3]), torch.tensor([3, 3, 0, 1])
    assert ctc_possible(lengths, targets, target_lengths).tolist() == [True, False, False, False]
    loss, count = ctc_loss_sum(logits, lengths, targets, target_lengths)
    assert count == 1 and loss.isfinite()
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:3].any() and not logits.grad[3:].any()


def test_repeat_across_targets_needs_no_blank():
    logits = torch.zeros(2, 3)
    lengths = torch.tensor([1, 1])
    _, count = ctc_loss_sum(logits, lengths, torch.tensor([2, 2]), torch.tensor([1, 1]))
    assert count == 2


@pytest.mark.parametrize("rows", [0, 1])  # 1: the dummy frame of a process without speech
def test_no_utterances_give_zero_with_a_gradient(rows):
    logits = torch.ones(rows, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss, count = ctc_loss_sum(logits, none, none, none)
    loss.backward()
    assert loss == 0 and count == 0 and logits.grad.shape == (rows, 4) and not logits.grad.any()


def test_loss_is_computed_in_fp32():
    logits = torch.randn(30, 5).bfloat16()
    arguments = (torch.tensor([30]), torch.tensor([1, 2, 3]), torch.tensor([3]))
    loss, _ = ctc_loss_sum(logits, *arguments)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ctc_loss_sum(logits.float(), *arguments)[0])


def test_greedy_merges_repeats_and_drops_blanks_within_each_utterance():
    symbols = [[1, 1, 0, 1, 2], [2, 2], [], [0, 0], [0, 3, 3, 0, 3]]
    logits = F.one_hot(torch.tensor(sum(symbols, [])), 4).float()
    lengths = torch.tensor([len(s) for s in symbols])
    assert ctc_greedy(logits, lengths) == [[1, 1, 2], [2], [], [], [3, 3]]
    assert ctc_greedy(logits[:0], lengths[:0]) == []


def test_greedy_with_another_blank():
    logits = F.one_hot(torch.tensor([0, 0, 3, 0, 1]), 4).float()
    assert ctc_greedy(logits, torch.tensor([5]), blank=3) == [[0, 0, 1]]
