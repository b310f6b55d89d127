"""Finding loops token by token."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.generation import Cycle, CycleDetector, LoopDetector, TokenKinds


def first_cycle(items, **settings):
    """Where a loop is noticed, and which."""
    detector = CycleDetector(**settings)
    for place, item in enumerate(items):
        if (cycle := detector.add(item)) is not None:
            return place, cycle
    return None


def slow_cycle(items, min_repeats, min_words, min_length, max_period):
    """The same by definition, for each prefix."""
    for end in range(1, len(items) + 1):
        for period in range(1, max_period + 1):
            start = end
            while start > period and items[start - 1] == items[start - 1 - period]:
                start -= 1
            length = end - start + period if start < end else 0
            if length >= max(min_repeats * period, min(min_words, min_length)):
                return end - 1, (end - length, period)
    return None


def test_a_loop_is_noticed_with_its_last_needed_item():
    items = [5, 6] + [1, 2, 3] * 4
    assert first_cycle(items[:-1], min_repeats=4) is None
    assert first_cycle(items, min_repeats=4) == (13, (2, 3))


def test_short_repetition_is_none():
    assert first_cycle([7] * 9) is None
    assert first_cycle([7] * 10) == (9, (0, 1))
    assert first_cycle(list(range(30)) * 2) is None
    assert first_cycle(list(range(30)) * 3) == (89, (0, 30))


def test_the_longest_period():
    assert first_cycle(list(range(5)) * 6, max_period=4) is None
    assert first_cycle(list(range(5)) * 6, max_period=5) is not None


def test_items_without_words_need_more_length():
    detector = CycleDetector()
    found = [detector.add(7, words=0) for _ in range(24)]
    assert found[:23] == [None] * 23 and found[23] == (0, 1)
    detector = CycleDetector()
    found = [detector.add(item, words=2 * item) for item in [1, 0] * 5]  # two words a cycle
    assert found[:8] == [None] * 8 and found[8] == (0, 2)


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(2, 4),
    st.integers(2, 8),
    st.integers(2, 8),
    st.integers(1, 6),
)
def test_it_finds_what_the_definition_says(items, min_repeats, min_words, min_length, max_period):
    settings = {"min_repeats": min_repeats, "min_words": min_words}
    settings |= {"min_length": min_length, "max_period": max_period}
    assert first_cycle(items, **settings) == slow_cycle(items, **settings)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 30), st.lists(st.integers(0, 2)))
def test_after_a_return_it_goes_on_as_if_it_had_seen_the_rest_only(items, length, more):
    settings = {"min_repeats": 3, "min_words": 6, "max_period": 5}
    length = min(length, len(items))
    used, fresh = CycleDetector(**settings), CycleDetector(**settings)
    for item in items:
        used.add(item, words=item)
    used.rewind(length)
    for item in items[:length]:
        fresh.add(item, words=item)
    copied = used.copy()
    for item in more:
        assert used.add(item, item) == fresh.add(item, item) == copied.add(item, item)


def test_long_sequences():
    items = list(range(5000)) + [1, 2] * 5
    assert first_cycle(items) == (5009, (5000, 2))


# Tokens from 100 on are numbers, from 90 on signs; all others are words.
KINDS = TokenKinds(
    ((np.arange(200) < 90) | (np.arange(200) >= 100)).astype(int),
    (np.arange(200) >= 90) & (np.arange(200) < 100),
    np.arange(200) >= 100,
)


def first_loop(tokens):
    detector = LoopDetector(KINDS)
    return next((cycle for t in tokens if (cycle := detector.add(t)) is not None), None)


def test_words_are_counted_where_they_begin():
    texts = [" cat", "ing", ",", "在房", " 12", "12", "", "\n- The"]
    kinds = TokenKinds.from_texts(texts)
    assert kinds.words.tolist() == [1, 0, 0, 2, 1, 0, 0, 1]
    assert np.flatnonzero(kinds.is_number).tolist() == [4, 5]
    assert np.flatnonzero(kinds.is_sign).tolist() == [2, 6]


def test_a_phrase_with_another_number_each_time_is_a_loop():
    phrase = [1, 2, 3, 4, 5, 6, 7]
    counting = [t for n in range(7) for t in (100 + n, *phrase)]
    # The cycle begins with a word, so that there is something to forbid.
    assert first_loop(counting) == Cycle(1, (*phrase, 101))
    assert first_loop(counting[: 8 * 5]) is None


def test_counting_alone_is_none():
    assert first_loop([t for n in range(60) for t in (100 + n, 1)]) is None
    assert first_loop(list(range(100, 200))) is None


def test_exact_loops_of_numbers_are_found():
    assert first_loop([101, 102] * 5) == Cycle(0, (101, 102))


def test_the_end_is_compared_numbers_aside():
    detector = LoopDetector(KINDS)
    for token in (1, 2, 3, 105):
        detector.add(token)
    assert detector.ends_with((2, 3, 150))
    assert not detector.ends_with((2, 4, 150))
    detector.rewind(3)
    assert not detector.ends_with((2, 3, 150))
    assert detector.copy().ends_with((2, 3))


def test_signs_between_the_words_do_not_matter():
    words = [1, 2, 90, 1, 2, 91, 1, 2, 92, 93, 1, 2, 1, 2]
    assert first_loop(words[:-1]) is None
    assert first_loop(words) == Cycle(0, (1, 2, 90))
    detector = LoopDetector(KINDS)
    for token in words[:6]:
        detector.add(token)
    assert detector.ends_with((1, 2, 90))
    assert not detector.ends_with((2, 1))


def test_signs_alone_need_24():
    assert first_loop([90] * 23) is None
    assert first_loop([1] + [90, 91] * 12) == Cycle(1, (90, 91))


@given(st.lists(st.sampled_from([1, 2, 90, 91, 101, 102]), max_size=40), st.integers(0, 40))
def test_a_detector_that_was_set_back_goes_on_as_a_fresh_one(tokens, length):
    length = min(length, len(tokens))
    used, fresh = LoopDetector(KINDS), LoopDetector(KINDS)
    for token in tokens:
        used.add(token)
    used.rewind(length)
    for token in tokens[:length]:
        fresh.add(token)
    for token in tokens:
        assert used.add(token) == fresh.add(token)
        assert used.ends_with((1, 90)) == fresh.ends_with((1, 90))
