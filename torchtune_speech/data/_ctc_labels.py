"""Label sets of the auxiliary CTC loss."""

import unicodedata
from collections.abc import Sequence
from typing import Protocol

from torchtune_speech.data._chat import ChatFormat
from torchtune_speech.errors import InputError


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
    """English letters, digits, apostrophe and space; accents are folded, other signs separate."""

    alphabet = " abcdefghijklmnopqrstuvwxyz0123456789'"
    size = len(alphabet) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a transcript."""
        folded = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
        letters = (c for c in folded if not unicodedata.combining(c))
        kept = " ".join("".join(c if c in self.alphabet else " " for c in letters).split())
        return [self.alphabet.index(c) + 1 for c in kept]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels."""
        return "".join(self.alphabet[i - 1] for i in labels)


class TokenLabels:
    """The LLM's own tokens: fewer than frames even after strong averaging.

    Args:
        chat: the LLM's chat format, for its tokenizer.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self.size = chat.vocab_size + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a transcript."""
        return [i + 1 for i in self._chat.encode(text)]

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels."""
        return self._chat.decode([i - 1 for i in labels])


def ctc_labels(kind: str | None, chat: ChatFormat) -> CTCLabels | None:
    """A label set by name.

    Args:
        kind: ``characters`` (39 labels with the blank; wants 20 or more frames a second),
            ``tokens`` (the LLM's, and the blank), or None for no CTC targets.
        chat: the LLM's chat format.

    Returns:
        The label set.

    Raises:
        InputError: if the name is unknown.
    """
    if kind is None:
        return None
    if kind == "characters":
        return CharacterLabels()
    if kind == "tokens":
        return TokenLabels(chat)
    raise InputError(f"dataset.ctc: {kind!r} is unknown; use 'characters', 'tokens' or null")
