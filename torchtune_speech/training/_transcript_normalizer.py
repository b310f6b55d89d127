"""What of a transcript is to be learnt, by the normalisers that words are scored under."""

from collections.abc import Callable
from functools import partial

from torchtune_speech.evaluation import normalizer


def transcript_normalizer(name: str) -> Callable[[str, str], str]:
    """What is left of a transcript to be learnt.

    Args:
        name: of a normaliser, see :func:`torchtune_speech.evaluation.normalizer`.

    Returns:
        ``(text, language) -> text``; it can be pickled.

    Raises:
        InputError: if the name is unknown.
    """
    normalizer(name)
    return partial(_normalized, name)


def _normalized(name: str, text: str, lang: str) -> str:
    return normalizer(name, lang)(text)
