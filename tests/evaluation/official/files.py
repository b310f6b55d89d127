"""Files of answers and of references to compare scorers on: made ones, and real answers."""

import random
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from torchtune_speech.data import read_mcif_output, write_mcif_output
from torchtune_speech.evaluation import normalizer

# Ways to write the same or nearly the same: each text takes one at random.
_FORMS = {
    "en": {
        "N": ["twenty-five", "25", "twenty five", "25th", "two thousand and ten", "2,010", "2010"],
        "M": ["$2.50", "two dollars and fifty cents", "20 %", "twenty percent", "£3 million"],
        "D": ["one two three", "123", "double five", "55", "oh seven", "07", "three and a half"],
        "C": ["isn't", "is not", "won't", "will not", "can't", "cannot", "'s gone", "has gone"],
        "B": ["colour", "color", "analysed", "analyzed", "dialogue", "dialog"],
        "A": [
            "archaeology",
            "archeology",
            "cause",
            "because",
            "'cause",
            "kinda",
            "kind of",
            "sorta",
            "dunno",
        ],
        "F": ["uh", "um,", "hmm", "mm", "", "you know", "[laughter]", "(cough)", "<noise>"],
        "T": ["Mr.", "mister", "Dr. Smith's", "doctor Smith's", "St", "Prof.", "they'd been"],
        "P": ["well -", "state-of-the-art", "naïve", "e.g.", "“so”", "U.S.", "A.I.", "it’s"],
    },
    "de": {
        "N": ["fünfundzwanzig", "25", "2.010", "3,5", "20 %"],
        "C": ["geht's", "geht es", "geht’s", "für's", "fürs"],
        "F": ["äh", "[Lachen]", "(Husten)", "", "also,"],
        "P": ["Straße", "STRASSE", "Café", "„so“", "E-Mail", "Email", "z. B.", "z.B."],
    },
    "zh": {
        "N": ["二十五", "25", "２５", "百分之二十"],
        "F": ["嗯", "（笑）", "", "[笑声]"],
        "P": ["“模型”", "模型", "BERT 模型", "BERT模型", "語言"],
    },
}
_SENTENCES = {
    "en": [
        "T we A show N models , and F the B C new .",
        "F , the A of D errors P M !",
        "Our P approach C better than N others , A the B",
        "In this work , F we study B and P for M ?",
        "I A know T what the N C about",
        "Hello everyone , my name is T Jones and F I P present D",
    ],
    "de": [
        "Heute F zeigen wir N Modelle , und es C gut .",
        "Die P ist F lang !",
        "Unser P Ansatz C N Mal besser ?",
        "Guten Tag F , ich heiße P",
    ],
    "zh": ["我们 F 提出 N 个 P 。", "大家好 ， F 这 是 P 的 N ！", "这 项 工作 F 很 好 P"],
}
_NOISE = {
    "en": ["the", "of", "and", "model", "uh", "7", "seventy", "not", "colour", "cause"],
    "de": ["die", "und", "Modell", "äh", "7", "nicht"],
    "zh": ["的", "模型", "不", "7"],
}


@dataclass(frozen=True, slots=True)
class Case:
    """A file of answers and what they are compared with.

    Attributes:
        name: for the table.
        output: answers, in the official format.
        reference: references, in the official format.
        lang: language of the texts; the track is "short".
        segments: the most answers an item has.
    """

    name: str
    output: Path
    reference: Path
    lang: str
    segments: int


def make_cases(folder: Path, items: int = 300, seed: int = 1) -> list[Case]:
    """Sentences in two writings, one of them with errors.

    Args:
        folder: where the files go.
        items: of each file.
        seed: of the random choices.

    Returns:
        English with one answer an item; English, German and Chinese with up to four.
    """
    cases = []
    for lang, segments in (("en", 1), ("en", 4), ("de", 4), ("zh", 4)):
        draw = random.Random(f"{seed} {lang} {segments}")
        pairs = []
        for _ in range(items):
            sentences = draw.choices(_SENTENCES[lang], k=draw.randint(1, 3))
            reference, prediction = (
                " ".join(_write(sentence, lang, draw) for sentence in sentences) for _ in range(2)
            )
            pairs.append((reference, _cut(_garble(prediction, lang, draw), segments, draw)))
        cases.append(_write_case(folder, f"made, {lang}, {_up_to(segments)}", lang, pairs))
    return cases


