import random
from collections import Counter

import pytest

from torchtune_speech.nano._grammar import LANGUAGES, UNANSWERABLE, draw_sentence, parse_sentence
from torchtune_speech.nano._lexicon import INTRANSITIVE_VERBS, TRANSITIVE_VERBS
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
        ((prompt, answer),) = row["turns"]
        text, instruction = prompt.split("\n")
        assert text in (answer, answer.rstrip("."))
        assert instruction


def test_whole_sentences_are_never_translated_or_asked_about(rows, drawn):
    """Those are the tasks that stage B has to bring."""
    sentences = {sentence.text(lang)[:-1] for sentence in drawn for lang in LANGUAGES}
    for row in of_kind(rows, "phrase") + of_kind(rows, "span"):
        assert row["turns"][0][0].split("\n")[0].rstrip(".") not in sentences
        for _, answer in row["turns"]:
            assert answer.rstrip(".。") not in sentences
        # Those that phrases and notes are cut from are drawn apart: English ones are parsed.
        for text in (row["turns"][0][0].split("\n")[0], *(answer for _, answer in row["turns"])):
            with pytest.raises(ValueError, match="no sentence of the nano world"):
                parse_sentence(f"{text[:1].upper()}{text[1:].rstrip('.')}.")


def asked(rows):
    """Yields notes, question and answer."""
    for row in of_kind(rows, "span"):
        notes, first = row["turns"][0][0].split("\n")
        for question, answer in [(first, row["turns"][0][1]), *row["turns"][1:]]:
            yield notes, question.split(": ")[-1], answer


def test_answers_stand_in_english_notes(rows):
    answered = 0
    for notes, question, answer in asked(rows):
        if question.startswith(("What", "Where", "When", "Who")) and answer != UNANSWERABLE["en"]:
            assert answer.rstrip(".").lower() in notes.lower()
            answered += 1
    assert answered > 100


def test_some_questions_have_no_answer(rows):
    answers = [answer for _, _, answer in asked(rows)]
    nothing = sum(answer in UNANSWERABLE.values() for answer in answers)
    assert 0.5 < nothing / len(answers) < 0.6


def test_a_deed_that_is_not_in_the_notes_has_no_answer(rows):
    """And one that is there has, if the notes say what is asked: only the deed can tell."""
    verbs = {verb.base: verb.en for verb in (*INTRANSITIVE_VERBS, *TRANSITIVE_VERBS)}
    seen = Counter()
    for notes, question, answer in asked(rows):
        if not question.startswith("Who"):
            continue
        (verb,) = [verbs[word] for word in question.rstrip("?").split(", ") if word in verbs]
        there = verb in notes.rstrip(".").split(", ")
        assert there == (answer != UNANSWERABLE["en"])
        seen[there] += 1
    assert min(seen.values()) > 20


def test_most_answers_are_english_whatever_language_asks(rows):
    answers = [answer for row in of_kind(rows, "span") for _, answer in row["turns"]]
    said = Counter(answer for answer in answers if answer in UNANSWERABLE.values())
    # A quarter of the questions is English anyway: .25 + .75 * .75.
    assert 0.78 < said[UNANSWERABLE["en"]] / said.total() < 0.85
    assert all(said[UNANSWERABLE[lang]] for lang in LANGUAGES)
