"""Sentences with exact translations, and questions on them with exact answers.

A sentence has a subject and a verb, perhaps an object, a place and a time; English, German, Italian
and Chinese each build their own word order out of these. German keeps its verb second, Italian
agrees in gender, Chinese is written without spaces.

Everything is a pure function of the random generator that is passed in.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torchtune_speech.nano._lexicon import (
    INTRANSITIVE_VERBS,
    LANGUAGES,
    NUMBERS,
    PLACES,
    SUBJECT_ADJECTIVES,
    SUBJECTS,
    TABLES,
    THING_ADJECTIVES,
    THINGS,
    TIMES,
    TRANSITIVE_VERBS,
    Phrase,
    Subject,
    SubjectAdjective,
    Thing,
    ThingAdjective,
    Verb,
)

QUESTION_KINDS = ("who", "where", "when", "what", "how many")
# Of the unanswerable questions on sentences that leave a place or a time out.
_LEFT_OUT_SHARE = 0.3
UNANSWERABLE = {
    "en": "Not answerable.",
    "de": "Nicht zu beantworten.",
    "it": "Non è possibile rispondere.",
    "zh": "无法回答。",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one sentence says.

    Args:
        subject: Who acts.
        verb: What is done.
        adjective: How the subject is; None when not said.
        number: How many things; None when not said.
        thing_adjective: How the things are; None when not said.
        thing: What is acted on; None in a sentence without object.
        place: Where; None when not said.
        time: When; None when not said.
        time_first: Whether the sentence begins with the time.
    """

    subject: Subject
    verb: Verb
    adjective: SubjectAdjective | None = None
    number: Phrase | None = None
    thing_adjective: ThingAdjective | None = None
    thing: Thing | None = None
    place: Phrase | None = None
    time: Phrase | None = None
    time_first: bool = False

    def text(self, lang: str) -> str:
        """Returns the sentence in a language.

        Args:
            lang: One of "en", "de", "it", "zh".

        Returns:
            The sentence with its capital and full stop.
        """
        subject = subject_phrase(self.subject, self.adjective, lang)
        verb = getattr(self.verb, lang)
        thing = self.object_phrase(lang)
        place = getattr(self.place, lang) if self.place else ""
        time = getattr(self.time, lang) if self.time else ""
        first, last = (time, "") if self.time_first else ("", time)
        if lang == "de":  # the verb is second, so the subject makes room for a time in front
            start = (first, verb, subject) if first else (subject, verb)
            return finish(lang, *start, last, place, thing)
        if lang == "zh":
            return finish(lang, first, subject, last, place, verb, thing)
        return finish(lang, first, subject, verb, thing, place, last)

    def object_phrase(self, lang: str) -> str:
        """Returns number, adjective and noun of the object, as far as said; "" without object.

        Args:
            lang: One of "en", "de", "it", "zh".

        Returns:
            A phrase such as "seven red apples".
        """
        if self.thing is None:
            return ""
        number, noun = getattr(self.number, lang, ""), getattr(self.thing, lang)
        if lang == "it":
            adjective = getattr(self.thing_adjective, "it_" + self.thing.gender, "")
            return " ".join(part for part in (number, noun, adjective) if part)
        adjective = getattr(self.thing_adjective, lang, "")
        if lang == "zh":
            classifier = self.thing.classifier if number else ""
            return f"{number}{classifier}{adjective}{noun}"
        return " ".join(part for part in (number, adjective, noun) if part)


@dataclass(frozen=True, slots=True)
class Question:
    """A question on one sentence.

    Args:
        kind: One of `QUESTION_KINDS`.
        answerable: Whether the sentence holds the answer.
        text: The question.
        answer: The answer in the question's language; the fixed phrase when there is none.
    """

    kind: str
    answerable: bool
    text: str
    answer: str


