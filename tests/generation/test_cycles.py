"""Finding loops token by token."""

from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.generation import Cycle, CycleDetector, LoopDetector


def first_cycle(tokens, **settings):
    """Where a loop is noticed, and which."""
    detector = CycleDetector(**settings)
    for place, token in enumerate(tokens):
        if (cycle := detector.add(token)) is not None:
            return place, cycle
    return None


def slow_cycle(tokens, min_repeats, min_length, max_period):
    """The same by definition, for each prefix."""
    for end in range(1, len(tokens) + 1):
        for period in range(1, max_period + 1):
            start = end
            while start > period and tokens[start - 1] == tokens[start - 1 - period]:
                start -= 1
            length = end - start + period if start < end else 0
            if length >= max(min_repeats * period, min_length):
                start = end - length
                return end - 1, Cycle(start, tuple(tokens[start : start + period]))
    return None


def test_a_loop_is_noticed_with_its_last_needed_token():
    tokens = [5, 6] + [1, 2, 3] * 4
    assert first_cycle(tokens[:-1], min_repeats=4, min_length=12) is None
    assert first_cycle(tokens, min_repeats=4, min_length=12) == (13, Cycle(2, (1, 2, 3)))


def test_short_repetition_is_none():
    assert first_cycle([7] * 23) is None
    assert first_cycle([7] * 24) == (23, Cycle(0, (7,)))
    assert first_cycle(list(range(30)) * 3) is None
    assert first_cycle(list(range(30)) * 4) == (119, Cycle(0, tuple(range(30))))


def test_the_longest_period():
    assert first_cycle(list(range(5)) * 6, max_period=4) is None
    assert first_cycle(list(range(5)) * 6, max_period=5) is not None


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(2, 4),
    st.integers(2, 8),
    st.integers(1, 6),
)
def test_it_finds_what_the_definition_says(tokens, min_repeats, min_length, max_period):
    settings = {"min_repeats": min_repeats, "min_length": min_length, "max_period": max_period}
    assert first_cycle(tokens, **settings) == slow_cycle(tokens, **settings)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 30), st.lists(st.integers(0, 2)))
def test_after_a_return_it_goes_on_as_if_it_had_seen_the_rest_only(tokens, length, more):
    settings = {"min_repeats": 3, "min_length": 6, "max_period": 5}
    length = min(length, len(tokens))
    used, fresh = CycleDetector(**settings), CycleDetector(**settings)
    for token in tokens:
        used.add(token)
    used.rewind(length)
    for token in tokens[:length]:
        fresh.add(token)
    copied = used.copy()
    for token in more:
        assert used.add(token) == fresh.add(token) == copied.add(token)


def test_long_sequences():
    tokens = list(range(5000)) + [1, 2] * 12
    assert first_cycle(tokens) == (5023, Cycle(5000, (1, 2)))


NUMBERS = range(100, 200)


def first_loop(tokens):
    detector = LoopDetector(NUMBERS)
    return next((cycle for t in tokens if (cycle := detector.add(t)) is not None), None)


def test_a_phrase_with_another_number_each_time_is_a_loop():
    phrase = [1, 2, 3, 4, 5, 6, 7]
    counting = [t for n in range(7) for t in (100 + n, *phrase)]
    # The cycle begins with a word, so that there is something to forbid.
    assert first_loop(counting) == Cycle(1, (*phrase, 101))
    assert first_loop(counting[: 8 * 5]) is None


def test_counting_alone_is_none():
    assert first_loop([t for n in range(60) for t in (100 + n, 1)]) is None
    assert first_loop(list(NUMBERS)) is None


def test_exact_loops_of_numbers_are_found():
    assert first_loop([101, 102] * 12) == Cycle(0, (101, 102))


def test_the_end_is_compared_numbers_aside():
    detector = LoopDetector(NUMBERS)
    for token in (1, 2, 3, 105):
        detector.add(token)
    assert detector.ends_with((2, 3, 150))
    assert not detector.ends_with((2, 4, 150))
    detector.rewind(3)
    assert not detector.ends_with((2, 3, 150))
    assert detector.copy().ends_with((2, 3))
