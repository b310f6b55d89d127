"""The texts of the windows of one recording, put together."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import regex

# Words that may be said in a second, generously: so far a seam is looked for.
_WORDS_PER_S = 6
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORD = regex.compile(rf"{_UNSPACED}|[^\s\p{{Han}}\p{{Hiragana}}\p{{Katakana}}]+")


def join_texts(texts: Sequence[str], overlap_s: float = 0.0) -> str:
    """Join texts one after the other.

    Where the windows overlap, the words in the overlap come twice. They are looked for among the
    last words of one text and the first of the next: the longest run of words that both have (case
    and punctuation aside) is kept once, and what lies outside of it towards the seam, where a
    window's edge cuts words, is dropped. Without such a run, the texts are joined as they are.

    Args:
        texts: in order; empty ones are left out.
        overlap_s: what two windows have in common, in seconds.

    Returns:
        One text; no blank between two Chinese or Japanese characters.

    Example:
        >>> join_texts(["we saw a red hou", "a red house, and left."], overlap_s=1.0)
        'we saw a red house, and left.'
    """
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        if overlap_s > 0 and joined:
            joined, text = _without_overlap(joined, text, round(overlap_s * _WORDS_PER_S) + 2)
        blank = " " if joined and text and not _touch(joined[-1], text[0]) else ""
        joined += blank + text
    return joined


def _without_overlap(left: str, right: str, num_words: int) -> tuple[str, str]:
    ends = list(_WORD.finditer(left))[-num_words:]
    begins = list(_WORD.finditer(right))[:num_words]
    a, b = [_plain(m.group()) for m in ends], [_plain(m.group()) for m in begins]
    run = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    # One short word in common is chance.
    if run.size == 0 or (run.size == 1 and len(a[run.a]) < 4):
        return left, right
    return left[: ends[run.a].start()].rstrip(), right[begins[run.b].start() :]


def _plain(word: str) -> str:
    return regex.sub(r"[\p{P}\p{S}]", "", word).casefold()


def _touch(last: str, first: str) -> bool:
    """Whether two characters stand side by side without a blank."""
    unspaced = rf"{_UNSPACED}|[\u3000-\u303f\uff00-\uffef]"
    return bool(regex.match(unspaced, last) and regex.match(unspaced, first))


def join_segment_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One prediction for each recording whose windows were answered one by one.

    Args:
        rows: predictions; those with ``segment_of`` stand one after the other, as
            :func:`~torchtune_speech.data.segment_samples` makes them.

    Returns:
        The rows, with the windows of a recording as one: ``prediction`` joined, ``num_tokens``,
        ``seconds``, ``duration_s`` and ``loops`` added up, ``finish_reason`` the first that is not
        ``stop``, and ``segments`` with each window's place and text.
    """
    result = []
    for (whole, _), group in groupby(rows, key=lambda r: (r.get("segment_of"), r["task"])):
        parts = list(group)
        result += parts if whole is None else [_joined(whole, parts)]
    return result


def _joined(whole: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    row = {k: v for k, v in parts[0].items() if k not in _OF_A_WINDOW}
    reasons = [part["finish_reason"] for part in parts]
    sums = {
        name: sum(part.get(name) or 0 for part in parts)
        for name in ("num_tokens", "seconds", "duration_s", "loops")
        if any(part.get(name) for part in parts)
    }
    return row | {
        "id": whole,
        "prediction": join_texts([p["prediction"] for p in parts], parts[0].get("overlap_s", 0.0)),
        "finish_reason": next((reason for reason in reasons if reason != "stop"), "stop"),
        **{name: round(value, 4) for name, value in sums.items()},
        "segments": [
            {name: part[name] for name in ("offset", "duration", "prediction") if name in part}
            for part in parts
        ],
    }


_OF_A_WINDOW = ("segment_of", "overlap_s", "offset", "duration", "target")
