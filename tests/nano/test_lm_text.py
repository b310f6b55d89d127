import random
from collections import Counter

import pytest

from torchtune_speech.nano._grammar import LANGUAGES, UNANSWERABLE, draw_sentence
from torchtune_speech.nano._lm_text import SHARES, lm_rows


@pytest.fixture(scope="module")
def drawn():
    return []


@pytest.fixture(scope="module")
def rows(drawn):
    rng = random.Random(0)

    def draw():
        drawn.append(draw_sentence(rng))
        return drawn[-1]

    return list(lm_rows(rng, draw, 4000))


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_all_habits_are_there(rows):
    kinds = Counter(row["kind"] for row in rows)
    assert set(kinds) == set(SHARES)
    for kind, share in SHARES.items():
        assert abs(kinds[kind] / len(rows) - share) < 0.03


def test_what_is_repeated_stands_in_the_prompt(rows):
    for row in of_kind(rows, "repeat"):
        text, instruction = row["prompt"].split("\n")
        assert text in (row["target"], row["target"].rstrip("."))
        assert instruction


def test_whole_sentences_are_never_translated_or_asked_about(rows, drawn):
    """Those are the tasks that stage B has to bring."""
    sentences = {sentence.text(lang)[:-1] for sentence in drawn for lang in LANGUAGES}
    for row in of_kind(rows, "phrase") + of_kind(rows, "span"):
        assert row["prompt"].split("\n")[0].rstrip(".") not in sentences
        assert row["target"].rstrip(".。") not in sentences


def test_answers_stand_in_english_notes(rows):
    answered = 0
    for row in of_kind(rows, "span"):
        text, question = row["prompt"].split("\n")
        if (
            question.startswith(("What", "Where", "When", "Who"))
            and row["target"] != UNANSWERABLE["en"]
        ):
            assert row["target"].rstrip(".").lower() in text.lower()
            answered += 1
    assert answered > 100


def test_some_questions_have_no_answer(rows):
    spans = of_kind(rows, "span")
    nothing = sum(row["target"] in UNANSWERABLE.values() for row in spans)
    assert 0.3 < nothing / len(spans) < 0.5


def test_running_text_is_sentences(rows, drawn):
    sentences = {sentence.text(lang) for sentence in drawn for lang in LANGUAGES}
    for row in of_kind(rows, "continue"):
        assert row["prompt"] == ""
        assert any(row["target"].startswith(sentence) for sentence in sentences)
