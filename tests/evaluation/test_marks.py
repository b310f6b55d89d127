"""Punctuation, word boundaries and capitals, counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import marks


def counts(reference, prediction, kind):
    """Marks found, in the reference and in the prediction."""
    scores = marks([reference], [prediction])[kind]
    return scores["found"], scores["reference"], scores["predicted"]


BY_HAND = {
    "identical": ("Yes, it is.", "Yes, it is.", (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    "missing comma": ("Yes, it is.", "Yes it is.", (1, 2, 1), (2, 2, 2), (1, 1, 1)),
    "comma too many": ("Yes it is.", "Yes, it is.", (1, 1, 2), (2, 2, 2), (1, 1, 1)),
    "wrong mark": ("Yes, it is.", "Yes. it is.", (1, 2, 2), (2, 2, 2), (1, 1, 1)),
    "mark elsewhere": ("a b, c d", "a, b c d", (0, 1, 1), (3, 3, 3), (0, 0, 0)),
    "split word": ("today it rains", "to day it rains", (0, 0, 0), (2, 2, 3), (0, 0, 0)),
    "merged words": ("an ice cream", "an icecream", (0, 0, 0), (1, 2, 1), (0, 0, 0)),
    "space elsewhere": ("an iceberg", "a niceberg", (0, 0, 0), (0, 1, 1), (0, 0, 0)),
    "misheard word": ("The dog, too.", "The fox, too.", (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    "no capitals": ("In May Ann left.", "in may ann left.", (1, 1, 1), (3, 3, 3), (0, 3, 0)),
    "other capital": ("In May.", "in mAy.", (1, 1, 1), (1, 1, 1), (0, 2, 1)),
    "word in capitals": ("go, it.", "IT,", (0, 2, 1), (0, 1, 0), (0, 0, 2)),
    "capital of another word": ("Tom left", "Ann left", (0, 0, 0), (1, 1, 1), (0, 1, 1)),
    "nothing written": ("Yes, it is.", "", (0, 2, 0), (0, 2, 0), (0, 1, 0)),
    "nothing said": ("", "Oh, no.", (0, 0, 2), (0, 0, 1), (0, 0, 1)),
    "spelling": ("it's l’acqua", "it’s l'acqua", (0, 0, 0), (1, 1, 1), (0, 0, 0)),
    "quotation": ("it is 'fine'", "it is fine", (0, 2, 0), (2, 2, 2), (0, 0, 0)),
    "whitespace": (" a  b\nc ", "a b c", (0, 0, 0), (2, 2, 2), (0, 0, 0)),
    "longer in lower case": ("İİ, a B", "ii, a B", (1, 1, 1), (2, 2, 2), (1, 3, 1)),
    "Chinese": ("你好，世界。", "你 好, 世界。", (1, 2, 2), (0, 0, 0), (0, 0, 0)),
    "two scripts": ("用 Python 写 a b", "用Python写 a b", (0, 0, 0), (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_counts_by_hand(case):
    reference, prediction, *expected = BY_HAND[case]
    kinds = ("punctuation", "word_boundaries", "capitals")
    assert [counts(reference, prediction, kind) for kind in kinds] == expected


def test_scores_are_of_the_corpus():
    # Found 1 + 1 of 2 + 1 marks, of which 1 + 3 were written.
    scores = marks(["Yes, it is.", "No."], ["Yes it is.", "N-o-."])["punctuation"]
    assert scores == {
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        "found": 2,
        "reference": 3,
        "predicted": 4,
    }


def test_identical_texts_score_one():
    for scores in marks(["Yes, Ann is.", "no"], ["Yes, Ann is.", "no"]).values():
        assert (scores["precision"], scores["recall"], scores["f1"]) == (1, 1, 1)


def test_without_a_mark_in_the_references_there_is_no_score():
    for prediction in ("ab", "A, B."):
        for scores in marks(["ab"], [prediction]).values():
            assert (scores["precision"], scores["recall"], scores["f1"]) == (None, None, None)


def test_without_a_mark_in_the_predictions_there_is_no_precision():
    for scores in marks(["Yes, it is."], [""]).values():
        assert (scores["precision"], scores["recall"], scores["f1"]) == (None, 0, 0)


@given(st.text("aB ,.'你，", max_size=12), st.text("aB ,.'你，", max_size=12))
def test_no_more_is_found_than_there_is(reference, prediction):
    for scores in marks([reference], [prediction]).values():
        assert scores["found"] <= min(scores["reference"], scores["predicted"])


def test_unequal_or_no_texts_are_refused():
    with pytest.raises(InputError, match="1 texts for 2 references"):
        marks(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no text to score"):
        marks([], [])
