"""Messages with speech in them -> token ids with placeholders."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torchtune.data import Message
from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers._tiktoken import MAX_NO_WHITESPACE_CHARS

IGNORE_INDEX = -100


class Llama3ChatFormat:
    """Llama-3's chat format around contents that are already token ids.

    torchtune's tokenizer strips every chunk of text, puts the assistant's header into the loss
    and appends an end-of-text token; speech between two chunks needs the plain pieces instead.
    Format: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3

    Args:
        tokenizer: torchtune's Llama-3 tokenizer.
    """

    def __init__(self, tokenizer: Llama3Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_ids = [tokenizer.bos_id]
        self.end_ids = [tokenizer.eot_id]
        self.pad_id = tokenizer.pad_id
        self.stop_ids = list(tokenizer.stop_tokens)
        # A reserved token that torchtune and Hugging Face number alike (128002 in Llama 3).
        self.placeholder_id = tokenizer.special_tokens["<|reserved_special_token_0|>"]
        self.special_ids = frozenset(tokenizer.special_tokens.values())
        self.vocab_size = tokenizer.base_vocab_size + len(self.special_ids)
        self._headers: dict[str, list[int]] = {}  # role -> token ids; every sample asks for them

    def header_ids(self, role: str) -> list[int]:
        """Token ids that open a turn of this role."""
        if role not in self._headers:
            t = self._tokenizer
            opening = [t.start_header_id, *self.encode(role), t.end_header_id]
            self._headers[role] = [*opening, *self.encode("\n\n")]
        return list(self._headers[role])

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text."""
        if len(text) > MAX_NO_WHITESPACE_CHARS:
            return self._tokenizer.encode(text, add_bos=False, add_eos=False)
        # The same ids: torchtune looks at each character, in case a text is so long that tiktoken
        # would be slow, which takes most of the time.
        return self._tokenizer.tt_model.tt_model.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are dropped by id, not by what they look like."""
        kept = [i for i in ids if i not in self.special_ids]
        return self._tokenizer.decode(kept, truncate_at_eos=False, skip_special_tokens=False)

    @cached_property
    def token_texts(self) -> list[str]:
        """Text of each token, "" for special ones."""
        return [self.decode([i]) for i in range(self.vocab_size)]


class InterleaveSpeech(Transform):
    """Turns messages into tokens, with one placeholder for each speech vector to come.

    A torchtune transform: takes a sample with ``messages`` and ``speech_lengths`` and gives it
    ``tokens`` and ``labels``. Assistant turns that are not masked are supervised, their end-of-turn
    token included, so that the model learns to stop; headers never are.

    Args:
        chat: the LLM's chat format.

    Example:
        >>> transform = InterleaveSpeech(Llama3ChatFormat(tokenizer))
        >>> sample = transform({"messages": messages, "speech_lengths": [39]})
        >>> sample["tokens"].count(chat.placeholder_id)
        39
    """

    def __init__(self, chat: Llama3ChatFormat) -> None:
        self.chat = chat

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> Mapping[str, Any]:
        """Tokenise one sample.

        Args:
            sample: ``messages``, a list of torchtune messages whose content items are of type
                text or speech, and ``speech_lengths``, the number of speech vectors of each
                speech item, in order.
            inference: end with an opened assistant turn instead of a complete sample.

        Returns:
            The sample with ``tokens`` and ``labels`` (next token at supervised positions,
            -100 elsewhere) in place of the messages.

        Raises:
            ValueError: if there are not as many lengths as speech items.
        """
        lengths = list(sample["speech_lengths"])
        tokens, supervised = list(self.chat.bos_ids), [False] * len(self.chat.bos_ids)
        for message in sample["messages"]:
            header, body = self.chat.header_ids(message.role), self._body(message, lengths)
            tokens += header + body + self.chat.end_ids
            supervised += [False] * len(header)
            supervised += [not message.masked] * (len(body) + len(self.chat.end_ids))
        if lengths:
            raise ValueError(
                f"{len(lengths)} speech lengths are left over: "
                "more than the messages have speech items"
            )
        if inference:
            header = self.chat.header_ids("assistant")
            tokens += header
            supervised += [False] * len(header)
        rest = {k: v for k, v in sample.items() if k not in ("messages", "speech_lengths")}
        return {**rest, "tokens": tokens, "labels": next_token_labels(tokens, supervised)}

    def _body(self, message: Message, lengths: list[int]) -> list[int]:
        body: list[int] = []
        for item in message.content:
            if item["type"] == "speech":
                if not lengths:
                    raise ValueError("more speech items in the messages than speech lengths")
                body += [self.chat.placeholder_id] * lengths.pop(0)
            else:
                body += self.chat.encode(item["content"])
        return body


def next_token_labels(tokens: Sequence[int], supervised: Sequence[bool]) -> list[int]:
    """Labels shifted by one: position i predicts token i + 1.

    Args:
        tokens: token ids of one sample.
        supervised: which tokens are to be predicted.

    Returns:
        One label a position, -100 where nothing is to be learnt.
    """
    following = zip(tokens[1:], supervised[1:], strict=True)
    return [token if wanted else IGNORE_INDEX for token, wanted in following] + [IGNORE_INDEX]