def subject_phrase(subject: Subject, adjective: SubjectAdjective | None, lang: str) -> str:
    """Returns a subject with its article and adjective.

    Args:
        subject: The person.
        adjective: How the person is; None for the noun alone.
        lang: One of "en", "de", "it", "zh".

    Returns:
        A phrase such as "der junge Arzt".
    """
    noun = getattr(subject, lang)
    if lang == "en":
        return f"the {adjective.en} {noun}" if adjective else f"the {noun}"
    if adjective is None:
        return noun
    if lang == "de":
        article, noun = noun.split(" ")
        return f"{article} {adjective.de} {noun}"
    if lang == "it":
        return f"{noun} {getattr(adjective, 'it_' + subject.gender)}"
    return adjective.zh + noun


def draw_sentence(rng: random.Random) -> Sentence:
    """Draws a sentence: verb and place and time, or with an object, or with an adjective.

    Args:
        rng: The source of chance.

    Returns:
        A sentence of six to nine English words.
    """
    form = rng.choice(("place time", "place", "time", "object place", "object time"))
    transitive = "object" in form
    time = rng.choice(TIMES) if "time" in form else None
    return Sentence(
        subject=rng.choice(SUBJECTS),
        verb=rng.choice(TRANSITIVE_VERBS if transitive else INTRANSITIVE_VERBS),
        adjective=rng.choice(SUBJECT_ADJECTIVES) if form in ("place", "time") else None,
        number=rng.choice(NUMBERS) if transitive else None,
        thing_adjective=rng.choice(THING_ADJECTIVES) if transitive else None,
        thing=rng.choice(THINGS) if transitive else None,
        place=rng.choice(PLACES) if "place" in form else None,
        time=time,
        time_first=time is not None and rng.random() < 0.25,
    )


def draw_sentences(rng: random.Random, seen: set[str]) -> Iterator[Sentence]:
    """Draws sentences that differ from each other and from those seen before, without end.

    Args:
        rng: The source of chance.
        seen: English texts not to be drawn; grows with every sentence drawn.

    Yields:
        Sentences.
    """
    while True:
        sentence = draw_sentence(rng)
        text = sentence.text("en")
        if text not in seen:
            seen.add(text)
            yield sentence


def parse_sentence(text: str) -> Sentence:
    """Reads an English sentence back.

    Args:
        text: What `Sentence.text` gave for "en".

    Returns:
        The sentence.

    Raises:
        ValueError: When the grammar has no such sentence.
    """
    match = _ENGLISH.fullmatch(text)
    if match is None:
        raise ValueError(f"no sentence of the nano world: {text!r}")
    found = {part: words for part, words in match.groupdict().items() if words is not None}
    first = found.pop("first", None)
    if first is not None:
        found["time"] = first[:1].lower() + first[1:]  # times begin in lower case
    entries = {part: _entry(_TABLE_OF[part], words) for part, words in found.items()}
    return Sentence(**entries, time_first=first is not None)


def _entry(table: tuple[Any, ...], words: str) -> Any:
    return next(entry for entry in table if entry.en == words)


def _english_pattern() -> re.Pattern[str]:
    """English sentences, with a group for each part."""
    forms = {part: "|".join(e.en for e in table) for part, table in _TABLE_OF.items()}
    one = {part: f"(?P<{part}>{words})" for part, words in forms.items()}
    thing = f"(?: {one['number']} {one['thing_adjective']} {one['thing']})?"
    return re.compile(
        f"(?:(?P<first>(?i:{forms['time']})) the|The) (?:{one['adjective']} )?{one['subject']} "
        f"{one['verb']}{thing}(?: {one['place']})?(?: {one['time']})?[.]"
    )


_TABLE_OF = {
    "subject": SUBJECTS,
    "verb": INTRANSITIVE_VERBS + TRANSITIVE_VERBS,
    "adjective": SUBJECT_ADJECTIVES,
    "number": NUMBERS,
    "thing_adjective": THING_ADJECTIVES,
    "thing": THINGS,
    "place": PLACES,
    "time": TIMES,
}
_ENGLISH = _english_pattern()


