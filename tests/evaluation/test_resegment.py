import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import resegment


@pytest.mark.parametrize(
    ("prediction", "references", "segments"),
    [
        # Nothing is wrong but the line breaks.
        ("a b\nc d e", ["a b c", "d e"], ["a b c", "d e"]),
        ("a b c", ["a b c"], ["a b c"]),
        # A substitution beside the cut; b of the second line is matched.
        ("a x b c", ["a a", "b c"], ["a x", "b c"]),
        # The second line was left out.
        ("a b e f", ["a b", "c d", "e f"], ["a b", "", "e f"]),
        # The first line was left out, and the last.
        ("c d", ["a b", "c d", "e f"], ["", "c d", ""]),
        # A line was said twice: the copy is inserted somewhere, both ways cost 2.
        ("a b a b c", ["a b", "c"], ["a b", "a b c"]),
        # Case matters: "B" is not "b", so the first "b" to match is the last word.
        ("a B b", ["a", "b"], ["a", "B b"]),
        # Empty lines take nothing.
        ("x y", ["", "x y", "", "z"], ["", "x y", "", ""]),
        # All words are wrong: one for one costs 2, any other cut 3.
        ("x y", ["a", "b"], ["x", "y"]),
        # All words are wrong and too few: 4 however it is cut; the earliest cut.
        ("x y", ["a a", "b b"], ["", "x y"]),
    ],
)
def test_words_by_hand(prediction, references, segments):
    assert resegment(prediction, references) == segments


@pytest.mark.parametrize(
    ("prediction", "references", "segments"),
    [
        # x is inserted before or after the cut, both cost 1: the earliest cut ...
        ("a b x c d", ["a b", "c d"], ["a b", "x c d"]),
        # ... unless a sentence ends after it (here two edits either way: b for "b." is one).
        ("a b x. c d", ["a b", "c d"], ["a b x.", "c d"]),
        ("a b (x!) c d", ["a b", "c d"], ["a b (x!)", "c d"]),
        # ... or before it.
        ("a b. x c d", ["a b.", "c d"], ["a b.", "x c d"]),
        # The distance comes first: a sentence end elsewhere does not move the cut.
        ("a. b c d", ["a. b", "c d"], ["a. b", "c d"]),
        # Of two sentence ends the earlier one.
        ("a x. y. b", ["a", "b"], ["a x.", "y. b"]),
    ],
)
def test_ties_by_hand(prediction, references, segments):
    assert resegment(prediction, references) == segments


@pytest.mark.parametrize(
    ("prediction", "references", "segments"),
    [
        ("你好。再见。", ["你好。", "再见。"], ["你好。", "再见。"]),
        # 朋 and 友 are inserted; the full stop decides.
        ("你好朋友。再见", ["你好", "再见"], ["你好朋友。", "再见"]),
        ("好朋。。友我", ["好", "我"], ["好朋。。", "友我"]),
        ("他说：“好。”我走", ["他说好", "我走"], ["他说：“好。”", "我走"]),
        # Blanks count for nothing, and stay; a line break goes where no blank belongs.
        (
            "用 deep learning 吧。\n好",
            ["用deep learning吧。", "好"],
            ["用 deep learning 吧。", "好"],
        ),
        ("我们用\ndeep\n\nnets 好的", ["我们用deepnets", "好"], ["我们用deep nets", "好的"]),
        ("你\n好 \n ，我", ["你好，", "我"], ["你好，", "我"]),
        # A decimal point ends nothing.
        ("甲3.5乙", ["甲", "乙"], ["甲", "3.5乙"]),
        ("", ["你好", "我"], ["", ""]),
    ],
)
def test_characters_by_hand(prediction, references, segments):
    assert resegment(prediction, references, characters=True) == segments


def test_an_empty_prediction_is_as_many_empty_segments():
    assert resegment(" \n ", ["a b", "", "c"]) == ["", "", ""]


def test_no_reference_is_refused():
    with pytest.raises(InputError, match="references: no line"):
        resegment("a", [])


# ---- against all ways to cut --------------------------------------------------------------------


def distance(left, right):
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def best_of_all(units, lines, ends_sentence):
    """Smallest distance, then most sentence ends, then earliest cuts, by trying all."""

    def rank(cuts):
        bounds = [0, *cuts, len(units)]
        pieces = [units[a:b] for a, b in itertools.pairwise(bounds)]
        total = sum(map(distance, pieces, lines))
        return total, -sum(cut > 0 and ends_sentence(units[cut - 1]) for cut in cuts), cuts

    all_cuts = itertools.combinations_with_replacement(range(len(units) + 1), len(lines) - 1)
    cuts = [0, *min(all_cuts, key=rank), len(units)]
    return [units[a:b] for a, b in itertools.pairwise(cuts)]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "a.", "b?"]), max_size=7)
# Of two full stops in a row only the second ends a sentence: that is left to the cases by hand.
CHARACTERS = st.text("甲乙a。", max_size=7).map(lambda text: re.sub("。+", "。", text))


@settings(max_examples=300, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_words_against_all_ways_to_cut(words, lines):
    segments = resegment(" ".join(words), [" ".join(line) for line in lines])
    assert segments == [
        " ".join(piece) for piece in best_of_all(words, lines, lambda w: w[-1] in ".?")
    ]


@settings(max_examples=300, deadline=None)
@given(CHARACTERS, st.lists(CHARACTERS, min_size=1, max_size=4))
def test_characters_against_all_ways_to_cut(text, lines):
    expected = best_of_all(text, lines, lambda character: character == "。")
    assert resegment(text, lines, characters=True) == expected


@given(st.text(), st.lists(st.text(), min_size=1, max_size=5), st.booleans())
def test_no_word_is_lost(text, lines, characters):
    segments = resegment(text, lines, characters=characters)
    assert len(segments) == len(lines)
    if characters:
        assert "".join("".join(segments).split()) == "".join(text.split())
    else:
        assert " ".join(segments).split() == text.split()


def test_a_long_text():
    lines = [" ".join(f"w{line}-{word % 13}" for word in range(60)) for line in range(100)]
    prediction = " ".join(lines).replace("-3", "-x")
    assert resegment(prediction, lines) == [line.replace("-3", "-x") for line in lines]
