"""What is done to a text before it is compared: an error rate means nothing without its name."""

import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial

import regex
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from torchtune_speech.errors import InputError, did_you_mean
from torchtune_speech.evaluation._mms import mms

Normalizer = Callable[[str], str]

NORMALIZERS = ("whisper", "basic", "mms", "none")
# Those that every report shows, whichever one is asked for.
REPORTED_NORMALIZERS = ("none", "whisper", "mms")

# Scripts written without spaces between words: a character counts as a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORD_CHARACTER = r"[\p{L}\p{M}\p{N}]"
# Punctuation and symbols, but for an apostrophe between two letters ("don't", "l'acqua").
PUNCTUATION = regex.compile(
    rf"(?<!{_WORD_CHARACTER})'|'(?!{_WORD_CHARACTER})|[[\p{{P}}\p{{S}}\p{{Cc}}]--[']]",
    flags=regex.V1,
)
# whisper_normalizer spells these out since 0.1.2 ("the cause" becomes "the because"); Whisper's
# own normaliser and the release that the Instruction-following task scores with do not.
_ADDED_TO_WHISPER = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")


# Codes of three letters (ISO 639, as in FLORES and FLEURS) of the languages that something here
# goes by. Cantonese is scored as Chinese is.
_SHORT = {"cmn": "zh", "zho": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "tha": "th"}
_SHORT |= {"eng": "en", "deu": "de", "ger": "de", "ita": "it", "fra": "fr", "fre": "fr"}
_SHORT |= {"spa": "es", "por": "pt", "nld": "nl", "rus": "ru", "ukr": "uk", "pol": "pl"}
_SHORT |= {"ces": "cs", "hun": "hu", "ron": "ro", "tur": "tr", "arb": "ar", "ara": "ar"}
_SHORT |= {"hin": "hi", "vie": "vi", "fin": "fi", "swe": "sv", "dan": "da", "nob": "nb"}


def base_language(lang: str) -> str:
    """The language of a language tag, without script and region.

    Args:
        lang: a tag such as "de", "zh-CN", "zho_Hant" or "cmn_hans_cn".

    Returns:
        The part before the first separator in lower case, of two letters where it has such a code:
        "de", "zh".
    """
    base = lang.replace("_", "-").split("-")[0].lower()
    return _SHORT.get(base, base)


def normalizer(name: str, lang: str = "en") -> Normalizer:
    """The function that prepares a text of one language for comparison.

    - "whisper": Whisper's normaliser, the one that the Instruction-following task uses. For
      English it also spells out contractions, writes numbers in digits, unifies British and
      American spelling and drops fillers ("uh"); for other languages it is Whisper's basic one
      (lower case, no punctuation, nothing inside brackets). It joins digits said one by one
      ("one two three" is the single word "123"): for read-out numbers take "basic". The rules are
      those of whisper_normalizer 0.0.10, whatever release is installed.
    - "basic": lower case, punctuation and symbols removed, whitespace folded; apostrophes inside
      a word stay. The same for every language.
    - "mms": that of Meta's MMS, see :func:`torchtune_speech.evaluation.mms`: lower case, no
      punctuation, words of digits alone dropped; hyphens and apostrophes stay.
    - "none": leading, trailing and repeated whitespace only.

    Args:
        name: "whisper", "basic", "mms" or "none".
        lang: language of the text; matters to "whisper", and for three languages to "mms".

    Returns:
        A function from text to normalised text, without outer whitespace.

    Raises:
        InputError: for an unknown name.

    Source: appendix C of https://arxiv.org/abs/2212.04356

    Example:
        >>> normalizer("whisper")("Mr. Smith's colour isn't twenty-five!")
        'mister smith is color is not 25'
        >>> normalizer("basic")("L'acqua, com'è?")
        "l'acqua com'è"
    """
    if name not in NORMALIZERS:
        hint = did_you_mean(name, NORMALIZERS) or f"; choose from {', '.join(NORMALIZERS)}"
        raise InputError(f"normalizer: unknown name {name!r}{hint}")
    if name == "none":
        return _fold_whitespace
    if name == "basic":
        return _basic
    if name == "mms":
        return partial(mms, lang=base_language(lang))
    return _whisper(base_language(lang) == "en")


def split_words(text: str) -> list[str]:
    """The units that error rates, F1 and loops count: words, and single Chinese characters.

    The script decides and not the language label, so an answer in the wrong language, or one that
    mixes two scripts, is cut as its reader would cut it.

    Args:
        text: a text, normalised or not.

    Returns:
        Words as separated by whitespace; each Han, Hiragana or Katakana character on its own.

    Example:
        >>> split_words("用 Python 写的")
        ['用', 'Python', '写', '的']
    """
    return regex.sub(f"({_UNSPACED})", r" \1 ", text).split()


def join_unspaced(text: str) -> str:
    """The text without whitespace next to characters of scripts that do not use it."""
    return regex.sub(rf"\s*({_UNSPACED})\s*", r"\1", text)


def _fold_whitespace(text: str) -> str:
    return " ".join(text.split())


def _basic(text: str) -> str:
    # Lower case twice: NFKC turns some caseless symbols (a bold capital A) into capital letters.
    text = unicodedata.normalize("NFKC", text.lower()).lower().replace("\u2019", "'")
    return _fold_whitespace(PUNCTUATION.sub(" ", text))


@lru_cache(maxsize=2)
def _whisper(english: bool) -> Normalizer:
    clean = _whisper_english() if english else BasicTextNormalizer()
    return lambda text: clean(text).strip()


def _whisper_english() -> EnglishTextNormalizer:
    clean = EnglishTextNormalizer()
    for pattern in _ADDED_TO_WHISPER:
        clean.replacers.pop(pattern, None)
    # The list of spellings that is shipped makes "archeology</span>" of it, which no other text is.
    clean.standardize_spellings.mapping["archaeology"] = "archeology"
    return clean
