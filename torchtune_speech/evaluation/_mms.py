"""The normaliser of Meta's MMS: what its multilingual error rates were measured with."""

import re
import unicodedata

# All of this stands after NFKC, which has turned full-width and ornamental forms into these.
# Hyphen and ASCII apostrophe are not among them: MMS keeps both.
_PUNCTUATION = (
    r"""!"#$%&()*+,./:;<=>?@\[\]^_{|}~"""
    "\u00a1\u00bf\u00a3\u20ac\u00a9\u00ac\u00b0\u00b6\u00b7\u00d7\u02c7"  # Latin-1 and a caron
    "\u2018-\u201f\u2039\u203a\u00ab\u00bb"  # quotation marks
    "\u2015\u2020-\u2022\u2027\u2030\u2038\u203b\u2044\u2060\u206f"
    "\u2192\u2212\u226a\u226b\u22ef\u230a\u230b\u231e\u231f\u2500"  # signs of mathematics, a line
    "\u055a-\u055f\u0589"  # Armenian
    "\u05be"  # Hebrew
    "\u060c\u061b\u061e\u061f\u0640\u06d4"  # Arabic
    "\u0964\u0965\u09f7"  # Devanagari, Bengali
    "\u0e46\u0ec6"  # Thai, Lao
    "\u0f04\u0f05\u0f0d\u0f0e"  # Tibetan
    "\u104a-\u104f\u109f"  # Myanmar
    "\u1361-\u1366"  # Ethiopic
    "\u166d\u166e"  # Canadian syllabics
    "\u17d4-\u17d7\u17da"  # Khmer
    "\u2d70\ua4fe\ua4ff\ua92e\ua92f"  # Tifinagh, Lisu, Kayah Li
    "\u3001\u3002\u3005\u3008-\u3011\u3014\u3015\u30fb\u30fc"  # Chinese, Japanese
    "\ufd3e\ufd3f\ufffd"
    "\x08\x1a\x7f-\x84\x86-\x9f\ue000-\uf8ff"  # control characters, private use
)
# Invisible marks of direction and width; Arabic vowel signs.
_DELETED = "\u200b\u200c\u200e\u200f\u202a\u202c\u064b-\u0652\u0656\u0657"
# Further characters deleted, or taken for punctuation, in single languages.
_DELETED_IN = {
    **dict.fromkeys(("mn", "mon", "khk"), "\u00ad"),
    **dict.fromkeys(("he", "heb"), "\u05b0-\u05cf"),
}
_PUNCTUATION_IN = dict.fromkeys(("th", "tha"), "\u200d")
_DIGITS = (
    "[0-9\u06f0-\u06f9\u0966-\u096f\u09e6-\u09ef\u0b66-\u0b6f\u0d66-\u0d6f\u1040-\u1049"
    "\u17e0-\u17e9\ua900-\ua909]+"
)
_BRACKET_WITH_DIGIT = re.compile(r"\([^)]*\d[^)]*\)")
_ENTITIES = re.compile("&lt;|&gt;|&nbsp")
# Both runs are greedy: of several apostrophes in a word only the last becomes an ASCII one.
_APOSTROPHE = re.compile(r"(\S+)[\u2018\u2019\u201b](\S+)")
# Never the only word of a text: there is whitespace on at least one side.
_NUMBER = re.compile(rf"^{_DIGITS}(?=\s)|(?<=\s){_DIGITS}(?=\s|$)")


def mms(text: str, lang: str) -> str:
    """Normalise a text as the data of MMS were.

    In this order: NFKC and lower case; round brackets with a digit inside fall with all they hold
    ("(Sam 23:17)"), others lose the brackets only; a typographic apostrophe inside a word becomes
    an ASCII one; punctuation of many scripts becomes a space, but hyphens and ASCII apostrophes
    stay, and so do dashes, which MMS does not list; invisible marks and Arabic vowel signs
    disappear; words of digits alone are dropped, unless the text is nothing else, and other numbers
    stay as they are spelt.

    This differs from MMS in two ways: all control characters and code points for private use count
    as punctuation, of which MMS lists the eighty that it met; and Javanese keeps its diacritics.

    Args:
        text: any text.
        lang: its language without script and region, "th" or "tha"; matters to Mongolian, Hebrew
            and Thai only.

    Returns:
        The text with single spaces between words.

    Source: text_normalization.py, norm_config.py and punctuations.lst in
        https://github.com/facebookresearch/fairseq/tree/main/examples/mms/data_prep;
        https://arxiv.org/abs/2305.13516

    Example:
        >>> mms("It’s 7 o'clock (10:30): twenty-five, 2nd!", "en")
        "it's o'clock twenty-five 2nd"
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = _BRACKET_WITH_DIGIT.sub(" ", text)
    text = _APOSTROPHE.sub(r"\1'\2", _ENTITIES.sub("", text)).replace("\u0671", "\u0627")
    text = re.sub(f"[{_PUNCTUATION}{_PUNCTUATION_IN.get(lang, '')}]", " ", text)
    text = re.sub(f"[{_DELETED}{_DELETED_IN.get(lang, '')}]", "", text)
    return " ".join(_NUMBER.sub(" ", text).split())
