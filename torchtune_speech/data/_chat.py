"""What the rest asks of an LLM's tokenizer and chat format, whatever the family."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchtune.models.llama3 import Llama3Tokenizer

from torchtune_speech.data._llama3_chat import Llama3ChatFormat


class ChatFormat(Protocol):
    """A chat format around contents that are already token ids.

    A conversation is ``bos_ids``, then turn after turn the header, the content, ``end_ids`` and
    ``after_ids``.

    Attributes:
        bos_ids: what a conversation begins with.
        end_ids: what ends a turn; it is supervised, so that the model learns to stop.
        after_ids: what follows it and is not supervised.
        pad_id: padding.
        stop_ids: tokens that end an answer.
        placeholder_id: stands where speech vectors go; a token that texts never have.
        special_tokens: names of the special tokens to ids.
        special_ids: tokens that are no text, and rows of the embedding table that are no token.
        vocab_size: rows of the embedding table that an answer's tokens may come from.
        answer_ids: what opens the turn of the answer that is asked for.
        token_texts: text of each token, "" for special ones.
    """

    bos_ids: list[int]
    end_ids: list[int]
    after_ids: list[int]
    pad_id: int
    stop_ids: list[int]
    placeholder_id: int
    special_tokens: Mapping[str, int]
    special_ids: frozenset[int]
    vocab_size: int

    @property
    def answer_ids(self) -> list[int]: ...

    @property
    def token_texts(self) -> list[str]: ...

    def header_ids(self, role: str) -> list[int]:
        """Token ids that open a turn of this role."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are dropped by id."""
        ...


def chat_format(tokenizer: Llama3Tokenizer | ChatFormat) -> ChatFormat:
    """The chat format of what a config names as tokenizer.

    Args:
        tokenizer: torchtune's Llama-3 tokenizer, or a chat format with a tokenizer of its own.

    Returns:
        The chat format.
    """
    return Llama3ChatFormat(tokenizer) if isinstance(tokenizer, Llama3Tokenizer) else tokenizer


def text_token_rows(chat: ChatFormat, rows: int) -> Tensor:
    """Which rows of the LLM's embedding table are tokens that a text can hold.

    Args:
        chat: the LLM's chat format.
        rows: of the table, which may have more than the tokenizer has tokens.

    Returns:
        Boolean, ``[rows]``; False for special tokens and for rows that are no token.
    """
    is_text_v = torch.arange(rows) < chat.vocab_size
    is_text_v[[i for i in chat.special_ids if i < rows]] = False
    return is_text_v
