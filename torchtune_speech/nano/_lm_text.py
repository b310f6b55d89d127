"""Text for the small LLM's pretraining: habits of its own, none of them the tasks of the demo.

It learns to repeat, to translate words and phrases, and to find things in notes. It is not shown
the translation of a sentence nor a question on one: those are what text LoRA (stage B) has to
bring.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torchtune_speech.nano._grammar import (
    LANGUAGES,
    UNANSWERABLE,
    Sentence,
    answer_phrase,
    answerable_kinds,
    capitalize,
    draw_sentence,
    subject_phrase,
    unrelated_sentence,
)
from torchtune_speech.nano._lexicon import NUMBERS, PLACES, QUESTION_WORDS, TABLES, TIMES

Turn = tuple[str, str]
SHARES = {"repeat": 0.2, "phrase": 0.3, "span": 0.5}

_NUM_QUESTIONS = (2, 4)  # on each note
_ENGLISH_ANSWERS = 0.75  # whatever language asks: to answer in its language is left to stage B
# A word after a space is another token than at the start of a line: questions come in both places.
_QUESTION = {
    "en": ("Question: ", "The question: ", ""),
    "de": ("Frage: ", "Die Frage: ", ""),
    "it": ("Domanda: ", "La domanda: ", ""),
    "zh": ("问题： ", "提问： ", ""),
}
_REPEAT = (
    "Repeat the text.",
    "Copy the English content.",
    "Transcribe the text.",
    "Transcribe the English content.",
    "Write the content again.",
    "Repeat:",
    "Copy:",
)
_TRANSLATE = {
    "de": ("German:", "Translate the words: German", "Auf Deutsch:"),
    "it": ("Italian:", "Translate the words: Italian", "In italiano:"),
    "zh": ("Chinese:", "Translate the words: Chinese", "中文："),
}
_ENGLISH_WORDS = sorted(
    {word for table in TABLES for entry in table for word in entry.en.split()} | {"the"}
)
_ENGLISH_STARTS = ("the", *sorted({entry.en.split()[0] for entry in (*NUMBERS, *PLACES, *TIMES)}))
_COMMA = {"en": ", ", "de": ", ", "it": ", ", "zh": "，"}


def lm_rows(
    rng: random.Random, draw: Callable[[], Sentence], num_rows: int
) -> Iterator[dict[str, Any]]:
    """Writes the pretraining text.

    Args:
        rng: The source of chance.
        draw: Gives a sentence that is in no test.
        num_rows: How many rows.

    Yields:
        Rows of `kind` and `turns`: pairs of what the user says and what is learnt.
    """
    kinds, weights = list(SHARES), list(SHARES.values())
    for _ in range(num_rows):
        (kind,) = rng.choices(kinds, weights)
        if kind == "repeat":
            turns = [_repeat(rng, draw)]
        elif kind == "phrase":
            turns = [_translate_phrases(rng)]
        else:
            turns = _ask_on_notes(rng)
        yield {"kind": kind, "turns": turns}


def _phrases(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Draws constituents that differ from each other, each in all languages.

    Some of them are verbs, never at the start, or question words, always at the start, so that they
    look as they do in sentences and questions.
    """
    drawn: dict[str, dict[str, str]] = {}
    while len(drawn) < count:
        sentence = draw_sentence(rng)
        kinds = answerable_kinds(sentence) + (["verb", "verb"] if drawn else ["question"])
        kind = rng.choice(kinds)
        if kind == "question":
            word = rng.choice(QUESTION_WORDS)
            phrase = {lang: getattr(word, lang) for lang in LANGUAGES}
        elif kind == "verb":
            phrase = {lang: getattr(sentence.verb, lang) for lang in LANGUAGES}
            # Questions take the infinitive: "Where does the doctor wait?"
            phrase["en"] = rng.choice((sentence.verb.en, sentence.verb.base))
        elif kind == "how many":  # without the classifier, which nothing in English tells
            phrase = {lang: getattr(sentence.number, lang) for lang in LANGUAGES}
        else:
            phrase = {lang: answer_phrase(sentence, kind, lang) for lang in LANGUAGES}
        drawn.setdefault(phrase["de"], phrase)  # "sleep" and "sleeps" are one
    return list(drawn.values())


