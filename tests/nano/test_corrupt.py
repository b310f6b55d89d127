import random
from itertools import islice

import pytest

from torchtune_speech.nano import _lexicon as lexicon
from torchtune_speech.nano._corrupt import ANSWER_KINDS, make_answer
from torchtune_speech.nano._grammar import (
    LANGUAGES,
    UNANSWERABLE,
    Sentence,
    answer_phrase,
    answerable_kinds,
    ask,
    draw_sentences,
)
from torchtune_speech.nano._paraphrase import paraphrases


def entry(table, en):
    (found,) = [e for e in table if e.en == en]
    return found


DOCTOR = Sentence(
    subject=entry(lexicon.SUBJECTS, "doctor"),
    verb=entry(lexicon.INTRANSITIVE_VERBS, "waits"),
    place=entry(lexicon.PLACES, "near the school"),
    time=entry(lexicon.TIMES, "every Monday"),
    time_first=True,
)
OLD_DOCTOR = Sentence(
    subject=DOCTOR.subject,
    verb=DOCTOR.verb,
    adjective=entry(lexicon.SUBJECT_ADJECTIVES, "old"),
    time=DOCTOR.time,
)
NURSE = Sentence(
    subject=entry(lexicon.SUBJECTS, "nurse"),
    verb=entry(lexicon.TRANSITIVE_VERBS, "buys"),
    number=entry(lexicon.NUMBERS, "eight"),
    thing_adjective=entry(lexicon.THING_ADJECTIVES, "red"),
    thing=entry(lexicon.THINGS, "hats"),
    place=entry(lexicon.PLACES, "in the garden"),
)


@pytest.mark.parametrize(
    ("sentence", "kind", "expected"),
    [
        (
            OLD_DOCTOR,
            "who",
            {
                "en": {
                    "sentence": "The old doctor waits every Monday.",
                    "order": "It is the old doctor who waits every Monday.",
                    "article": "Old doctor.",
                    "synonym": "The old physician.",
                },
                "de": {
                    "sentence": "Der alte Arzt wartet jeden Montag.",
                    "order": "Es ist der alte Arzt, der jeden Montag wartet.",
                    "article": "Alter Arzt.",
                    "synonym": "Der alte Mediziner.",
                },
                "it": {
                    "sentence": "Il medico anziano aspetta ogni lunedì.",
                    "order": "È il medico anziano che aspetta ogni lunedì.",
                    "article": "Medico anziano.",
                    "synonym": "Il dottore anziano.",
                },
                "zh": {
                    "sentence": "年老的医生每星期一等待。",
                    "order": "每星期一等待的是年老的医生。",
                    "synonym": "年老的大夫。",
                },
            },
        ),
        (
            DOCTOR,
            "where",
            {
                "en": {
                    "sentence": "The doctor waits near the school.",
                    "order": "Near the school the doctor waits.",
                    "synonym": "Close to the school.",
                },
                "de": {
                    "sentence": "Der Arzt wartet nahe der Schule.",
                    "order": "Nahe der Schule wartet der Arzt.",
                    "synonym": "Nahe bei der Schule.",
                },
                "it": {
                    "sentence": "Il medico aspetta vicino alla scuola.",
                    "order": "È vicino alla scuola che aspetta il medico.",
                    "synonym": "Accanto alla scuola.",
                },
                "zh": {
                    "sentence": "医生在学校附近等待。",
                    "order": "医生是在学校附近等待的。",
                    "synonym": "在学校旁边。",
                },
            },
        ),
        (
            DOCTOR,
            "when",
            {
                "en": {
                    "sentence": "The doctor waits every Monday.",
                    "order": "Every Monday the doctor waits.",
                    "synonym": "Each Monday.",
                },
                "de": {
                    "sentence": "Der Arzt wartet jeden Montag.",
                    "order": "Jeden Montag wartet der Arzt.",
                    "synonym": "Montags.",
                },
                "it": {
                    "sentence": "Il medico aspetta ogni lunedì.",
                    "order": "Ogni lunedì il medico aspetta.",
                    "synonym": "Di lunedì.",
                },
                "zh": {
                    "sentence": "医生每星期一等待。",
                    "order": "每星期一医生等待。",
                    "synonym": "每周一。",
                },
            },
        ),
        (
            NURSE,
            "what",
            {
                "en": {
                    "sentence": "The nurse buys eight red hats.",
                    "order": "What the nurse buys is eight red hats.",
                    "article": "The eight red hats.",
                    "synonym": "8 red hats.",
                },
                "de": {
                    "sentence": "Die Krankenschwester kauft acht rote Hüte.",
                    "order": "Was die Krankenschwester kauft, sind acht rote Hüte.",
                    "article": "Die acht roten Hüte.",
                    "synonym": "8 rote Hüte.",
                },
                "it": {
                    "sentence": "L'infermiera compra otto cappelli rossi.",
                    "order": "Ciò che compra l'infermiera sono otto cappelli rossi.",
                    "article": "Gli otto cappelli rossi.",
                    "synonym": "8 cappelli rossi.",
                },
                "zh": {
                    "sentence": "护士买八顶红色的帽子。",
                    "order": "护士买的是八顶红色的帽子。",
                    "synonym": "8顶红色的帽子。",
                },
            },
        ),
        (
            NURSE,
            "how many",
            {
                "en": {
                    "sentence": "The nurse buys eight red hats.",
                    "order": "The number of hats is eight.",
                    "synonym": "8.",
                },
                "de": {
                    "sentence": "Die Krankenschwester kauft acht rote Hüte.",
                    "order": "Die Zahl der Hüte ist acht.",
                    "synonym": "8.",
                },
                "it": {
                    "sentence": "L'infermiera compra otto cappelli rossi.",
                    "order": "Il numero di cappelli è otto.",
                    "synonym": "8.",
                },
                "zh": {
                    "sentence": "护士买八顶红色的帽子。",
                    "order": "帽子的数量是八顶。",
                    "synonym": "8顶。",
                },
            },
        ),
    ],
)
def test_paraphrases(sentence, kind, expected):
    assert {lang: paraphrases(sentence, kind, lang) for lang in LANGUAGES} == expected


