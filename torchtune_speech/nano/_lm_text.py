"""Text for the small LLM's pretraining: habits of its own, none of them the tasks of the demo.

It learns to repeat, to translate words and phrases, to find things in notes and to go on writing.
It is not shown the translation of a sentence nor a question on one: those are what text LoRA
(stage B) has to bring.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from torchtune_speech.nano._grammar import (
    LANGUAGES,
    UNANSWERABLE,
    Sentence,
    answer_phrase,
    answerable_kinds,
    capitalize,
    draw_sentence,
    subject_phrase,
)
from torchtune_speech.nano._lexicon import NUMBERS, PLACES, QUESTION_WORDS, TABLES, TIMES

SHARES = {"repeat": 0.2, "phrase": 0.35, "span": 0.4, "continue": 0.05}

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
) -> Iterator[dict[str, str]]:
    """Writes the pretraining text.

    Args:
        rng: The source of chance.
        draw: Gives a sentence that is in no test.
        num_rows: How many rows.

    Yields:
        Rows of `kind`, `prompt` (what the user says; empty in running text) and `target` (what is
        learnt).
    """
    kinds, weights = list(SHARES), list(SHARES.values())
    for _ in range(num_rows):
        (kind,) = rng.choices(kinds, weights)
        if kind == "repeat":
            yield _repeat(rng, draw)
        elif kind == "phrase":
            yield _translate_phrases(rng)
        elif kind == "span":
            yield _find_span(rng)
        else:
            yield _continue(rng, draw)


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
        drawn.setdefault(phrase["en"], phrase)
    return list(drawn.values())


def _punctuate(text: str, lang: str) -> str:
    return text + "。" if lang == "zh" else capitalize(text) + "."


def _ask(rng: random.Random, text: str, instruction: str) -> str:
    if rng.random() < 0.3:  # speech has no full stop before its line break either
        text = text.rstrip(".。")
    return f"{text}\n{instruction}"


def _repeat(rng: random.Random, draw: Callable[[], Sentence]) -> dict[str, str]:
    """English sentences, and words in any order, which only copying can give back."""
    if rng.random() < 0.6:
        text = draw().text("en")
    else:
        words = [rng.choice(_ENGLISH_STARTS), *rng.choices(_ENGLISH_WORDS, k=rng.randint(2, 8))]
        text = _punctuate(" ".join(words), "en")
    return {"kind": "repeat", "prompt": _ask(rng, text, rng.choice(_REPEAT)), "target": text}


def _translate_phrases(rng: random.Random) -> dict[str, str]:
    lang = rng.choice(("de", "it", "zh"))
    phrases = _phrases(rng, rng.randint(1, 4))
    source, target = (
        _punctuate(_COMMA[side].join(phrase[side] for phrase in phrases), side)
        for side in ("en", lang)
    )
    prompt = _ask(rng, source, rng.choice(_TRANSLATE[lang]))
    return {"kind": "phrase", "prompt": prompt, "target": target}


def _find_span(rng: random.Random) -> dict[str, str]:
    """English notes and a question on them in any language, in key words; some have no answer."""
    lang = rng.choice(LANGUAGES)
    note, second, other = _notes(rng)
    notes = [note, second] if rng.random() < 0.25 else [note]
    kind = rng.choice(answerable_kinds(note))
    answer, asked_of = answer_phrase(note, kind, lang), note
    share = rng.random()
    if share < 0.25:
        answer, asked_of = "", replace(note, subject=other.subject, verb=other.verb)
    elif share < 0.4:
        kind = rng.choice(
            [kind for kind in ("where", "when", "what") if kind not in answerable_kinds(note)]
        )
        answer = ""
    word = rng.choice([word for word in QUESTION_WORDS if word.en == kind])
    names = [getattr(word, lang), *_keys(asked_of, kind, lang, rng)]
    asked = capitalize(_COMMA[lang].join(names)) + ("？" if lang == "zh" else "?")
    target = _punctuate(answer, lang) if answer else UNANSWERABLE[lang]
    return {"kind": "span", "prompt": f"{_jotted(notes, rng)}\n{asked}", "target": target}


def _keys(note: Sentence, kind: str, lang: str, rng: random.Random) -> list[str]:
    """What a question on a note mentions: the deed and, unless asked for, the person."""
    verb = note.verb.base if lang == "en" else getattr(note.verb, lang)
    keys = [verb] if kind == "who" else [verb, subject_phrase(note.subject, None, lang)]
    rng.shuffle(keys)
    return keys


def _notes(rng: random.Random) -> list[Sentence]:
    """Draws three sentences with different people and deeds."""
    while True:
        notes = [draw_sentence(rng) for _ in range(3)]
        if len({note.verb for note in notes}) == len({note.subject for note in notes}) == 3:
            return notes


def _jotted(notes: list[Sentence], rng: random.Random) -> str:
    lines = [_jot(note, rng) for note in notes]
    rng.shuffle(lines)
    return _punctuate("; ".join(lines), "en")


def _jot(note: Sentence, rng: random.Random) -> str:
    kinds = [kind for kind in answerable_kinds(note) if kind != "how many"]
    parts = [answer_phrase(note, kind, "en") for kind in kinds]
    rng.shuffle(parts)
    parts.insert(rng.randint(1, len(parts)), note.verb.en)  # text never starts with a verb
    return _COMMA["en"].join(parts)


def _continue(rng: random.Random, draw: Callable[[], Sentence]) -> dict[str, str]:
    lang = rng.choice(LANGUAGES)
    sentences = [draw().text(lang) for _ in range(rng.randint(1, 2))]
    return {
        "kind": "continue",
        "prompt": "",
        "target": "".join(sentences) if lang == "zh" else " ".join(sentences),
    }
