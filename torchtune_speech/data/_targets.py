"""What each speech vector of an utterance is to be: a token of the transcript, or the pad."""

from collections.abc import Callable, Sequence

import numpy as np

from torchtune_speech.data._chat import ChatFormat
from torchtune_speech.data._checks import refuse_or_tell
from torchtune_speech.data._sample import Sample
from torchtune_speech.errors import InputError


def pad_targets(tokens: Sequence[int], length: int, pad_token: int) -> np.ndarray:
    """A token for each speech vector: the transcript's, then pads up to the end.

    Args:
        tokens: tokens of the transcript, none of them the pad token.
        length: speech vectors of the utterance.
        pad_token: what the vectors behind the transcript are to be.

    Returns:
        Token ids, ``[length]``.

    Raises:
        ValueError: if there are more tokens than vectors.

    Source: section 2 of https://arxiv.org/abs/2601.20417

    Example:
        >>> pad_targets([7, 3], 4, pad_token=0)
        array([7, 3, 0, 0])
    """
    if len(tokens) > length:
        raise ValueError(f"{len(tokens)} tokens for {length} speech vectors")
    return np.array([*tokens, *[pad_token] * (length - len(tokens))], dtype=np.int64)


class TranscriptTargets:
    """Makes the targets of speech vectors from a sample's transcript.

    Args:
        chat: the LLM's chat format, for its tokens.
        pad_token: see :func:`pad_targets`.
        normalize: ``(text, language) -> text``, what of a transcript is to be learnt. Default all.
    """

    def __init__(
        self,
        chat: ChatFormat,
        *,
        pad_token: int,
        normalize: Callable[[str, str], str] = lambda text, lang: text,
    ) -> None:
        self.chat, self.pad_token, self.normalize = chat, pad_token, normalize

    def text(self, sample: Sample) -> str:
        """The normalised transcript of a sample.

        Raises:
            InputError: if the sample has no transcript, or not exactly one audio.
        """
        if len(sample.audio) != 1 or not sample.transcript:
            what = "no transcript" if len(sample.audio) == 1 else f"{len(sample.audio)} audios"
            raise InputError(
                f"sample {sample.id}: has {what}, and the projector learns from one audio and "
                "what is said in it; take other rows (dataset.tasks=[asr]), or add source_text"
            )
        return self.normalize(sample.transcript, sample.source_lang)

    def tokens(self, sample: Sample) -> list[int]:
        """Tokens of the normalised transcript, without pads; raises as :meth:`text`."""
        return self.chat.encode(self.text(sample))

    def fill(self, tokens: Sequence[int], length: int) -> np.ndarray:
        """A token for each of ``length`` speech vectors, see :func:`pad_targets`."""
        return pad_targets(tokens, length, self.pad_token)


def refuse_dense(
    samples: Sequence[Sample], tokens_n: np.ndarray, vectors_n: np.ndarray, on_too_long: str
) -> np.ndarray:
    """Samples whose transcript has more tokens than the utterance has speech vectors.

    Args:
        samples: the samples.
        tokens_n: tokens of each one's transcript, ``[n]``.
        vectors_n: its speech vectors, ``[n]``.
        on_too_long: ``fail``, or ``skip`` to have the log tell of them.

    Returns:
        True for those that do not fit, ``[n]``.

    Raises:
        InputError: naming the first of them, under ``fail``.
    """
    dense_n = tokens_n > vectors_n
    if dense_n.any():
        refuse_or_tell(
            samples,
            dense_n,
            lambda i: f"{tokens_n[i]} tokens for fewer speech vectors ({vectors_n[i]})",
            "join fewer frames in the projector",
            on_too_long,
        )
    return dense_n


def resolve_token(token: str | int, chat: ChatFormat) -> int:
    """The id of the pad token.

    Args:
        token: its id, or the name of a special token.
        chat: the LLM's chat format.

    Returns:
        The id.

    Raises:
        InputError: if it is none, more than one, or one that a text can hold.
    """
    if isinstance(token, str) and token in chat.special_tokens:
        return chat.special_tokens[token]
    is_id = isinstance(token, int) and not isinstance(token, bool)
    ids = [token] if is_id else chat.encode(str(token))
    cure = "give the id or the name of a token that no text holds, such as a reserved one"
    if len(ids) != 1:
        raise InputError(f"pad_token: {token!r} is {len(ids)} tokens for this LLM; {cure}")
    if ids[0] < 0:
        raise InputError(f"pad_token: {token}; give an id of 0 or more")
    if ids[0] < chat.vocab_size and ids[0] not in chat.special_ids:
        raise InputError(f"pad_token: {token!r} is a token of text, {chat.decode(ids)!r}; {cure}")
    return ids[0]