def real_cases(folder: Path, outputs: Path) -> list[Case]:
    """Real answers of each system against those of the next, since references are not public.

    Args:
        folder: where the files go.
        outputs: folder of files ``audio_short_LANG_fixed_SYSTEM_output.xml``; may be absent.

    Returns:
        For each file the answers one by one, and for English also three by three.
    """
    cases = []
    for lang in ("en", "de", "it", "zh"):
        start, end = f"audio_short_{lang}_fixed_", "_output.xml"
        paths = sorted(outputs.glob(f"{start}*{end}"))
        clean = normalizer("whisper", lang)
        for path, other in zip(paths, paths[1:] + paths[:1], strict=True):
            texts, references = read_mcif_output(path).texts, read_mcif_output(other).texts
            # An item without a word in its reference stops the official scorer.
            ids = [id_ for id_ in texts if id_ in references and clean(references[id_])]
            for segments in (1, 3) if lang == "en" else (1,):
                groups = [ids[i : i + segments] for i in range(0, len(ids), segments)]
                pairs = [
                    (" ".join(references[i] for i in group), [texts[i] for i in group])
                    for group in groups
                ]
                system = path.name.removeprefix(start).removesuffix(end)
                name = f"{system}, {lang}, {_up_to(segments)}"
                cases.append(_write_case(folder, name, lang, pairs))
    return cases


def _up_to(segments: int) -> str:
    return "one answer" if segments == 1 else f"up to {segments} answers"


def _write(sentence: str, lang: str, draw: random.Random) -> str:
    """The sentence with its letters replaced, in a random case."""
    forms = _FORMS[lang]
    words = [draw.choice(forms[w]) if w in forms else w for w in sentence.split()]
    text = " ".join(word for word in words if word)
    return draw.choice([str, str, str.lower, str.upper])(text)


def _garble(text: str, lang: str, draw: random.Random) -> str:
    """One text in twelve empty, else a tenth of the words deleted, doubled, replaced, or followed
    by another.
    """
    if draw.random() < 1 / 12:
        return draw.choice(["", " ", "...", "uh"])
    words = []
    for word in text.split():
        kind, noise = draw.random(), draw.choice(_NOISE[lang])
        if kind < 0.1:
            words += draw.choice([[], [word, word], [noise], [word, noise]])
        else:
            words.append(word)
    return draw.choice([" ", " ", "  ", "\n"]).join(words)


def _cut(text: str, segments: int, draw: random.Random) -> list[str]:
    """Cut between characters, so that a number or a contraction may be in two answers."""
    places = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(1, segments) - 1))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def _write_case(folder: Path, name: str, lang: str, pairs: list[tuple[str, list[str]]]) -> Case:
    """Write (reference, answers) of the items; ids count the answers, in another order."""
    root = ET.Element("testset", name="check", type="reference")
    task = ET.SubElement(root, "task", track="short", text_lang=lang)
    texts: dict[str, str] = {}
    for number, (reference, answers) in enumerate(pairs):
        ids = [str(len(texts) + i) for i in range(len(answers))]
        texts |= zip(ids, answers, strict=True)
        sample = ET.SubElement(task, "sample", id=",".join(ids), iid=f"ASR_{number}", task="ASR")
        ET.SubElement(sample, "reference").text = reference
    stem = name.replace(", ", "_").replace(" ", "_")
    reference_path, output_path = folder / f"{stem}.ref.xml", folder / f"{stem}.out.xml"
    ET.ElementTree(root).write(reference_path, encoding="utf-8", xml_declaration=True)
    shuffled = dict(reversed(texts.items()))
    write_mcif_output(output_path, shuffled, track="short", text_lang=lang, name="check")
    return Case(name, output_path, reference_path, lang, max(len(a) for _, a in pairs))
