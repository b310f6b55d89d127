"""Multiple-choice questions: how the options are shown, and which one an answer means."""

import re
import unicodedata
from collections.abc import Sequence

MAX_CHOICES = 26
# "B", "B.", "(b)", and with the option behind it "B. in May", "b) in May", "B - in May". Only the
# option's own text may follow: a sentence or an option may begin with "A" too.
_LETTER = r"\(?{letter}(?:[\s).:,、-]+(?:{text})?)?"
_EMPHASIS = re.compile(r"(\*{1,3})(.+?)\1")


def choice_letter(index: int) -> str:
    """The letter of an option.

    Args:
        index: its place among the options, from 0.

    Returns:
        A, B, C, ...
    """
    return chr(ord("A") + index)


def find_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Find the option that an answer means.

    An answer means an option if it is the option's text, its letter, or the letter and the text.
    Case, spaces, a full stop at the end, Markdown's emphasis, and whether characters are full or
    half width do not count. A text comes before a letter: of the options B, A the answer "A" means
    the second.

    Args:
        answer: what somebody said.
        choices: the options, in the order of their letters.

    Returns:
        Place of the option, from 0; None if it is none of them, or the text of several.

    Example:
        >>> [find_choice(text, ["Ann", "Bob"]) for text in ("Bob.", "B", "b) Bob", "B. Ann")]
        [1, 1, 1, None]
    """
    texts, said = [_plain(choice) for choice in choices], _plain(answer)
    if said in texts:
        return texts.index(said) if texts.count(said) == 1 else None
    for index, text in zip(range(MAX_CHOICES), texts, strict=False):  # more have no letters
        letter = choice_letter(index).casefold()
        if re.fullmatch(_LETTER.format(letter=letter, text=re.escape(text)), said):
            return index
    return None


def _plain(text: str) -> str:
    # NFKC makes full-width letters and punctuation, usual in Chinese, the ASCII ones.
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return _EMPHASIS.sub(r"\2", " ".join(words)).rstrip(".。 ")
