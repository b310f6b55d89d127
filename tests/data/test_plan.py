"""Packing and the plan: every sample once, exact restarts, any world size, weights kept."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.data import Plan, Source, fill, pack_best_fit
from torchtune_speech.data._pack import packed_order

lengths_lists = st.lists(st.integers(1, 64), min_size=1, max_size=200)


def one_source(n):
    return [Source("all", 1.0, np.arange(n))]


def steps_of_epoch(plan):
    first = next(plan)
    steps = [first]
    for step in plan:
        if step.epoch > first.epoch:
            return steps
        steps.append(step)
    return steps


@given(lengths_lists)
def test_packing_holds_every_sample_once_and_no_row_overflows(lengths):
    rows = pack_best_fit(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)


@given(lengths_lists)
def test_packing_leaves_at_most_one_row_half_empty(lengths):
    rows = pack_best_fit(lengths, 64)
    assert sum(sum(lengths[i] for i in row) <= 32 for row in rows) <= 1


@given(lengths_lists, st.integers(64, 200))
def test_packing_in_groups_gives_the_rows_of_best_fit_decreasing(lengths, capacity):
    order, ends = packed_order(np.array(lengths), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    rows = [sorted((lengths[i] for i in row), reverse=True) for row in np.split(order, ends)[:-1]]
    plain = [
        sorted((lengths[i] for i in row), reverse=True) for row in pack_best_fit(lengths, capacity)
    ]
    assert len(rows) == len(plain)
    assert sum(map(len, rows)) == len(lengths)
    assert all(0 < sum(row) <= capacity for row in rows)
    # The same fill of each row, so the same number of rows and the same last one.
    assert sorted(map(sum, rows)) == sorted(map(sum, plain))


@given(st.integers(0, 2**32), st.sampled_from([512, 4096, 8192]))
@settings(deadline=None, max_examples=10)
def test_packing_in_groups_gives_the_rows_of_best_fit_decreasing_for_many_samples(seed, capacity):
    lengths = np.random.default_rng(seed).integers(30, 430, 3000)
    assert len(packed_order(lengths, capacity)[1]) == len(pack_best_fit(lengths, capacity))


@pytest.mark.parametrize("lengths", [[], [64], [1], [64, 64], [1] * 64, [1] * 65, [33, 33]])
def test_packing_at_the_edges(lengths):
    _, ends = packed_order(np.array(lengths, dtype=np.int64), 64)
    assert len(ends) == len(pack_best_fit(lengths, 64))
    assert (ends[-1] if len(ends) else 0) == len(lengths)


def test_a_sample_that_no_row_can_hold_is_refused_in_groups_too():
    with pytest.raises(ValueError, match="65 tokens"):
        packed_order(np.array([3, 65]), 64)
    with pytest.raises(ValueError, match="0 tokens"):
        packed_order(np.array([3, 0]), 64)


def test_packing_fills_rows():
    lengths = np.random.default_rng(0).integers(40, 120, 4000)
    rows = pack_best_fit(lengths.tolist(), 512)
    assert lengths.sum() / (len(rows) * 512) > 0.97


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="65 tokens"):
        pack_best_fit([65], 64)


@settings(deadline=None)
@given(lengths_lists, st.integers(1, 5), st.integers(1, 50), st.integers(0, 9), st.booleans())
def test_every_sample_comes_once_an_epoch(lengths, rows_per_step, block_size, seed, packed):
    plan = Plan(
        one_source(len(lengths)),
        np.array(lengths),
        max_seq_len=64,
        rows_per_step=rows_per_step,
        block_size=block_size,
        seed=seed,
        packed=packed,
    )
    for epoch in range(2):
        steps = take_samples(plan, len(lengths))
        assert sorted(i for step in steps for i in step.samples) == list(range(len(lengths)))
        assert {step.epoch for step in steps} == {epoch}
        assert all(len(step.rows) <= rows_per_step for step in steps)
        rows = [[lengths[i] for i in row] for step in steps for row in step.rows]
        assert all(0 < sum(row) <= 64 for row in rows)
        assert packed or all(len(row) == 1 for row in rows)


@pytest.mark.parametrize(("packed", "samples_per_row"), [(True, 8), (False, 1)])
def test_few_rows_are_lost_in_the_last_step_of_a_block(packed, samples_per_row):
    rows_per_step, n = 64, 60_000
    lengths = np.random.default_rng(0).integers(24, 41, n)
    plan = Plan(one_source(n), lengths, max_seq_len=256, rows_per_step=rows_per_step, packed=packed)
    steps = take_samples(plan, n)
    short = [step for step in steps if len(step.rows) < rows_per_step]
    assert 1 <= len(short) <= max(1, n // (100 * rows_per_step * samples_per_row))
    assert sum(len(step.rows) for step in steps) / (len(steps) * rows_per_step) > 0.98
    assert {step.epoch for step in steps} == {0}


def test_blocks_are_of_equal_size_and_packed_apart():
    lengths = np.random.default_rng(0).integers(20, 64, 130)
    options = {"max_seq_len": 64, "rows_per_step": 2, "block_size": 32}
    plan = Plan(one_source(130), lengths, **options)
    taken, ends = 0, []
    for step in take_samples(plan, 130):
        taken += len(step.samples)
        if step.state["cursors"]["all"][3] == 0:  # the next step begins a block
            ends.append(taken)
    assert ends == [32, 65, 97, 130]


def test_a_state_in_a_block_that_is_not_there_is_refused():
    lengths = np.full(128, 30)
    options = {"max_seq_len": 64, "rows_per_step": 2}
    plan = Plan(one_source(128), lengths, block_size=32, **options)
    state = [next(plan) for _ in range(20)][-1].state
    with pytest.raises(ValueError, match="block 2 of all, which now has 2"):
        Plan(one_source(128), lengths, block_size=64, **options).load_state_dict(state)


def take_samples(plan, count):
    """Steps until they have this many samples."""
    steps = []
    while sum(len(step.samples) for step in steps) < count:
        steps.append(next(plan))
    return steps


def mixed_plan(**options):
    rng = np.random.default_rng(1)
    lengths = rng.integers(20, 64, 300)
    twins = np.where(np.arange(300) < 200, lengths // 2, 0)
    sources = [
        Source("st", 0.5, np.arange(0, 120)),
        Source("sqa", 0.3, np.arange(120, 200)),
        Source("asr", 0.2, np.arange(200, 300)),
    ]
    return Plan(
        sources,
        lengths,
        twin_lengths=twins,
        max_seq_len=64,
        rows_per_step=2,
        block_size=32,
        **options,
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 150), st.booleans())
def test_a_restart_goes_on_as_if_nothing_had_happened(taken, paired):
    plan, restarted = mixed_plan(paired=paired), mixed_plan(paired=paired)
    state = plan.state_dict()
    for _ in range(taken):
        state = next(plan).state
    restarted.load_state_dict(json.loads(json.dumps(state)))
    assert [next(plan) for _ in range(30)] == [next(restarted) for _ in range(30)]


def test_draws_keep_to_the_weights_at_every_moment():
    plan = mixed_plan()
    counts = {"st": 0, "sqa": 0, "asr": 0}
    for k in range(1, 500):
        counts[next(plan).source] += 1
        assert abs(counts["st"] - 0.5 * k) < 1.5
        assert abs(counts["sqa"] - 0.3 * k) < 1.5
        assert abs(counts["asr"] - 0.2 * k) < 1.5


def test_a_source_is_exhausted_before_it_repeats():
    plan = mixed_plan()
    seen = []
    while len(seen) < 80:
        step = next(plan)
        if step.source == "sqa":
            seen += step.samples
    assert sorted(seen[:80]) == list(range(120, 200))


def test_twin_steps_follow_their_speech_step_with_the_same_samples():
    plan = mixed_plan(paired=True)
    steps = [next(plan) for _ in range(200)]
    for before, after in zip(steps, steps[1:], strict=False):
        if before.source == "asr":
            assert not after.is_twin
        elif not before.is_twin:
            assert after.is_twin
            assert after.source == before.source
            assert sorted(after.samples) == sorted(before.samples)
            assert len(after.rows) <= len(before.rows)
            assert all(sum(plan.twin_lengths[i] for i in row) <= 64 for row in after.rows)
    assert any(len(step.rows) == 1 for step in steps if step.is_twin)  # packed again, more tightly


def test_an_epoch_ends_with_the_speech_samples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 64, 200)
    speech, text = (
        Source("st", 0.5, np.arange(100)),
        Source("mt", 0.5, np.arange(100, 200), is_speech=False),
    )
    plan = Plan([speech, text], lengths, max_seq_len=64, rows_per_step=2)
    drawn = 0
    for step in (next(plan) for _ in range(400)):
        assert step.epoch == drawn // 100
        if step.source == "st":
            drawn += len(step.samples)


def test_the_seed_changes_the_order_and_nothing_else_does():
    assert [next(mixed_plan(seed=1)) for _ in range(1)] != [
        next(mixed_plan(seed=2)) for _ in range(1)
    ]
    a, b = mixed_plan(seed=1), mixed_plan(seed=1)
    assert [next(a) for _ in range(50)] == [next(b) for _ in range(50)]


def test_steps_in_epochs_counts_what_iterating_gives():
    plan = mixed_plan(paired=True)
    expected = plan.steps_in_epochs(2)
    steps = [next(plan) for _ in range(expected + 1)]
    assert steps[-1].epoch == 2
    assert steps[-2].epoch == 1


def test_a_state_of_other_data_is_refused():
    plan = mixed_plan()
    with pytest.raises(ValueError, match="saved plan drew from"):
        plan.load_state_dict(
            {"cursors": {"all": [0, 0, 0, 0]}, "number": 0, "drawn": 0, "twin_of": None}
        )


def test_fill_is_the_share_of_tokens():
    plan = Plan(one_source(3), np.array([4, 2, 2]), max_seq_len=8, rows_per_step=2)
    assert fill(next(plan), np.array([4, 2, 2]), 8) == 1.0
