"""Answers that are right or wrong by construction, to see what a metric makes of them."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from torchtune_speech.nano._grammar import UNANSWERABLE, Sentence, answer_phrase, finish, told
from torchtune_speech.nano._lexicon import LANGUAGES, NUMBERS, PLACES, SUBJECTS, THINGS, TIMES
from torchtune_speech.nano._paraphrase import paraphrases, reordered

# Whether an answer of this kind is right.
ANSWER_KINDS = {
    "exact": True,
    "paraphrase": True,
    "verbose": True,
    "wrong_entity": False,
    "wrong_language": False,
    "negation": False,
    "truncated": False,
    "refusal": False,
}
_NOT = {"en": "not ", "de": "nicht ", "it": "non ", "zh": "不是"}
_TALK = {
    "short": {
        "en": "The answer is: {}",
        "de": "Die Antwort lautet: {}",
        "it": "La risposta è: {}",
        "zh": "答案是：{}",
    },
    "long": {
        "en": "That is a good question. As far as I can tell from the recording, the answer is: {} "
        "Please let me know if you would like to hear more about it.",
        "de": "Das ist eine gute Frage. Soweit ich der Aufnahme entnehmen kann, lautet die "
        "Antwort: {} Sagen Sie mir gerne, wenn Sie mehr darüber wissen möchten.",
        "it": "È una bella domanda. Da quanto capisco dalla registrazione, la risposta è: {} "
        "Mi dica pure se vuole saperne di più.",
        "zh": "这是一个好问题。根据我从录音中听到的内容，答案是：{}如果您想了解更多，请告诉我。",
    },
}
_AFTER = ("after lunch", "after work", "after midnight")
_BEFORE = ("before noon", "before dinner", "before sunrise")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Times that neither hold nor touch each other: "every day" would not be wrong for "every Monday".
_APART = (
    tuple(f"every {day}" for day in _WEEKDAYS),
    ("every January", "every April", "every August", "every October"),
    ("every spring", "every summer", "every autumn", "every winter"),
    ("every morning", "every evening"),
)


@dataclass(frozen=True, slots=True)
class MadeAnswer:
    """An answer made from the right one.

    Args:
        kind: One of `ANSWER_KINDS`.
        way: How it was made, within the kind.
        right: Whether it answers the question, in the language of the question.
        text: The answer.
    """

    kind: str
    way: str
    right: bool
    text: str


def make_answer(
    sentence: Sentence, question_kind: str, lang: str, kind: str, rng: random.Random
) -> MadeAnswer:
    """Makes an answer of a kind.

    - exact: the reference itself.
    - paraphrase: right in other words, see `paraphrases`.
    - verbose: the reference with talk around it.
    - wrong_entity: another person, place, time, thing or number of the lexicon, as a phrase or in
      a full sentence.
    - wrong_language: the reference in another language.
    - negation: the reference with "not" in front.
    - truncated: the beginning of the reference, or a full sentence cut before the answer comes.
    - refusal: the fixed phrase for questions without an answer.

    Args:
        sentence: The sentence that is asked about; it has the constituent.
        question_kind: Kind of the question.
        lang: Language of question and answer.
        kind: One of `ANSWER_KINDS`.
        rng: The source of chance.

    Returns:
        The answer.

    Example:
        >>> make_answer(sentence, "where", "en", "negation", random.Random(0)).text
        'Not at the station.'
    """
    way, text = _MAKERS[kind](sentence, question_kind, lang, rng)
    return MadeAnswer(kind, way, ANSWER_KINDS[kind], text)


def _answer(sentence: Sentence, question_kind: str, lang: str) -> str:
    return finish(lang, answer_phrase(sentence, question_kind, lang))


def _exact(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    return "reference", _answer(sentence, question_kind, lang)


def _paraphrase(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    return rng.choice(list(paraphrases(sentence, question_kind, lang).items()))


def _verbose(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    way = rng.choice(list(_TALK))
    answer = _answer(sentence, question_kind, lang)
    # After a colon, in a sentence: German nouns keep their capitals, others begin small.
    return way, _TALK[way][lang].format(answer[:1].lower() + answer[1:])


def _wrong_entity(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    other = _with_another(sentence, question_kind, rng)
    if rng.random() < 0.5:
        return "phrase", _answer(other, question_kind, lang)
    return "sentence", told(other, question_kind).text(lang)


def _with_another(sentence: Sentence, question_kind: str, rng: random.Random) -> Sentence:
    part = {"who": "subject", "where": "place", "when": "time", "how many": "number"}.get(
        question_kind
    ) or rng.choice(("thing", "number"))
    if part == "time":
        return replace(sentence, time=_another_time(sentence, rng))
    table = {"subject": SUBJECTS, "place": PLACES, "number": NUMBERS, "thing": THINGS}[part]
    others = [entry for entry in table if entry != getattr(sentence, part)]
    return replace(sentence, **{part: rng.choice(others)})


def _another_time(sentence: Sentence, rng: random.Random) -> object:
    said = sentence.time.en
    # What is in none of the groups ("every day") may hold much, but says nothing of "after lunch".
    group = next((group for group in _APART if said in group), _AFTER)
    if said in _AFTER:
        group = _BEFORE
    name = rng.choice([other for other in group if other != said])
    return next(time for time in TIMES if time.en == name)


def _wrong_language(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    other = rng.choice([other for other in LANGUAGES if other != lang])
    return other, _answer(sentence, question_kind, other)


def _negation(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    # Chinese places begin with "to be at", which is negated like a verb.
    no = "不" if lang == "zh" and question_kind == "where" else _NOT[lang]
    return "phrase", finish(lang, no + answer_phrase(sentence, question_kind, lang))


def _truncated(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    phrase = answer_phrase(sentence, question_kind, lang)
    left = _first_half(phrase, lang)
    tables = {"who": SUBJECTS, "where": PLACES, "when": TIMES, "how many": NUMBERS}
    # "Tonight" is "heute Abend" in German, and the half of it, "heute", another answer.
    complete = left in {getattr(entry, lang) for entry in tables.get(question_kind, ())}
    if not complete and rng.random() < 0.5:
        return "phrase", finish(lang, left)[:-1]
    asked = told(sentence, question_kind)
    # Sentences begin with their subject: it has to move for something to stand before it.
    full = reordered(asked, "who", lang) if question_kind == "who" else asked.text(lang)
    return "sentence", full[: full.index(phrase if lang == "zh" else f" {phrase}")]


def _first_half(phrase: str, lang: str) -> str:
    """The first half of the words (an elided article is one), or of the letters of a single one."""
    units = list(phrase) if lang == "zh" else re.findall(r"[^\s']+'?\s*", phrase)
    if len(units) == 1:
        units = list(phrase)
    return "".join(units[: max(1, len(units) // 2)]).strip()


def _refusal(
    sentence: Sentence, question_kind: str, lang: str, rng: random.Random
) -> tuple[str, str]:
    return "fixed phrase", UNANSWERABLE[lang]


_MAKERS: dict[str, Callable[[Sentence, str, str, random.Random], tuple[str, str]]] = {
    "exact": _exact,
    "paraphrase": _paraphrase,
    "verbose": _verbose,
    "wrong_entity": _wrong_entity,
    "wrong_language": _wrong_language,
    "negation": _negation,
    "truncated": _truncated,
    "refusal": _refusal,
}
