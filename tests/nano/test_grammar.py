import random
from itertools import islice

import pytest

from torchtune_speech.evaluation import contains_answer, normalizer, split_words
from torchtune_speech.nano import _lexicon as lexicon
from torchtune_speech.nano._grammar import (
    LANGUAGES,
    QUESTION_KINDS,
    UNANSWERABLE,
    Sentence,
    answerable_kinds,
    ask,
    draw_question,
    draw_sentence,
    draw_sentences,
    fluent_answer,
    parse_sentence,
    spoken_words,
)


def entry(table, en):
    (found,) = [e for e in table if e.en == en]
    return found


def doctor(**changes):
    said = {
        "subject": entry(lexicon.SUBJECTS, "doctor"),
        "verb": entry(lexicon.INTRANSITIVE_VERBS, "waits"),
        "place": entry(lexicon.PLACES, "at the station"),
        "time": entry(lexicon.TIMES, "every morning"),
    }
    return Sentence(**(said | changes))


def nurse():
    return Sentence(
        subject=entry(lexicon.SUBJECTS, "nurse"),
        verb=entry(lexicon.TRANSITIVE_VERBS, "buys"),
        number=entry(lexicon.NUMBERS, "seven"),
        thing_adjective=entry(lexicon.THING_ADJECTIVES, "red"),
        thing=entry(lexicon.THINGS, "apples"),
        place=entry(lexicon.PLACES, "in the garden"),
    )


def texts(sentence):
    return [sentence.text(lang) for lang in LANGUAGES]


def test_place_and_time():
    assert texts(doctor()) == [
        "The doctor waits at the station every morning.",
        "Der Arzt wartet jeden Morgen am Bahnhof.",
        "Il medico aspetta alla stazione ogni mattina.",
        "医生每天早上在车站等待。",
    ]


def test_time_in_front_keeps_the_german_verb_second():
    assert texts(doctor(time_first=True)) == [
        "Every morning the doctor waits at the station.",
        "Jeden Morgen wartet der Arzt am Bahnhof.",
        "Ogni mattina il medico aspetta alla stazione.",
        "每天早上医生在车站等待。",
    ]


def test_object_agrees_and_ends_the_german_sentence():
    assert texts(nurse()) == [
        "The nurse buys seven red apples in the garden.",
        "Die Krankenschwester kauft im Garten sieben rote Äpfel.",
        "L'infermiera compra sette mele rosse in giardino.",
        "护士在花园里买七个红色的苹果。",
    ]


def test_adjective_of_the_subject_agrees():
    old = entry(lexicon.SUBJECT_ADJECTIVES, "old")
    queen = entry(lexicon.SUBJECTS, "queen")
    assert texts(doctor(adjective=old, time=None)) == [
        "The old doctor waits at the station.",
        "Der alte Arzt wartet am Bahnhof.",
        "Il medico anziano aspetta alla stazione.",
        "年老的医生在车站等待。",
    ]
    assert doctor(adjective=old, subject=queen, place=None).text("it") == (
        "La regina anziana aspetta ogni mattina."
    )


def all_questions(sentence, lang, *, answerable):
    """What many draws give, as a mapping from question to answer."""
    rng = random.Random(0)
    drawn = [draw_question(sentence, lang, rng, answerable=answerable) for _ in range(200)]
    return {question.text: question.answer for question in drawn}


@pytest.mark.parametrize(
    ("lang", "expected"),
    [
        (
            "en",
            {
                "Who waits at the station?": "The doctor.",
                "Where does the doctor wait?": "At the station.",
                "When does the doctor wait?": "Every morning.",
            },
        ),
        (
            "de",
            {
                "Wer wartet am Bahnhof?": "Der Arzt.",
                "Wo wartet der Arzt?": "Am Bahnhof.",
                "Wann wartet der Arzt?": "Jeden Morgen.",
            },
        ),
        (
            "it",
            {
                "Chi aspetta alla stazione?": "Il medico.",
                "Dove aspetta il medico?": "Alla stazione.",
                "Quando aspetta il medico?": "Ogni mattina.",
            },
        ),
        (
            "zh",
            {
                "谁在车站等待？": "医生。",
                "医生在哪里等待？": "在车站。",
                "医生什么时候等待？": "每天早上。",
            },
        ),
    ],
)
def test_questions_on_place_and_time(lang, expected):
    assert all_questions(doctor(), lang, answerable=True) == expected


@pytest.mark.parametrize(
    ("lang", "expected"),
    [
        (
            "en",
            {
                "Who buys apples?": "The nurse.",
                "Where does the nurse buy apples?": "In the garden.",
                "What does the nurse buy?": "Seven red apples.",
                "How many apples does the nurse buy?": "Seven.",
            },
        ),
        (
            "de",
            {
                "Wer kauft Äpfel?": "Die Krankenschwester.",
                "Wo kauft die Krankenschwester Äpfel?": "Im Garten.",
                "Was kauft die Krankenschwester?": "Sieben rote Äpfel.",
                "Wie viele Äpfel kauft die Krankenschwester?": "Sieben.",
            },
        ),
        (
            "it",
            {
                "Chi compra mele?": "L'infermiera.",
                "Dove compra mele l'infermiera?": "In giardino.",
                "Che cosa compra l'infermiera?": "Sette mele rosse.",
                "Quante mele compra l'infermiera?": "Sette.",
            },
        ),
        (
            "zh",
            {
                "谁买苹果？": "护士。",
                "护士在哪里买苹果？": "在花园里。",
                "护士买什么？": "七个红色的苹果。",
                "护士买多少个苹果？": "七个。",
            },
        ),
    ],
)
def test_questions_on_an_object(lang, expected):
    assert all_questions(nurse(), lang, answerable=True) == expected


