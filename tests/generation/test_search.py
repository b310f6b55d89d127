"""Beams and loop policies, on a model whose next token is a table."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchtune.models.llama3_1 import llama3_1

from torchtune_speech.errors import InputError
from torchtune_speech.generation import Decoding, Prompt, TokenKinds, generate
from torchtune_speech.models import SpeechLLM

VOCAB, STOP = 6, 5


class TableLLM(SpeechLLM):
    """The next token's log-probabilities depend on the last token alone."""

    def __init__(self, table):
        super().__init__(
            llama3_1(
                vocab_size=VOCAB,
                num_layers=1,
                num_heads=1,
                num_kv_heads=1,
                embed_dim=8,
                max_seq_len=512,
                intermediate_dim=8,
            )
        )
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32))
        self.passes = 0

    def forward(self, tokens, *, cache=None, select=None, **_):
        cache.begin()
        cache.end()
        self.passes += 1
        logits = self.table.log()[tokens.flatten()]
        return logits if select is None else logits[select]


def answer(model, prompts, **settings):
    return generate(
        model,
        [Prompt([start]) for start in prompts],
        Decoding(**{"max_new_tokens": 6} | settings),
        stop_ids=[STOP],
        placeholder_id=0,
    )


def random_table(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(VOCAB, VOCAB, generator=generator), dim=1).tolist()


def best_answer(table, start, max_new_tokens, penalty):
    """The best of all sequences, by trying each."""
    best = (-math.inf, None)
    for length in range(1, max_new_tokens + 1):
        for tokens in itertools.product(range(1, VOCAB), repeat=length):
            if STOP in tokens[:-1] or (tokens[-1] != STOP and length < max_new_tokens):
                continue
            score = sum(
                math.log(table[a][b]) for a, b in zip((start, *tokens[:-1]), tokens, strict=True)
            )
            best = max(best, (score / length**penalty, tokens))
    return [token for token in best[1] if token != STOP]


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_all_hypotheses_finds_the_best_answer(seed, penalty):
    table = random_table(seed)
    # The placeholder, token 0, is forbidden: its probability is lost to all in the same way only
    # if it is nothing.
    for row in table:
        row[0] = 0.0
        total = sum(row)
        row[:] = [p / total for p in row]
    found = answer(TableLLM(table), [1, 2], num_beams=300, max_new_tokens=4, length_penalty=penalty)
    assert [a.tokens for a in found] == [best_answer(table, start, 4, penalty) for start in (1, 2)]


def test_beams_find_what_greedy_decoding_misses():
    table = [[1e-9] * VOCAB for _ in range(VOCAB)]
    table[1][2], table[1][3] = 0.6, 0.4
    table[2][1:6] = [0.2, 0.2, 0.2, 0.2, 0.2]
    table[3][STOP] = 1.0
    model = TableLLM(table)
    assert answer(model, [1], max_new_tokens=3)[0].tokens[0] == 2
    assert answer(model, [1], max_new_tokens=3, num_beams=2, length_penalty=0.0)[0].tokens == [3]


def test_the_length_penalty_decides_between_short_and_long():
    table = [[1e-9] * VOCAB for _ in range(VOCAB)]
    table[1][STOP], table[1][2] = 0.55, 0.45  # end at once, or three sure tokens more
    table[2][3] = table[3][4] = table[4][STOP] = 1.0
    model = TableLLM(table)
    assert answer(model, [1], num_beams=2, length_penalty=0.0)[0].tokens == []
    assert answer(model, [1], num_beams=2, length_penalty=1.0)[0].tokens == [2, 3, 4]


def test_a_search_that_is_over_does_not_keep_the_others_waiting():
    table = [[1e-9] * VOCAB for _ in range(VOCAB)]
    table[1][STOP] = 1.0
    table[2][3] = table[3][4] = table[4][2] = 0.999
    model = TableLLM(table)
    first, second = answer(model, [1, 2], num_beams=2, max_new_tokens=9, length_penalty=0.0)
    assert (first.tokens, first.finish_reason) == ([], "stop")
    assert (second.tokens, second.finish_reason) == ([3, 4, 2] * 3, "length")


LOOPING = [[1e-6] * VOCAB for _ in range(VOCAB)]
LOOPING[1][2] = LOOPING[2][3] = 0.9
LOOPING[3][2], LOOPING[3][4] = 0.8, 0.2  # 2 3 2 3 ...; without that, 4 and the end
LOOPING[4][STOP] = 1.0


def test_without_a_policy_a_loop_runs_to_the_limit():
    got = answer(TableLLM(LOOPING), [1], max_new_tokens=60)[0]
    assert (got.tokens, got.finish_reason, got.loops) == ([2, 3] * 30, "length", 0)