def draw_question(
    sentence: Sentence, lang: str, rng: random.Random, *, answerable: bool
) -> Question:
    """Draws a question on a sentence.

    Unanswerable questions come in two sorts: on what the sentence leaves out (the time of a
    sentence without one), and, as in NLE 2026 (arXiv 2607.01960), ones that belong to another
    sentence. Both are worded like answerable ones, so that the question alone never gives the
    answer away.

    Args:
        sentence: The sentence that is asked about.
        lang: Language of question and answer.
        rng: The source of chance.
        answerable: Whether the sentence is to hold the answer.

    Returns:
        The question and its answer.
    """
    kinds = answerable_kinds(sentence)
    if answerable:
        kind = rng.choice(kinds)
        return ask(sentence, kind, lang)
    # "What does the doctor wait?" is no question, so only places and times can be left out.
    left_out = [kind for kind in ("where", "when") if kind not in kinds]
    if left_out and rng.random() < _LEFT_OUT_SHARE:
        kind, asked = rng.choice(left_out), sentence
    else:
        asked = unrelated_sentence(sentence, rng)
        kind = rng.choice(answerable_kinds(asked))
    return Question(kind, False, _question_text(asked, kind, lang), UNANSWERABLE[lang])


def ask(sentence: Sentence, kind: str, lang: str) -> Question:
    """Returns the question of a kind that the sentence answers.

    Args:
        sentence: The sentence that is asked about; it has the constituent.
        kind: One of `QUESTION_KINDS`.
        lang: Language of question and answer.

    Returns:
        The question and its answer.
    """
    text = _question_text(sentence, kind, lang)
    return Question(kind, True, text, finish(lang, answer_phrase(sentence, kind, lang)))


def fluent_answer(sentence: Sentence, kind: str, lang: str) -> str:
    """Returns the answer to a question as a sentence, where `ask` gives the phrase alone.

    It says what the question says and the phrase, no more, so that to repeat or to translate the
    whole sentence is seldom to answer.

    Args:
        sentence: The sentence that is asked about; it has the constituent.
        kind: One of `QUESTION_KINDS`.
        lang: One of "en", "de", "it", "zh".

    Returns:
        A sentence such as "The doctor waits at the station."
    """
    answer = told(sentence, kind)
    if kind != "what":
        answer = replace(answer, thing_adjective=None)
    if kind not in ("what", "how many"):
        answer = replace(answer, number=None)
    return answer.text(lang)


def told(sentence: Sentence, kind: str) -> Sentence:
    """Returns the sentence without what neither a question of a kind nor its answer speaks of.

    Args:
        sentence: The sentence that is asked about.
        kind: Kind of the question.

    Returns:
        A sentence that answers the question and says little else.
    """
    place, time = sentence.place, sentence.time
    if kind == "who":  # the question names one circumstance, and none beside an object
        place, time = (None, None) if sentence.thing else (place, None if place else time)
    elif kind == "where":
        time = None
    elif kind == "when":
        place = None
    else:
        place = time = None
    adjective = sentence.adjective if kind == "who" else None
    return replace(sentence, adjective=adjective, place=place, time=time, time_first=False)


def answerable_kinds(sentence: Sentence) -> list[str]:
    """Returns the kinds of question that a sentence answers.

    Args:
        sentence: The sentence that is asked about.

    Returns:
        Some of `QUESTION_KINDS`, in their order.
    """
    has = {
        "who": True,
        "where": sentence.place is not None,
        "when": sentence.time is not None,
        "what": sentence.thing is not None,
        "how many": sentence.thing is not None,
    }
    return [kind for kind in QUESTION_KINDS if has[kind]]


def answer_phrase(sentence: Sentence, kind: str, lang: str) -> str:
    """Returns the constituent that answers a kind of question, as it stands in the sentence.

    Args:
        sentence: The sentence that is asked about; it has the constituent.
        kind: One of `QUESTION_KINDS`.
        lang: One of "en", "de", "it", "zh".

    Returns:
        A phrase such as "at the station".
    """
    if kind == "who":
        return subject_phrase(sentence.subject, sentence.adjective, lang)
    if kind == "where":
        return getattr(sentence.place, lang)
    if kind == "when":
        return getattr(sentence.time, lang)
    if kind == "what":
        return sentence.object_phrase(lang)
    number = getattr(sentence.number, lang)
    return number + sentence.thing.classifier if lang == "zh" else number


