"""Multiple-choice questions: how the options are shown, and which one an answer means."""

import re
from collections.abc import Sequence

MAX_CHOICES = 26
# "B", "B.", "(b)", and with the option behind it "B. in May", "b) in May", "B：五月".
_LETTER = re.compile(r"\(?([a-z])(?:[).:：．、]+\s*|\s+|$)(.*)", re.DOTALL)


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
    Case, spaces and a full stop at the end do not count. A text comes before a letter: of the
    options B, A the answer "A" means the second.

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
    found = _LETTER.fullmatch(said)
    if found is None:
        return None
    index, rest = ord(found[1]) - ord("a"), _plain(found[2])
    return index if index < len(texts) and rest in ("", texts[index]) else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".。 ")