def _punctuate(text: str, lang: str) -> str:
    return text + "。" if lang == "zh" else capitalize(text) + "."


def _ask(rng: random.Random, text: str, instruction: str) -> str:
    if rng.random() < 0.3:  # speech has no full stop before its line break either
        text = text.rstrip(".。")
    return f"{text}\n{instruction}"


def _repeat(rng: random.Random, draw: Callable[[], Sentence]) -> Turn:
    """English sentences, and words in any order, which only copying can give back."""
    if rng.random() < 0.6:
        text = draw().text("en")
    else:
        words = [rng.choice(_ENGLISH_STARTS), *rng.choices(_ENGLISH_WORDS, k=rng.randint(2, 8))]
        text = _punctuate(" ".join(words), "en")
    return _ask(rng, text, rng.choice(_REPEAT)), text


def _translate_phrases(rng: random.Random) -> Turn:
    lang = rng.choice(("de", "it", "zh"))
    phrases = _phrases(rng, rng.randint(1, 4))
    source, target = (
        _punctuate(_COMMA[side].join(phrase[side] for phrase in phrases), side)
        for side in ("en", lang)
    )
    return _ask(rng, source, rng.choice(_TRANSLATE[lang])), target


def _ask_on_notes(rng: random.Random) -> list[Turn]:
    """English notes on one deed, and key word questions on them in any language."""
    note = draw_sentence(rng)
    turns = [_ask_on_note(note, rng) for _ in range(rng.randint(*_NUM_QUESTIONS))]
    (question, answer), *others = turns
    return [(f"{_jot(note, rng)}\n{question}", answer), *others]


def _ask_on_note(note: Sentence, rng: random.Random) -> Turn:
    """A question in key words; about half have no answer: another deed is meant, or a gap.

    Another deed is asked about as this one is, so that nothing but the deed tells the difference.
    Most answers are English, whatever language asks.
    """
    lang = rng.choice(LANGUAGES)
    asked_of, kinds = note, answerable_kinds(note)
    share = rng.random()
    if share < 0.45:
        asked_of = _other_deed(note, rng)
    elif share < 0.55:
        kinds = [kind for kind in ("where", "when", "what") if kind not in kinds]
    kind = rng.choice(kinds)
    word = rng.choice([word for word in QUESTION_WORDS if word.en == kind])
    names = [getattr(word, lang), *_keys(asked_of, kind, lang, rng)]
    asked = capitalize(_COMMA[lang].join(names)) + ("？" if lang == "zh" else "?")
    asked = rng.choice(_QUESTION[lang]) + asked
    said_in = "en" if rng.random() < _ENGLISH_ANSWERS else lang
    if share < 0.55:
        return asked, UNANSWERABLE[said_in]
    return asked, _punctuate(answer_phrase(note, kind, said_in), said_in)


def _keys(note: Sentence, kind: str, lang: str, rng: random.Random) -> list[str]:
    """What a question on a note mentions: the deed and, unless asked for, the person."""
    keys = [note.verb.base if lang == "en" else getattr(note.verb, lang)]
    if kind != "who":
        keys.append(subject_phrase(note.subject, None, lang))
    rng.shuffle(keys)
    return keys


def _other_deed(note: Sentence, rng: random.Random) -> Sentence:
    """The note with another person and another deed."""
    other = unrelated_sentence(note, rng)
    return replace(note, subject=other.subject, verb=other.verb)


def _jot(note: Sentence, rng: random.Random) -> str:
    kinds = [kind for kind in answerable_kinds(note) if kind != "how many"]
    parts = [answer_phrase(note, kind, "en") for kind in kinds]
    rng.shuffle(parts)
    parts.insert(rng.randint(1, len(parts)), note.verb.en)  # text never starts with a verb
    return _punctuate(_COMMA["en"].join(parts), "en")
