"""What samples are grouped by beside task and language: domain, duration, kind of answer."""

import math
from collections.abc import Mapping
from typing import Any

import regex

from torchtune_speech.evaluation._normalizers import base_language, normalizer, split_words
from torchtune_speech.evaluation._qa import is_unanswerable

Row = Mapping[str, Any]

# Lower bounds of the buckets, in seconds; each goes up to the next.
_BUCKETS_S = (0, 5, 10, 20, 30)

# Answer types in the order in which they are tried.
ANSWER_TYPES = (
    "unanswerable",
    "multiple choice",
    "yes/no",
    "number/date",
    "short span",
    "sentence",
)
SHORT_SPAN_WORDS = 3
_NUMBER_WORDS = 5

_YES_NO = (
    "yes|no|ja|nein|sì|si|sí|oui|non|sim|não|nee|tak|nie|да|нет|はい|いいえ"
    "|是的?|不是的?|否|对|不对|有|没有|会|不会|能|不能|可以|不可以"
)
_NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve hundred thousand "
    "million billion january february march april may june july august september october november "
    "december",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf hundert tausend "
    "million millionen milliarde milliarden januar februar märz april mai juni juli august "
    "september oktober november dezember",
    "it": "zero due tre quattro cinque sei sette otto nove dieci undici dodici cento mille mila "
    "milione milioni miliardo miliardi gennaio febbraio marzo aprile maggio giugno luglio agosto "
    "settembre ottobre novembre dicembre",
}
_NUMBERS = {lang: frozenset(words.split()) for lang, words in _NUMBERS.items()}
_YES_NO = regex.compile(rf"(?:{_YES_NO})(?:$|\s*[,.;:!…–—，。；：！、])", flags=regex.IGNORECASE)
_CHINESE_NUMBER = regex.compile(
    r"[第约]?(?:[\d〇零一二两三四五六七八九十百千万亿]+[年月日号点时分秒岁个天周元米次人只]*)+"
)


def duration_bucket(row: Row) -> str | None:
    """How long the speech of a row is.

    Args:
        row: with ``duration_s`` where known.

    Returns:
        "0-5", "5-10", "10-20", "20-30" or "30-", in seconds, each with its lower and without its
        upper bound; None where the duration is not known.
    """
    seconds = row.get("duration_s")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not math.isfinite(seconds) or seconds < 0:
        return None
    ends = dict(zip(_BUCKETS_S, (*_BUCKETS_S[1:], ""), strict=True))
    start = max(start for start in _BUCKETS_S if start <= seconds)
    return f"{start}-{ends[start]}"


def bucket_names() -> list[str]:
    """All names of buckets, shortest first."""
    return [duration_bucket({"duration_s": seconds}) for seconds in _BUCKETS_S]


def answer_type(row: Row, unanswerable: Mapping[str, str]) -> str:
    """What kind of answer a question asks for, judged by its reference.

    The first of these that holds:

    - ``unanswerable``: the reference is the refusal of its language;
    - ``multiple choice``: the row has ``choices``;
    - ``yes/no``: the reference is yes or no, or begins with it and a comma, full stop or the like;
    - ``number/date``: at most 5 words, with a digit, or with a number up to twelve or a month in
      English, German or Italian; in Chinese, nothing but numerals and the likes of 年 and 个;
    - ``short span``: at most 3 words;
    - ``sentence``: all others.

    Two characters count as a word in Chinese and Japanese.

    Args:
        row: with ``target``; ``target_lang`` and ``choices`` where known.
        unanswerable: language to the answer that a question without an answer should get.

    Returns:
        One of `ANSWER_TYPES`.

    Example:
        >>> [answer_type({"target": text}, {}) for text in ("At 10 o'clock.", "No, not yet.")]
        ['number/date', 'yes/no']
    """
    lang, reference = row.get("target_lang") or "en", row["target"].strip()
    if is_unanswerable(reference, lang, unanswerable):
        return "unanswerable"
    if row.get("choices"):
        return "multiple choice"
    if _YES_NO.match(reference):
        return "yes/no"
    words = split_words(normalizer("basic")(reference))
    length = sum(0.5 if regex.match(r"[\p{Han}\p{Hiragana}\p{Katakana}]", w) else 1 for w in words)
    if length <= _NUMBER_WORDS and _has_number(words, base_language(lang)):
        return "number/date"
    return "short span" if length <= SHORT_SPAN_WORDS else "sentence"


def _has_number(words: list[str], lang: str) -> bool:
    return (
        any(regex.search(r"\p{Nd}", word) for word in words)
        or not _NUMBERS.get(lang, frozenset()).isdisjoint(words)
        or _CHINESE_NUMBER.fullmatch("".join(words)) is not None
    )
