"""Label sets of the auxiliary CTC loss."""

import unicodedata
from collections.abc import Sequence
from typing import Protocol


class CTCLabels(Protocol):
    """Text to CTC labels and back; 0 is the blank."""

    size: int

    def encode(self, text: str) -> list[int]:
        """Labels of a transcript."""
        ...

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels."""
        ...


class CharacterLabels:
    """English letters, digits, apostrophe and space; accents are folded, other signs dropped."""

    alphabet = " abcdefghijklmnopqrstuvwxyz0123456789'"
    size = len(alphabet) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a transcript."""
        folded = unicodedata.normalize("NFKD", text.lower())
        kept = " ".join("".join(c if c in self.alphabet else "" for c in folded).split())
        return [self.alphabet.index(c) + 1 for c in kept]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels."""
        return "".join(self.alphabet[i - 1] for i in labels)


def ctc_labels(kind: str | None) -> CTCLabels | None:
    """A label set by name.

    Args:
        kind: ``characters``, or None for no CTC targets.

    Returns:
        The label set.

    Raises:
        ValueError: if the name is unknown.
    """
    if kind is None:
        return None
    if kind == "characters":
        return CharacterLabels()
    raise ValueError(f"unknown CTC labels {kind!r}: use 'characters' or null")
