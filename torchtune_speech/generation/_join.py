"""The texts of the windows of one recording, put together."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import regex

# Words that may be said in a second, generously: so long may a seam be.
_WORDS_PER_S = 6
# Words (or Chinese characters) that the edge of a window may have cut or garbled.
_CUT_WORDS = 2
# A shorter run in common is chance.
_SEAM_LETTERS = 4
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORD = regex.compile(rf"{_UNSPACED}|[^\s\p{{Han}}\p{{Hiragana}}\p{{Katakana}}]+")


def join_texts(texts: Sequence[str], overlap_s: float = 0.0) -> str:
    """Join texts one after the other.

    Where the windows overlap, the words in the overlap come twice: one text ends with what the next
    begins with, up to two words that a window's edge has cut on either side. The longest such run
    (case and punctuation aside) is kept once and the cut words are dropped. Without one, as in a
    translation that words the overlap in two ways, the texts are joined as they are.

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
    size, dropped, skipped = _seam(
        [_plain(word.group()) for word in ends], [_plain(word.group()) for word in begins]
    )
    if size == 0:
        return left, right
    first = ends[len(ends) - dropped - size]
    return left[: first.start()].rstrip(), right[begins[skipped].start() :]


def _seam(ends: list[str], begins: list[str]) -> tuple[int, int, int]:
    """Longest run of words at the seam: its length, what is left of it on either side.

    A seam further in would drop words that nobody has said twice.
    """
    best = (0, 0, 0)
    for dropped in range(_CUT_WORDS + 1):
        for skipped in range(_CUT_WORDS + 1):
            most = min(len(ends) - dropped, len(begins) - skipped)
            size = next(
                (
                    n
                    for n in range(most, 0, -1)
                    if ends[len(ends) - dropped - n : len(ends) - dropped]
                    == begins[skipped : skipped + n]
                ),
                0,
            )
            letters = sum(map(len, begins[skipped : skipped + size]))
            if letters >= _SEAM_LETTERS and size > best[0]:
                best = (size, dropped, skipped)
    return best


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
        The rows, with the windows of a recording as one: ``prediction`` joined,
        ``prompt_tokens``, ``num_tokens``, ``seconds``, ``duration_s`` and ``loops`` added up,
        ``finish_reason`` ``length`` if that of any is, else ``loop``, ``segments`` with each
        window's place and text, and ``missing_segments`` where some were not answered.
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
        for name in ("prompt_tokens", "num_tokens", "seconds", "duration_s", "loops")
        if any(part.get(name) for part in parts)
    }
    if "duration_s" in sums:  # what two windows share was heard twice
        sums["duration_s"] -= parts[0].get("overlap_s", 0.0) * (len(parts) - 1)
    missing = parts[0].get("num_segments", 0) - len(parts)
    return row | {
        "id": whole,
        "prediction": join_texts([p["prediction"] for p in parts], parts[0].get("overlap_s", 0.0)),
        "finish_reason": next((r for r in ("length", "loop") if r in reasons), "stop"),
        **{name: round(value, 4) for name, value in sums.items()},
        "segments": [
            {name: part[name] for name in ("offset", "duration", "prediction") if name in part}
            for part in parts
        ],
        **({"missing_segments": missing} if missing > 0 else {}),
    }


_OF_A_WINDOW = ("segment_of", "num_segments", "overlap_s", "offset", "duration", "target")
