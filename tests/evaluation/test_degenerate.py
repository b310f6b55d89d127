import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.evaluation import is_empty, repetition_loop


@pytest.mark.parametrize("text", ["", " \n", "!!!!!!", "。", "- ..."])
def test_nothing_is_empty(text):
    assert is_empty(text)


@pytest.mark.parametrize("text", ["a", "7", "è", "无", "!x"])
def test_a_letter_or_digit_is_something(text):
    assert not is_empty(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no",
        "no no no no",
        "very very good",
        "that is very very very very good",
        "bye bye bye bye bye",
        "and so on and so on and so on",
        "row row row your boat gently down the stream",
        "the man who had had had had had had no effect",  # repetition in the middle
        "one two three four five six seven eight nine ten",
        "to be or not to be that is the question to be or not to be",
        "ha ha ha ha ha ha",
        "1000000000000",
        "Hmmmmmmmm...",
        "好好好",
        "谢谢谢谢",
        "哈哈哈哈哈哈",
        "人人为我我为人人",
        "说一遍，再说一遍，再说一遍",
    ],
)
def test_healthy_repetition_is_no_loop(text):
    assert repetition_loop(text) is None


@pytest.mark.parametrize(
    ("text", "unit", "repeats"),
    [
        ("the " * 12, ("the",), 12),
        ("so I think, I think, I think I think. I think", ("i", "think"), 5),
        ("we saw " + "the big red house " * 3, ("the", "big", "red", "house"), 3),
        ("of the of the of the of the of the of", ("of", "the"), 5),  # unfinished last cycle
        ("my word " * 6 + "my wo", ("my", "word"), 6),  # cut in the middle of a word
        ("我不知道" * 4, tuple("我不知道"), 4),
        ("他说，" + "是的，" * 6, ("是", "的"), 6),
        ("ha" * 30, ("h", "a"), 30),
        ("Hello" + "!" * 40, ("!",), 40),
        ("你好" + "！" * 40, ("！",), 40),
    ],
)
def test_loops_are_found(text, unit, repeats):
    loop = repetition_loop(text)
    assert loop is not None
    assert (loop.unit, loop.repeats) == (unit, repeats)


def test_token_ids():
    tokens = [5, 9, 9, *[1, 2, 3] * 4, 1]
    loop = repetition_loop(tokens)
    assert (loop.unit, loop.start, loop.length, loop.repeats) == ((1, 2, 3), 3, 13, 4)
    assert repetition_loop(list(range(100))) is None
    assert repetition_loop([7] * 9) is None
    assert repetition_loop([7] * 9, min_length=9).repeats == 9


@given(
    prefix=st.lists(st.integers(100, 200), max_size=20),
    period=st.integers(1, 6),
    cycles=st.integers(3, 12),
)
def test_a_long_enough_loop_is_found_after_any_prefix(prefix, period, cycles):
    loop = repetition_loop(prefix + list(range(period)) * cycles)
    assert (loop is not None) == (period * cycles >= 10)
    if loop:
        assert (loop.start, loop.repeats) == (len(prefix), cycles)
        assert loop.unit == tuple(range(period))


@given(st.lists(st.integers(), unique=True))
def test_without_repetition_there_is_no_loop(tokens):
    assert repetition_loop(tokens) is None


@given(st.lists(st.integers(0, 2), max_size=40))
def test_what_is_reported_is_a_loop(tokens):
    loop = repetition_loop(tokens)
    if loop:
        period = len(loop.unit)
        tail = tokens[loop.start : loop.start + loop.length]
        assert tail == (list(loop.unit) * (loop.repeats + 1))[: loop.length]
        assert loop.length >= max(10, 3 * period)
        assert loop.start + loop.length in (len(tokens), len(tokens) - 1)


def test_a_phrase_that_counts_on_is_a_loop():
    lines = [f"{n}. The Book of the Book, by John" for n in range(95, 101)]
    loop = repetition_loop(" ".join(lines))
    assert loop.unit == ("95", "the", "book", "of", "the", "book", "by", "john")
    assert repetition_loop(" ".join(lines[:5])) is None
    assert repetition_loop(", ".join(map(str, range(40)))) is None
    table = " ".join(f"{n} | {n / 7:.2f}" for n in range(30))
    assert repetition_loop(table) is None