def test_an_elided_article_is_dropped_too():
    assert paraphrases(NURSE, "who", "it")["article"] == "Infermiera."


def ways(sentence, question_kind, lang, kind, draws=60):
    """All answers of a kind that many draws give: way -> texts."""
    found = {}
    for seed in range(draws):
        answer = make_answer(sentence, question_kind, lang, kind, random.Random(seed))
        assert answer.right is ANSWER_KINDS[kind] and answer.kind == kind
        found.setdefault(answer.way, set()).add(answer.text)
    return found


@pytest.mark.parametrize(
    ("lang", "negated", "cut", "cut_sentence"),
    [
        ("en", "Not near the school.", "Near", "The doctor waits"),
        ("de", "Nicht nahe der Schule.", "Nahe", "Der Arzt wartet"),
        ("it", "Non vicino alla scuola.", "Vicino", "Il medico aspetta"),
        ("zh", "不在学校附近。", "在学", "医生"),
    ],
)
def test_negated_and_truncated(lang, negated, cut, cut_sentence):
    assert ways(DOCTOR, "where", lang, "negation") == {"phrase": {negated}}
    truncated = ways(DOCTOR, "where", lang, "truncated")
    assert truncated == {"phrase": {cut}, "sentence": {cut_sentence}}


def test_half_an_answer_that_is_another_answer_is_not_taken():
    tonight = Sentence(DOCTOR.subject, DOCTOR.verb, time=entry(lexicon.TIMES, "tonight"))
    assert ways(tonight, "when", "de", "truncated") == {"sentence": {"Der Arzt wartet"}}  # heute
    assert ways(NURSE, "how many", "zh", "truncated") == {"sentence": {"护士买"}}  # 八 of 八顶
    assert ways(tonight, "when", "en", "truncated")["phrase"] == {"Ton"}
    assert ways(NURSE, "who", "it", "truncated") == {"phrase": {"L'"}, "sentence": {"È"}}


def test_verbose_answers_hold_the_answer():
    answers = ways(DOCTOR, "when", "de", "verbose")
    assert answers["short"] == {"Die Antwort lautet: jeden Montag."}
    (long,) = answers["long"]
    assert "lautet die Antwort: jeden Montag. Sagen" in long


def test_another_language_and_refusal():
    answers = ways(NURSE, "who", "en", "wrong_language")
    assert answers == {lang: {ask(NURSE, "who", lang).answer} for lang in ("de", "it", "zh")}
    assert ways(NURSE, "who", "it", "refusal") == {"fixed phrase": {UNANSWERABLE["it"]}}
    assert ways(NURSE, "who", "it", "exact") == {"reference": {"L'infermiera."}}


def test_wrong_times_neither_hold_nor_are_held_by_the_right_one():
    def wrong(time):
        sentence = Sentence(DOCTOR.subject, DOCTOR.verb, time=entry(lexicon.TIMES, time))
        return ways(sentence, "when", "en", "wrong_entity", draws=200)["phrase"]

    assert wrong("every Monday") == {
        f"Every {day}day." for day in ("Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun")
    }
    assert wrong("every morning") == {"Every evening."}
    for general in ("every day", "every year", "tonight", "before noon"):
        assert wrong(general) == {"After lunch.", "After work.", "After midnight."}
    assert wrong("after work") == {"Before noon.", "Before dinner.", "Before sunrise."}


def test_wrong_things_differ_in_one_thing():
    for text in ways(NURSE, "what", "en", "wrong_entity", draws=200)["phrase"]:
        number, adjective, thing = text.lower().rstrip(".").split()
        assert adjective == "red"
        assert (number == "eight") != (thing == "hats")


def many():
    for sentence in islice(draw_sentences(random.Random(5), set()), 150):
        for kind in answerable_kinds(sentence):
            for lang in LANGUAGES:
                yield sentence, kind, lang


def test_right_answers_hold_what_was_asked_and_wrong_ones_do_not():
    rng = random.Random(0)
    for sentence, question_kind, lang in many():
        reference = ask(sentence, question_kind, lang).answer
        phrase = answer_phrase(sentence, question_kind, lang)
        edge = "" if lang == "zh" else " "

        def holds(text, phrase=phrase, edge=edge):
            return f"{edge}{phrase.lower()}" in edge + text.lower()

        made = {
            kind: make_answer(sentence, question_kind, lang, kind, rng) for kind in ANSWER_KINDS
        }
        assert made["exact"].text == reference
        texts = [answer.text for answer in made.values()]
        assert len(set(texts)) == len(texts)
        assert holds(made["verbose"].text) and holds(made["negation"].text.replace("不", ""))
        if made["paraphrase"].way in ("sentence", "order"):
            assert holds(made["paraphrase"].text)
        for kind in ("wrong_entity", "wrong_language", "truncated", "refusal"):
            assert not holds(made[kind].text), made[kind]


def test_same_seed_same_answers():
    def made(seed):
        rng = random.Random(seed)
        return [make_answer(*case, kind, rng) for case in many() for kind in ANSWER_KINDS]

    assert made(1) == made(1)
    assert made(1) != made(2)
