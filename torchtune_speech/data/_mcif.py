"""Files of the Instruction-following task (MCIF, IWSLT): sources to answer, outputs to hand in."""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_speech.data._row import Fault
from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write

# Tab, line feed, and what is neither a control character nor forbidden in XML 1.0.
_UNFIT = re.compile(
    "[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # no surrogates, U+FFFE, U+FFFF
)


@dataclass(frozen=True, slots=True)
class McifOutput:
    """What a system handed in for one track and language.

    Attributes:
        name: name of the test set or system, as the file gives it.
        track: "short" or "long".
        text_lang: language of the texts.
        texts: id of the sample to text, in the order of the file.
    """

    name: str
    track: str
    text_lang: str
    texts: Mapping[str, str]


def read_mcif_source(
    path: str | os.PathLike[str], track: str | None = None, lang: str | None = None
) -> list[dict[str, str]]:
    """Read the official file of what is to be answered, as rows of a manifest.

    Args:
        path: the XML file; the audio paths in it start at its folder.
        track: "short" or "long"; needed when the file holds both.
        lang: language of the answers; needed when the file holds several.

    Returns:
        Rows with ``id``, ``audio``, ``instruction``, ``target_lang`` and ``track``.

    Raises:
        InputError: for a file that cannot be read or is ambiguous, and for a sample without an id
            of its own, audio or instruction.

    Example:
        >>> rows = read_mcif_source("IF.short.de.src.xml")
        >>> rows[0]["instruction"]
        'Übersetze den englischem Inhalt nach Deutsch.'
    """
    rows = []
    for number, row in mcif_source_rows(path, track, lang):
        if isinstance(row, Fault):
            raise InputError(f"{path}:{number}: {row.what}; {row.cure}")
        rows.append(row)
    return rows


def mcif_source_rows(
    path: str | os.PathLike[str], track: str | None = None, lang: str | None = None
) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """Yield (sample from 1, its row or what is wrong with it); see :func:`read_mcif_source`."""
    _, task = read_mcif_task(path, track, lang)
    seen: set[str] = set()
    for number, sample in enumerate(task.iter("sample"), start=1):
        try:
            row = _source_row(sample)
            if row["id"] in seen:
                what = f"sample {row['id']!r} is there twice"
                raise Fault("duplicate id", what, "give each sample an id of its own")
        except Fault as fault:
            yield number, fault
            continue
        seen.add(row["id"])
        yield number, row | {"target_lang": task.attrib["text_lang"], "track": task.attrib["track"]}


def read_mcif_output(
    path: str | os.PathLike[str], track: str | None = None, lang: str | None = None
) -> McifOutput:
    """Read a file of answers, exactly as they are in it.

    Args:
        path: the XML file.
        track: "short" or "long"; needed when the file holds both.
        lang: language of the answers; needed when the file holds several.

    Returns:
        Name, track, language and texts. An empty sample is "".

    Raises:
        InputError: for a file that cannot be read or is ambiguous, and for a sample without an id
            of its own or with elements in its text.
    """
    name, task = read_mcif_task(path, track, lang)
    texts: dict[str, str] = {}
    for number, sample in enumerate(task.iter("sample"), start=1):
        id_ = sample.get("id")
        if not id_ or id_ in texts:
            what = f"the id {id_!r} of an earlier one" if id_ else "no id"
            raise InputError(f"{path}: sample {number} has {what}; give each an id of its own")
        if len(sample):
            raise InputError(
                f"{path}: sample {id_!r} holds an element <{sample[0].tag}>; write < in a text as "
                "&lt;"
            )
        texts[id_] = sample.text or ""
    return McifOutput(name, task.attrib["track"], task.attrib["text_lang"], texts)