def unrelated_sentence(sentence: Sentence, rng: random.Random) -> Sentence:
    """Draws a sentence that has no word of this one that a question could mention.

    Args:
        sentence: The sentence that is not meant.
        rng: The source of chance.

    Returns:
        The other sentence.
    """
    mentioned = ("subject", "verb", "thing", "place", "time")
    said = [getattr(sentence, part) for part in mentioned if getattr(sentence, part)]
    while True:
        other = draw_sentence(rng)
        if not any(getattr(other, part) in said for part in mentioned):
            return other


def _question_text(sentence: Sentence, kind: str, lang: str) -> str:
    """Words a question; it names the subject without adjective, the object without number."""
    subject = subject_phrase(sentence.subject, None, lang)
    noun = getattr(sentence.thing, lang) if sentence.thing else ""
    if kind == "who":
        circumstance = sentence.place or sentence.time
        rest = "" if noun else getattr(circumstance, lang)
        return _ask_who(getattr(sentence.verb, lang), noun, rest, lang)
    verb = sentence.verb.base if lang == "en" else getattr(sentence.verb, lang)
    classifier = sentence.thing.classifier if sentence.thing else ""
    masculine = sentence.thing is not None and sentence.thing.gender == "m"
    if kind == "how many":
        return {
            "en": f"How many {noun} does {subject} {verb}?",
            "de": f"Wie viele {noun} {verb} {subject}?",
            "it": f"{'Quanti' if masculine else 'Quante'} {noun} {verb} {subject}?",
            "zh": f"{subject}{verb}多少{classifier}{noun}？",
        }[lang]
    if lang == "zh":
        if kind == "what":
            return f"{subject}{verb}什么？"
        asked = "在哪里" if kind == "where" else "什么时候"
        return f"{subject}{asked}{verb}{noun}？"
    word = {
        "en": {"where": "Where", "when": "When", "what": "What"},
        "de": {"where": "Wo", "when": "Wann", "what": "Was"},
        "it": {"where": "Dove", "when": "Quando", "what": "Che cosa"},
    }[lang][kind]
    if kind == "what":
        noun = ""
    order = {
        "en": (word, "does", subject, verb, noun),
        "de": (word, verb, subject, noun),
        "it": (word, verb, noun, subject),
    }[lang]
    return " ".join(part for part in order if part) + "?"


def _ask_who(verb: str, noun: str, rest: str, lang: str) -> str:
    if lang == "zh":
        return f"谁{rest}{verb}{noun}？"
    word = {"en": "Who", "de": "Wer", "it": "Chi"}[lang]
    return " ".join(part for part in (word, verb, noun, rest) if part) + "?"


def capitalize(text: str) -> str:
    """Returns the text with its first letter as a capital; the rest is left alone.

    Args:
        text: Any text.

    Returns:
        The text with a capital, which German nouns inside it keep too.
    """
    return text[:1].upper() + text[1:]


def finish(lang: str, *parts: str) -> str:
    """Returns parts of a sentence joined, with capital and full stop.

    Args:
        lang: One of "en", "de", "it", "zh".
        *parts: Words in order; empty ones are left out.

    Returns:
        The text.
    """
    if lang == "zh":
        return "".join(parts) + "。"
    return capitalize(" ".join(part for part in parts if part)) + "."


def spoken_words() -> set[str]:
    """Returns the English words that sentences are made of.

    Returns:
        Lower-case words.
    """
    return {"the"} | {w for table in TABLES for e in table for w in e.en.lower().split()}


__all__ = [
    "LANGUAGES",
    "QUESTION_KINDS",
    "UNANSWERABLE",
    "Question",
    "Sentence",
    "answer_phrase",
    "answerable_kinds",
    "ask",
    "capitalize",
    "draw_question",
    "draw_sentence",
    "draw_sentences",
    "finish",
    "fluent_answer",
    "parse_sentence",
    "spoken_words",
    "subject_phrase",
    "told",
    "unrelated_sentence",
]
