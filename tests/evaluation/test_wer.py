import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import wer


def test_counts_by_hand():
    result = wer(["a b c d", "e f"], ["a x c", "e f g"], normalizer="basic")
    assert result == {
        "wer": 3 / 6,
        # "a b c d" (7): x for b, " d" deleted; "e f" (3): " g" inserted
        "cer": 5 / 10,
        "insertions": 1,
        "deletions": 1,
        "substitutions": 1,
        "reference_words": 6,
        "normalizer": "basic",
    }


def test_the_rate_is_of_the_corpus_and_no_mean_over_utterances():
    references = ["one two three four five six seven eight", "nine"]
    predictions = ["one two three four five six seven eight", "ten"]
    result = wer(references, predictions, normalizer="basic")
    assert result["wer"] == pytest.approx(1 / 9)
    mean = (0 / 8 + 1 / 1) / 2
    assert result["wer"] != pytest.approx(mean)


def test_rates_may_exceed_one():
    assert wer(["a"], ["b c d"], normalizer="basic")["wer"] == 3.0


def test_the_normalizer_changes_the_rate_and_is_named():
    reference, prediction = ["Twenty colours, Mr. Jones!"], ["20 colors mister jones"]
    assert wer(reference, prediction)["wer"] == 0.0
    assert wer(reference, prediction)["normalizer"] == "whisper"
    assert wer(reference, prediction, normalizer="basic")["wer"] == 3 / 4
    assert wer(reference, prediction, normalizer="none")["wer"] == 1.0


def test_each_text_is_normalized_in_its_own_language():
    texts = ["twenty colours", "twenty colours"], ["20 colors", "20 colors"]
    assert wer(*texts, langs="en")["wer"] == 0.0
    assert wer(*texts, langs=["en", "de"])["wer"] == 2 / 4


@pytest.mark.parametrize("prediction", ["无法回复", "无 法 回 复。", "无法 回复"])
def test_chinese_is_counted_in_characters_whatever_the_spaces(prediction):
    result = wer(["无法回答。"], [prediction], langs="zh")
    assert (result["wer"], result["cer"], result["reference_words"]) == (0.25, 0.25, 4)


def test_an_empty_prediction_deletes_its_reference():
    result = wer(["a b c", "d"], ["", "d"], normalizer="basic")
    assert (result["wer"], result["deletions"]) == (3 / 4, 3)


def test_words_for_an_empty_reference_are_insertions():
    # "uh" is nothing to Whisper's normaliser, so this happens with references that look fine.
    result = wer(["uh", "yes sir"], ["oh well", "yes sir"])
    assert (result["insertions"], result["reference_words"], result["wer"]) == (2, 2, 1.0)


def test_without_any_reference_word_the_rate_is_the_number_of_insertions():
    assert wer(["", "uh"], ["", ""])["wer"] == 0.0
    assert wer(["", "uh"], ["two words", ""])["wer"] == 2.0
    assert wer([""], ["abc"])["cer"] == 3.0


def test_unequal_or_no_texts_are_refused():
    with pytest.raises(InputError, match="1 texts for 2 references"):
        wer(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no text to score"):
        wer([], [])


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=6)


@given(pairs)
def test_it_agrees_with_jiwer_where_jiwer_is_defined(pairs):
    references, predictions = map(list, zip(*pairs, strict=True))
    result = wer(references, predictions, normalizer="none")
    assert result["wer"] == pytest.approx(jiwer.wer(references, predictions))
    assert result["cer"] == pytest.approx(jiwer.cer(references, predictions))


@given(pairs)
def test_the_order_of_utterances_does_not_matter(pairs):
    def rate(pairs):
        return wer([r for r, _ in pairs], [p for _, p in pairs], normalizer="none")

    assert rate(pairs) == rate(pairs[::-1])


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_text_has_no_errors_against_itself(texts):
    result = wer(texts, texts)
    assert (result["wer"], result["cer"]) == (0.0, 0.0)