def write_mcif_output(
    path: str | os.PathLike[str],
    texts: Mapping[str, str],
    *,
    track: str,
    text_lang: str,
    name: str,
    expected_ids: Iterable[str] | None = None,
    declaration: bool = True,
) -> None:
    r"""Write answers as the official scorer reads them; the file appears when it is whole.

    Control characters other than tab and line feed, and what else XML cannot hold, are left out;
    ``\r\n`` and ``\r`` become ``\n``, which is what any XML parser makes of them.

    Args:
        path: the XML file to write.
        texts: id of the sample to text.
        track: "short" or "long".
        text_lang: language of the texts.
        name: name of the test set or system.
        expected_ids: ids of the source file: all of them must have a text, no other may, and they
            are written in this order. Default: the texts as they come.
        declaration: whether the file begins with ``<?xml version='1.0' encoding='utf-8'?>``, as
            the task's own writer has it.

    Raises:
        InputError: for ids without a text, and for texts whose id is not expected.
    """
    ids = list(texts) if expected_ids is None else list(expected_ids)
    missing = [id_ for id_ in ids if id_ not in texts]
    if missing:
        raise InputError(
            f"{path}: no text for {_some(missing)} of {len(ids)} ids; answer the whole source "
            "file, an empty text will do"
        )
    unknown = list(texts.keys() - set(ids))
    if unknown:
        raise InputError(
            f"{path}: texts for {_some(sorted(unknown))}, which the source file does not have; "
            "take the answers to that file alone"
        )
    root = ET.Element("testset", name=_fit(name), type="output")
    task = ET.SubElement(root, "task", track=track, text_lang=text_lang)
    for id_ in ids:
        ET.SubElement(task, "sample", id=_fit(id_)).text = _fit(texts[id_])
    ET.indent(root, "  ")
    with atomic_write(path) as temporary:
        temporary.write_bytes(ET.tostring(root, "utf-8", xml_declaration=declaration))


def read_mcif_task(
    path: str | os.PathLike[str], track: str | None = None, lang: str | None = None
) -> tuple[str, ET.Element]:
    """Read one task element of an official file: source, output or reference.

    Args:
        path: the XML file, in UTF-8. It may come from anywhere: one that declares a document type
            or entities is refused.
        track: "short" or "long"; needed when the file holds both.
        lang: its ``text_lang``; needed when the file holds several.

    Returns:
        Name of the test set and the element ``<task track=... text_lang=...>``.

    Raises:
        InputError: for a file that cannot be read, and unless exactly one element fits.
    """
    root = _parse(Path(path))
    if root.tag != "testset":
        raise InputError(f"{path}: begins with <{root.tag}>, not <testset>; give an MCIF file")
    tasks = [t for t in root.iter("task") if "track" in t.attrib and "text_lang" in t.attrib]
    there = ", ".join(f"{t.attrib['track']}/{t.attrib['text_lang']}" for t in tasks) or "none"
    chosen = [
        t
        for t in tasks
        if track in (None, t.attrib["track"]) and lang in (None, t.attrib["text_lang"])
    ]
    if not chosen:
        asked = f"{track or 'any track'}/{lang or 'any language'}"
        raise InputError(f"{path}: no task {asked}; track and text_lang there: {there}")
    if len(chosen) > 1:
        raise InputError(
            f"{path}: holds several tasks ({there}); name one: mcif_track and mcif_lang of "
            "speech_eval, where={track: ..., target_lang: ...} of a manifest"
        )
    return root.get("name", ""), chosen[0]


def _parse(path: Path) -> ET.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: not found; check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bounds
        raise InputError(f"{path}: declares a document type or entities; remove the declaration")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{path}: not valid XML ({error}); mend it there") from None


def _source_row(sample: ET.Element) -> dict[str, Any]:
    id_ = sample.get("id", "").strip()
    if not id_:
        raise Fault("missing id", "the sample has no id", "give each sample an id of its own")
    found = {name: _text_of(sample, name) for name in ("audio_path", "instruction")}
    if not found["audio_path"]:
        others = [n for n in ("video_path", "text_path") if sample.find(n) is not None]
        what = f"sample {id_!r} has no audio_path"
        what += f", only {' and '.join(others)}" if others else ""
        raise Fault("no audio", what, "take the source file of the audio modality")
    if not found["instruction"]:
        what = f"sample {id_!r} has no instruction"
        raise Fault("no instruction", what, "write what is to be done")
    return {"id": id_, "audio": found["audio_path"], "instruction": found["instruction"]}


def _text_of(sample: ET.Element, name: str) -> str:
    return (sample.findtext(name) or "").strip()


def _fit(text: str) -> str:
    return _UNFIT.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _some(ids: list[str]) -> str:
    """The first ids, and how many more there are."""
    named = ", ".join(map(repr, ids[:5]))
    return named if len(ids) <= 5 else f"{named} and {len(ids) - 5} more"
