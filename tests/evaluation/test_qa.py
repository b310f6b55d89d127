from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import (
    UNANSWERABLE,
    answer_f1,
    contains_answer,
    exact_match,
    qa,
)


@pytest.mark.parametrize(
    ("reference", "prediction", "lang", "same"),
    [
        ("The garden.", "garden", "en", True),
        ("In the garden", "in garden!", "en", True),
        ("garden", "gardens", "en", False),
        ("Im Garten.", "im garten", "de", True),
        ("der Garten", "Garten", "de", False),
        ("无法回答。", "无法回答", "zh", True),
        ("无法回答。", "无法 回答", "zh", False),
        ("A", "", "en", False),  # a bare article is an answer: option A
        ("A", "A.", "en", True),
        ("A", "the", "en", False),
        ("?", "", "en", False),
        ("a an the", "the an a", "en", False),
    ],
)
def test_exact_match(reference, prediction, lang, same):
    assert exact_match(reference, prediction, lang) is same


@pytest.mark.parametrize(
    ("reference", "prediction", "lang", "expected"),
    [
        ("the big garden", "a garden in May", "en", 2 * 1 / (2 + 3)),
        ("red red blue", "red red red", "en", 2 / 3),  # the third "red" has no partner
        ("在花园里", "花园", "zh", 2 * 2 / (4 + 2)),
        ("im Garten", "auf dem Berg", "de", 0.0),
        ("garden", "", "en", 0.0),
        ("", "", "en", 1.0),
    ],
)
def test_f1(reference, prediction, lang, expected):
    assert answer_f1(reference, prediction, lang) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "prediction", "lang", "held"),
    [
        ("At the station.", "The doctor waits at the station.", "en", True),
        ("At the station.", "The doctor waits at a station, I think.", "en", True),
        ("At the station.", "The station is where the doctor waits.", "en", False),
        ("Seven.", "The nurse buys seventy apples.", "en", False),  # whole words
        ("Im Garten.", "Die Königin singt im Garten.", "de", True),
        ("七个。", "护士买七个红色的苹果。", "zh", True),
        ("Not answerable.", "Not answerable.", "en", True),
        ("Every day.", "Not every day.", "en", True),  # it cannot tell
        ("seven red apples", "seven red", "en", False),
        ("garden", "", "en", False),
        ("", "garden", "en", False),
    ],
)
def test_containment(reference, prediction, lang, held):
    assert contains_answer(reference, prediction, lang) is held


answers = st.lists(st.sampled_from(["the", "a", "red", "dog", "花", "园"]), max_size=5).map(
    " ".join
)


@given(answers, answers)
def test_f1_is_symmetric_and_one_only_for_the_same_words(a, b):
    f1 = answer_f1(a, b)
    assert 0.0 <= f1 <= 1.0
    assert f1 == pytest.approx(answer_f1(b, a))
    assert not exact_match(a, b) or f1 == 1.0
    assert not exact_match(a, b) or contains_answer(a, b)


def test_report_by_hand():
    references = ["The garden", "In May", "Not answerable.", "Nicht zu beantworten.", "im Garten"]
    predictions = ["garden", "in June", "not answerable", "im Garten", "Nicht zu beantworten."]
    result = qa(references, predictions, ["en", "en", "en", "de", "de"])
    assert result["accuracy"] == pytest.approx(2 / 5)
    assert result["f1"] == pytest.approx((1 + 0.5 + 1 + 0 + 0) / 5)
    assert result["containment"] == pytest.approx(2 / 5)
    assert result["unanswerable_accuracy"] == pytest.approx(1 / 2)
    assert result["answerable_accuracy"] == pytest.approx(1 / 3)
    assert (result["n"], result["n_unanswerable"]) == (5, 2)
    assert result["en"]["accuracy"] == pytest.approx(2 / 3)
    assert result["en"]["unanswerable_accuracy"] == 1.0
    assert result["de"]["accuracy"] == 0.0
    assert result["de"]["n"] == 2


def test_refusing_in_another_language_is_wrong():
    result = qa(["Nicht zu beantworten."], ["Not answerable."], "de")
    assert (result["unanswerable_accuracy"], result["answerable_accuracy"]) == (0.0, None)


def test_own_phrases():
    result = qa(["Sans réponse.", "oui"], ["sans réponse", "non"], "fr", {"fr": "Sans réponse."})
    assert (result["unanswerable_accuracy"], result["n_unanswerable"]) == (1.0, 1)
    assert qa(["Sans réponse."], ["oui"], "fr")["n_unanswerable"] == 0


def test_phrases_are_those_of_the_prompts():
    folder = files("torchtune_speech") / "data" / "templates"
    templates = yaml.safe_load((folder / "mcif_fixed.yaml").read_text(encoding="utf-8"))
    assert templates["unanswerable"] == UNANSWERABLE


def test_unequal_or_no_texts_are_refused():
    with pytest.raises(InputError):
        qa(["a"], [], "en")
    with pytest.raises(InputError):
        qa([], [], "en")


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("1,000", "1000", True),
        ("U.S.", "US", True),
        ("at 9:30", "at 930", True),
        ("well-known", "well known", False),
        ("the doctor's", "doctors", True),
        ("?", "!", False),
        ("?", "", False),
    ],
)
def test_english_is_normalised_as_for_squad(one, two, same):
    assert exact_match(one, two) is same
    assert (answer_f1(one, two) == 1.0) is same


def test_other_languages_keep_words_of_punctuation_apart():
    assert exact_match("Nord-Süd", "Nord Süd", "de") and not exact_match("9:30", "930", "de")