def test_unanswerable_questions_never_have_an_answer_in_the_sentence():
    rng = random.Random(0)
    for _ in range(300):
        sentence = draw_sentence(rng)
        for lang in LANGUAGES:
            question = draw_question(sentence, lang, rng, answerable=False)
            assert question.answer == UNANSWERABLE[lang]
            assert question.text not in all_questions(sentence, lang, answerable=True)


def test_a_question_does_not_tell_whether_it_has_an_answer():
    """Unanswerable questions are answerable ones on other sentences."""
    rng = random.Random(0)
    asked = {True: set(), False: set()}
    for _ in range(40000):
        answerable = rng.random() < 0.8
        question = draw_question(draw_sentence(rng), "en", rng, answerable=answerable)
        if question.kind == "what":  # 48 different ones, few enough to be drawn all
            asked[answerable].add(question.text)
    assert len(asked[False]) == 48
    assert len(asked[False] & asked[True]) > 0.95 * len(asked[False])


def test_unanswerable_questions_are_of_every_kind():
    rng = random.Random(0)
    drawn = [draw_question(draw_sentence(rng), "de", rng, answerable=False) for _ in range(2000)]
    for kind in QUESTION_KINDS:
        assert sum(question.kind == kind for question in drawn) > 100


def test_size_of_the_world():
    assert len(spoken_words()) >= 200
    drawn = list(islice(draw_sentences(random.Random(0), set()), 20000))
    assert len({sentence.text("en") for sentence in drawn}) == 20000


def test_translations_are_one_to_one():
    drawn = list(islice(draw_sentences(random.Random(0), set()), 5000))
    for lang in LANGUAGES:
        assert len({sentence.text(lang) for sentence in drawn}) == 5000


def test_every_entry_has_forms_of_its_own():
    for table in (lexicon.SUBJECTS, lexicon.THINGS, lexicon.PLACES, lexicon.TIMES):
        for lang in LANGUAGES:
            assert len({getattr(e, lang) for e in table}) == len(table)


def test_same_seed_same_sentences():
    first, second = (
        [sentence.text("zh") for sentence in islice(draw_sentences(random.Random(7), set()), 50)]
        for _ in range(2)
    )
    assert first == second


def test_sentences_are_read_back():
    for sentence in islice(draw_sentences(random.Random(0), set()), 2000):
        assert parse_sentence(sentence.text("en")) == sentence
    for text in ("", "The doctor waits", "The doctor waits at the moon."):
        with pytest.raises(ValueError, match="no sentence"):
            parse_sentence(text)


@pytest.mark.parametrize(
    ("sentence", "kind", "expected"),
    [
        (
            doctor(time_first=True),
            "where",
            [
                "The doctor waits at the station.",
                "Der Arzt wartet am Bahnhof.",
                "Il medico aspetta alla stazione.",
                "医生在车站等待。",
            ],
        ),
        (
            doctor(time_first=True),
            "when",
            [
                "The doctor waits every morning.",
                "Der Arzt wartet jeden Morgen.",
                "Il medico aspetta ogni mattina.",
                "医生每天早上等待。",
            ],
        ),
        (
            nurse(),
            "what",
            [
                "The nurse buys seven red apples.",
                "Die Krankenschwester kauft sieben rote Äpfel.",
                "L'infermiera compra sette mele rosse.",
                "护士买七个红色的苹果。",
            ],
        ),
        (
            nurse(),
            "how many",
            [
                "The nurse buys seven apples.",
                "Die Krankenschwester kauft sieben Äpfel.",
                "L'infermiera compra sette mele.",
                "护士买七个苹果。",
            ],
        ),
        (
            nurse(),
            "where",
            [
                "The nurse buys apples in the garden.",
                "Die Krankenschwester kauft im Garten Äpfel.",
                "L'infermiera compra mele in giardino.",
                "护士在花园里买苹果。",
            ],
        ),
        (
            doctor(adjective=entry(lexicon.SUBJECT_ADJECTIVES, "old"), time=None),
            "who",  # with the place, which the question names
            [
                "The old doctor waits at the station.",
                "Der alte Arzt wartet am Bahnhof.",
                "Il medico anziano aspetta alla stazione.",
                "年老的医生在车站等待。",
            ],
        ),
    ],
)
def test_fluent_answers(sentence, kind, expected):
    assert [fluent_answer(sentence, kind, lang) for lang in LANGUAGES] == expected


def test_a_fluent_answer_holds_the_short_one_and_what_the_question_says():
    for sentence in islice(draw_sentences(random.Random(1), set()), 300):
        for kind in answerable_kinds(sentence):
            for lang in LANGUAGES:
                question, fluent = ask(sentence, kind, lang), fluent_answer(sentence, kind, lang)
                assert contains_answer(question.answer, fluent, lang)
                if lang != "en":  # whose questions have the verb as an infinitive
                    said = words(question.text) | words(question.answer)
                    assert words(fluent) <= said


def words(text):
    return set(split_words(normalizer("basic")(text)))
