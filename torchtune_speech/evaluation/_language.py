"""Which language an output is in, and whether it is the one that was asked for."""

from functools import lru_cache
from importlib.metadata import version

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from torchtune_speech.evaluation._normalizers import base_language, split_words

# Few on purpose: a short text is told apart from a few large languages more surely than from a
# hundred. Chinese and Japanese are known by their script.
LANGUAGES = (
    *("ar", "cs", "da", "de", "en", "es", "fi", "fr", "hi", "hu", "it", "ja", "ko", "nl"),
    *("no", "pl", "pt", "ro", "ru", "sv", "tr", "uk", "vi", "zh"),
)
_BY_SCRIPT = ("zh", "ja")
_ALIASES = {"nb": "no", "nn": "no"}

MIN_WORDS = 3
MIN_CHARACTERS = 4  # Chinese and Japanese
MIN_CONFIDENCE = 0.7

LANGUAGE_SIGNATURE = (
    f"py3langid:{version('py3langid')}|script:{'+'.join(_BY_SCRIPT)}|languages:{len(LANGUAGES)}"
    f"|words:{MIN_WORDS}|characters:{MIN_CHARACTERS}|confidence:{MIN_CONFIDENCE}"
)


def output_language(text: str) -> str | None:
    """The language of an output, if it is long and clear enough to tell.

    Where most words are Chinese characters or kana, it is Japanese when at least a tenth of them
    are kana, otherwise Chinese. All other texts go to py3langid, restricted to `LANGUAGES`.

    Args:
        text: an output of the model.

    Returns:
        One of `LANGUAGES`; None when undecided: fewer than 3 words with a letter and no digit (4
        characters in Chinese and Japanese), no word that begins with a small letter in a script
        that has them (names, titles), or less than 70 % of the probability on one language.

    Source: https://aclanthology.org/P12-3005 (langid.py, of which py3langid is a descendant)

    Example:
        >>> output_language("Der Hund sitzt im Garten."), output_language("狗坐在花园里。")
        ('de', 'zh')
        >>> output_language("Berlin, 1989") is None
        True
    """
    words = [word for word in split_words(text) if regex.search(r"\p{L}", word)]
    words = [word for word in words if not regex.search(r"\p{N}", word)]
    ideographs = [word for word in words if regex.match(r"[\p{Han}\p{Hiragana}\p{Katakana}]", word)]
    if 2 * len(ideographs) > len(words):
        return _by_script(ideographs)
    if len(words) < MIN_WORDS or _are_names(words):
        return None
    lang, confidence = _identifier().classify(text)
    return lang if confidence >= MIN_CONFIDENCE else None


def in_language(text: str, lang: str) -> bool | None:
    """Whether an output is in the language asked for.

    Args:
        text: an output of the model.
        lang: language tag.

    Returns:
        None when undecided, see :func:`output_language`, or when the language is none of
        `LANGUAGES`.
    """
    base = base_language(lang)
    asked = _ALIASES.get(base, base)
    if asked not in LANGUAGES:
        return None
    found = output_language(text)
    return None if found is None else found == asked


def _by_script(characters: list[str]) -> str | None:
    if len(characters) < MIN_CHARACTERS:
        return None
    kana = sum(bool(regex.match(r"[\p{Hiragana}\p{Katakana}]", c)) for c in characters)
    return "ja" if 10 * kana >= len(characters) else "zh"


def _are_names(words: list[str]) -> bool:
    """All begin with a capital letter, and it is not that all of the text is in capitals."""
    initials = [regex.search(r"\p{L}", word)[0] for word in words]
    return all(initial.isupper() for initial in initials) and not "".join(words).isupper()


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([lang for lang in LANGUAGES if lang not in _BY_SCRIPT])
    return identifier
