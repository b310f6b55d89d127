"""Sampling: the nucleus, the temperature, a row's own random numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.generation import forbid, sample

LOGITS = torch.tensor([[math.log(p) for p in (0.5, 0.1, 0.3, 0.1)]])


def draws(uniform, temperature=1.0, top_p=1.0, logits=LOGITS):
    return sample(
        logits.expand(len(uniform), -1),
        torch.tensor(uniform, dtype=torch.float64),
        temperature,
        top_p,
    ).tolist()


def test_a_number_falls_into_the_share_of_its_token():
    # Best first: token 0 up to .5, token 2 up to .8, tokens 1 and 3 up to .9 and 1.
    assert draws([0.0, 0.49, 0.51, 0.79, 0.81, 0.89, 0.91, 0.9999]) == [0, 0, 2, 2, 1, 1, 3, 3]


def test_the_nucleus_is_the_fewest_best_tokens_that_hold_the_share():
    assert draws([0.0, 0.9999], top_p=0.5) == [0, 0]
    # 0.6 needs tokens 0 and 2, whose shares are then 5/8 and 3/8.
    assert draws([0.62, 0.63, 0.9999], top_p=0.6) == [0, 2, 2]


def test_the_last_number_stays_in_the_nucleus():
    assert draws([1 - 2**-54, 1.0], top_p=0.5) == [0, 0]
    assert draws([1.0]) == [3]


def test_a_low_temperature_prefers_the_best_token():
    # At 0.5 the shares go as squares: 25, 9, 1, 1 of 36.
    assert draws([0.69, 0.70, 0.94, 0.95], temperature=0.5) == [0, 2, 2, 1]


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 1), st.floats(0.1, 5))
def test_a_forbidden_token_is_never_drawn(uniform, top_p, temperature):
    logits = forbid(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), [[0, 3]])
    assert draws([uniform], temperature, top_p, logits)[0] in (1, 2)


def test_tokens_are_forbidden_row_by_row():
    logits = forbid(torch.zeros(3, 3), [[1], [], [0, 2]])
    assert logits.isinf().tolist() == [
        [False, True, False],
        [False, False, False],
        [True, False, True],
    ]


def test_frequencies_are_the_probabilities():
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = torch.tensor(draws(uniform))
    shares = [(drawn == token).float().mean().item() for token in range(4)]
    assert shares == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.01)
