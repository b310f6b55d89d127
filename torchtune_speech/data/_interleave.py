"""Messages with speech in them -> token ids with placeholders."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune.data import Message
from torchtune.modules.transforms import Transform

from torchtune_speech.data._chat import ChatFormat

IGNORE_INDEX = -100


class InterleaveSpeech(Transform):
    """Turns messages into tokens, with one placeholder for each speech vector to come.

    A torchtune transform: takes a sample with ``messages`` and ``speech_lengths`` and gives it
    ``tokens`` and ``labels``. Assistant turns that are not masked are supervised, their end-of-turn
    token included, so that the model learns to stop; headers never are. The tokens are those of
    Hugging Face's chat template of the LLM.

    Args:
        chat: the LLM's chat format.

    Example:
        >>> transform = InterleaveSpeech(Llama3ChatFormat(tokenizer))
        >>> sample = transform({"messages": messages, "speech_lengths": [39]})
        >>> sample["tokens"].count(chat.placeholder_id)
        39
    """

    def __init__(self, chat: ChatFormat) -> None:
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
        for i, message in enumerate(sample["messages"], 1):
            is_answer = message.role == "assistant" and i == len(sample["messages"])
            header = self.chat.answer_ids if is_answer else self.chat.header_ids(message.role)
            body = self._body(message, lengths) + self.chat.end_ids
            tokens += header + body + self.chat.after_ids
            supervised += [False] * len(header)
            supervised += [not message.masked] * len(body)
            supervised += [False] * len(self.chat.after_ids)
        if lengths:
            raise ValueError(
                f"{len(lengths)} speech lengths are left over: "
                "more than the messages have speech items"
            )
        if inference:
            tokens += self.chat.answer_ids
            supervised += [False] * len(self.chat.answer_ids)
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
