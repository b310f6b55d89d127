"""Right answers in other words: a full sentence, another order, another article, a synonym."""

from dataclasses import replace

from torchtune_speech.nano._grammar import Sentence, answer_phrase, finish, subject_phrase, told
from torchtune_speech.nano._lexicon import LANGUAGES

_DIGITS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "eleven": "11",
    "twelve": "12",
    "twenty": "20",
}
# English noun of the lexicon -> other nouns for the same person, in the order of LANGUAGES.
_PERSONS = {
    "doctor": ("physician", "der Mediziner", "il dottore", "大夫"),
    "teacher": ("schoolteacher", "die Schullehrerin", "l'insegnante", "教师"),
    "farmer": ("grower", "der Landwirt", "l'agricoltore", "农夫"),
    "journalist": ("reporter", "der Reporter", "il reporter", "新闻记者"),
}
# Part of a place or time -> its synonym; the first that is found is taken.
_WORDS = {
    "en": (("near ", "close to "), ("every ", "each ")),
    "de": (
        ("nahe ", "nahe bei "),
        ("jeden Montag", "montags"),
        ("jeden Dienstag", "dienstags"),
        ("jeden Mittwoch", "mittwochs"),
        ("jeden Donnerstag", "donnerstags"),
        ("jeden Freitag", "freitags"),
        ("jeden Samstag", "samstags"),
        ("jeden Sonntag", "sonntags"),
        ("jeden Morgen", "morgens"),
        ("jeden Abend", "abends"),
    ),
    "it": (
        ("vicino ", "accanto "),
        ("ogni lunedì", "di lunedì"),
        ("ogni martedì", "di martedì"),
        ("ogni mercoledì", "di mercoledì"),
        ("ogni giovedì", "di giovedì"),
        ("ogni venerdì", "di venerdì"),
        ("ogni sabato", "di sabato"),
        ("ogni domenica", "di domenica"),
        ("ogni mattina", "di mattina"),
        ("ogni sera", "di sera"),
    ),
    "zh": (
        ("附近", "旁边"),
        ("星期天", "周日"),
        ("星期", "周"),
        ("每天早上", "每天早晨"),
        ("每天晚上", "每晚"),
    ),
}


def paraphrases(sentence: Sentence, kind: str, lang: str) -> dict[str, str]:
    """Returns the answer to a question in other words, in all ways that language and kind have.

    Args:
        sentence: The sentence that is asked about; it has the constituent.
        kind: Kind of the question.
        lang: One of "en", "de", "it", "zh".

    Returns:
        Way to text, of the ways "sentence" (the answer within a full sentence), "order" (within
        one of another word order), "article" (with an article more or less) and "synonym"
        (another word; digits for a number).

    Example:
        >>> paraphrases(sentence, "where", "en")["order"]
        'At the station the doctor waits.'
    """
    asked = told(sentence, kind)
    found = {
        "sentence": asked.text(lang),
        "order": reordered(asked, kind, lang),
        "article": _other_article(asked, kind, lang),
        "synonym": _synonym(asked, kind, lang),
    }
    return {way: text for way, text in found.items() if text is not None}


def reordered(sentence: Sentence, kind: str, lang: str) -> str:
    """Returns a full sentence that puts the answer elsewhere.

    Args:
        sentence: What `told` left of the sentence asked about.
        kind: Kind of the question.
        lang: One of "en", "de", "it", "zh".

    Returns:
        The sentence, such as "What the nurse buys is seven red apples."
    """
    if kind == "when":
        return replace(sentence, time_first=True).text(lang)
    subject = subject_phrase(sentence.subject, sentence.adjective, lang)
    verb, thing = getattr(sentence.verb, lang), sentence.object_phrase(lang)
    if kind == "who":
        return _who_cleft(sentence, subject, verb, thing, lang)
    if kind == "where":
        place = getattr(sentence.place, lang)
        return {
            "en": finish(lang, place, subject, verb, thing),
            "de": finish(lang, place, verb, subject, thing),
            "it": finish(lang, "è", place, "che", verb, thing, subject),
            "zh": finish(lang, subject, "是", place, verb, thing, "的"),
        }[lang]
    if kind == "what":
        return {
            "en": finish(lang, "what", subject, verb, "is", thing),
            "de": finish(lang, "was", subject, f"{verb},", "sind", thing),
            "it": finish(lang, "ciò che", verb, subject, "sono", thing),
            "zh": finish(lang, subject, verb, "的是", thing),
        }[lang]
    noun, number = getattr(sentence.thing, lang), answer_phrase(sentence, kind, lang)
    return {
        "en": finish(lang, "the number of", noun, "is", number),
        "de": finish(lang, "die Zahl der", noun, "ist", number),
        "it": finish(lang, "il numero di", noun, "è", number),
        "zh": finish(lang, noun, "的数量是", number),
    }[lang]


def _who_cleft(sentence: Sentence, subject: str, verb: str, thing: str, lang: str) -> str:
    circumstance = getattr(sentence.place or sentence.time, lang, "")
    return {
        "en": finish(lang, "it is", subject, "who", verb, thing, circumstance),
        # The relative pronoun in the nominative is the article.
        "de": finish(lang, "es ist", f"{subject},", subject.split()[0], circumstance, thing, verb),
        "it": finish(lang, "è", subject, "che", verb, thing, circumstance),
        "zh": finish(lang, circumstance, verb, thing, "的是", subject),
    }[lang]


def _other_article(sentence: Sentence, kind: str, lang: str) -> str | None:
    if lang == "zh" or kind not in ("who", "what"):
        return None
    phrase = answer_phrase(sentence, kind, lang)
    if kind == "who":
        if lang == "de" and sentence.adjective and phrase.startswith("der "):
            # Without the article the adjective shows the gender: "der alte", but "alter".
            adjective = sentence.adjective.de
            phrase = phrase.replace(f" {adjective} ", f" {adjective}r ")
        start = phrase.index("'") if phrase.startswith("l'") else phrase.index(" ")
        return finish(lang, phrase[start + 1 :])
    if lang == "en":
        return finish(lang, "the", phrase)
    number, thing = getattr(sentence.number, lang), sentence.thing
    if lang == "de":  # weak after an article: "sieben rote", but "die sieben roten"
        return finish(lang, "die", number, sentence.thing_adjective.de + "n", thing.de)
    masculine = "gli" if number[0] in "aeiou" else "i"
    return finish(lang, masculine if thing.gender == "m" else "le", phrase)


def _synonym(sentence: Sentence, kind: str, lang: str) -> str | None:
    if kind == "who":
        names = _PERSONS.get(sentence.subject.en)
        if names is None:
            return None
        person = replace(sentence.subject, **dict(zip(LANGUAGES, names, strict=True)))
        return finish(lang, answer_phrase(replace(sentence, subject=person), kind, lang))
    if kind in ("what", "how many"):
        digits = _DIGITS[sentence.number.en]
        number = replace(sentence.number, **dict.fromkeys(LANGUAGES, digits))
        return finish(lang, answer_phrase(replace(sentence, number=number), kind, lang))
    phrase = answer_phrase(sentence, kind, lang)
    for word, other in _WORDS[lang]:
        if word in phrase:
            return finish(lang, phrase.replace(word, other))
    return None