def test_cut_ends_after_the_first_cycle():
    model = TableLLM(LOOPING)
    got = answer(model, [1], max_new_tokens=60, loops="cut")[0]
    assert (got.tokens, got.finish_reason, got.loops) == ([2, 3], "loop", 1)
    assert model.passes == 10  # noticed as soon as it can be


def test_forbid_goes_back_and_decodes_on():
    got = answer(TableLLM(LOOPING), [1], max_new_tokens=60, loops="forbid")[0]
    assert (got.tokens, got.finish_reason, got.loops) == ([2, 3, 4], "stop", 1)


def test_other_rows_are_not_changed_by_a_return():
    model = TableLLM(LOOPING)
    got = answer(model, [4, 1, 3, 2], max_new_tokens=60, loops="forbid")
    assert [a.loops for a in got[:3]] == [0, 1, 1]
    alone = [answer(model, [start], max_new_tokens=60, loops="forbid")[0] for start in (4, 1, 3, 2)]
    assert got == alone


def test_an_answer_that_only_loops_is_cut_in_the_end():
    table = [[1e-9] * VOCAB for _ in range(VOCAB)]
    for row in table:
        row[2] = 0.9
        row[3], row[4] = 0.06, 0.04
    got = answer(TableLLM(table), [1], max_new_tokens=400, loops="forbid")[0]
    assert got.loops == 17
    assert got.finish_reason == "loop"
    assert len(got.tokens) < 400


@pytest.mark.parametrize(
    ("policy", "tokens", "reason"),
    [("cut", [2, 3], "loop"), ("forbid", [2, 3] * 4 + [4], "stop")],
)
def test_beams_leave_loops(policy, tokens, reason):
    settings = {"max_new_tokens": 60, "num_beams": 2, "loops": policy}
    free = answer(TableLLM(LOOPING), [1, 4], **settings | {"loops": "none"})
    assert len(free[0].tokens) > 24
    got = answer(TableLLM(LOOPING), [1, 4], **settings)
    assert (got[0].tokens, got[0].finish_reason, got[0].loops) == (tokens, reason, 1)
    assert got[1] == free[1]


def test_beams_cut_where_every_hypothesis_loops():
    table = [[1e-9] * VOCAB for _ in range(VOCAB)]
    for row in table:
        row[2], row[STOP] = 0.99, 0.0
    got = answer(TableLLM(table), [1], max_new_tokens=40, num_beams=2, loops="forbid")[0]
    assert (got.tokens, got.finish_reason) == ([2], "loop")


def test_loops_are_measured_by_the_kinds_of_tokens():
    ask = {"prompts": [Prompt([1])], "stop_ids": [STOP], "placeholder_id": 0}
    settings = Decoding(100, loops="cut")
    model = TableLLM(LOOPING)
    assert generate(model, settings=settings, **ask)[0].tokens == [2, 3]
    passes, model.passes = model.passes, 0
    # Tokens in which no word begins need 24 of them.
    nothing = np.zeros(VOCAB, dtype=bool)
    kinds = TokenKinds(np.zeros(VOCAB, dtype=int), nothing, nothing)
    assert generate(model, settings=settings, kinds=kinds, **ask)[0].tokens == [2, 3]
    assert (passes, model.passes) == (10, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"loops": "forbidden"}, "did you mean 'forbid'"),
        ({"num_beams": 2, "temperature": 1}, "beams do not sample"),
        ({"num_beams": True}, "num_beams"),
        ({"seed": -1}, "seed"),
        ({"temperature": None}, "temperature"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"top_p": 0.9}, "nothing is drawn"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Decoding(**settings)


def test_answers_must_fit_the_positions_of_the_llm():
    with pytest.raises(InputError, match="512 positions"):
        answer(TableLLM(LOOPING), [1], max_new_tokens=512)


def test_a_limit_of_the_prompt():
    model = TableLLM(LOOPING)
    prompts = [Prompt([1], max_new_tokens=n) for n in (3, 100)]
    got = generate(model, prompts, Decoding(7), stop_ids=[STOP], placeholder_id=0)
    assert [len(a.tokens) for a in got] == [3, 7]
    assert generate(model, [], Decoding(7), stop_ids=[STOP], placeholder_id=0) == []


def test_placeholders_need_frames():
    with pytest.raises(ValueError, match="2 placeholders in prompts without frames"):
        generate(TableLLM(LOOPING), [Prompt([1, 0, 0])], stop_ids=[STOP], placeholder_id=0)
