"""The official scores of the Instruction-following task (MCIF, IWSLT)."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from torchtune_speech.data import read_mcif_task
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._normalizers import base_language, normalizer
from torchtune_speech.evaluation._resegment import resegment
from torchtune_speech.evaluation._translation import bleu_chrf

# (sources, predictions, references) -> COMET of them all.
Comet = Callable[[list[str], list[str], list[str]], float]
# (predictions, references, language) -> mean F1.
BertScore = Callable[[list[str], list[str], str], float]
Line = dict[str, Any]

# Name of a task in the reference files of 2025, and of later years -> kind of task.
_KINDS = {
    "ASR": "ASR", "ST": "TRANS", "TRANS": "TRANS", "SQA": "QA", "QA": "QA", "SSUM": "SUM",
    "SUM": "SUM",
}  # fmt: skip
_MEASURES = {"ASR": "WER", "TRANS": "COMET", "QA": "BERTScore", "SUM": "BERTScore"}


@dataclass(frozen=True, slots=True)
class McifReference:
    """What the answers to one or several samples are compared with.

    Attributes:
        task: name of the task in the file: ASR, TRANS (ST), QA (SQA), SUM (SSUM), or another.
        iid: name of the item.
        ids: the samples whose texts, one after the other, are the answer.
        reference: the right answer; in TRANS, a line for each sentence.
        transcript: of TRANS: what was said, line by line as ``reference``.
        qa_type: of QA, where known: kind of question.
        qa_origin: of QA, where known: how the question was made.
    """

    task: str
    iid: str
    ids: tuple[str, ...]
    reference: str
    transcript: str | None = None
    qa_type: str | None = None
    qa_origin: str | None = None


def read_mcif_reference(
    path: str | os.PathLike[str], track: str | None = None, lang: str | None = None
) -> list[McifReference]:
    """Read an official file of references.

    Args:
        path: the XML file.
        track: "short" or "long"; needed when the file holds both.
        lang: language of the answers; needed when the file holds several.

    Returns:
        The references, in the order of the file.

    Raises:
        InputError: for a file that cannot be read or is ambiguous, for a sample that lacks
            something or has the task and iid of another, and for a transcript with another number
            of lines than its translation.
    """
    _, task = read_mcif_task(path, track, lang)
    found: dict[tuple[str, str], McifReference] = {}
    for number, sample in enumerate(task.iter("sample"), start=1):
        reference = _read_sample(sample, f"{path}: sample {number}")
        key = reference.task, reference.iid
        if key in found:
            raise InputError(
                f"{path}: sample {number} has the task and iid of an earlier one "
                f"({reference.task}, {reference.iid!r}); give each its own"
            )
        found[key] = reference
    if not found:
        raise InputError(f"{path}: no sample in it; give the file of references")
    return list(found.values())


def mcif_scores(
    texts: Mapping[str, str],
    reference: Sequence[McifReference],
    lang: str,
    *,
    comet: Comet | None = None,
    bertscore: BertScore | None = None,
) -> dict[str, Any]:
    """Score the answers of one track and language as the task does.

    - ASR-WER: word error rate of the corpus; each answer is normalised (Whisper's normaliser), the
      answers of an item are joined by a blank. Words are what blanks separate, whatever the
      script, so a Chinese sentence in an English transcript is one word here.
    - TRANS-COMET: the answers of an item, one a line, are cut anew to its reference lines, see
      :func:`~torchtune_speech.evaluation.resegment` (in Chinese between characters).
    - QA-BERTScore, SUM-BERTScore: mean F1 of the answers as they are.

    Outer whitespace of the answers is dropped. The names are those of the reference file:
    in the files of 2025, ST-COMET, SQA-BERTScore and SSUM-BERTScore.

    Args:
        texts: id of the sample to answer, ``McifOutput.texts``.
        reference: what :func:`read_mcif_reference` returned.
        lang: language of the answers.
        comet: from sources, predictions and references to the score of them all; the task takes
            ``Unbabel/wmt22-comet-da``. None: the score is None, and ``notes`` says so.
        bertscore: from predictions, references and language to the mean F1; the task takes
            ``rescale_with_baseline=True``. None: the scores are None.

    Returns:
        ``scores`` (name to number or None); ``n`` (items by task); ``details`` by task: edit counts
        of ASR, BLEU and chrF of TRANS on the lines cut anew; ``lines``, one for each pair compared:
        ``task``, ``iid``, ``line`` (from 1), ``prediction``, ``reference``, in TRANS also
        ``source``; ``notes``.

    Raises:
        InputError: for ids without a text.

    Source: https://github.com/hlt-mt/mcif (evaluation)

    Example:
        >>> reference = read_mcif_reference("IF.short.de.ref.xml", "short", "de")
        >>> mcif_scores(read_mcif_output("out.xml").texts, reference, "de")["scores"]
        {'TRANS-COMET': None, 'QA-BERTScore': None}
    """
    _check_ids(texts, reference)
    texts = {id_: text.strip() for id_, text in texts.items()}
    report: dict[str, Any] = {"scores": {}, "n": {}, "details": {}, "lines": [], "notes": []}
    for task in dict.fromkeys(item.task for item in reference):
        items = [item for item in reference if item.task == task]
        report["n"][task] = len(items)
        kind = _KINDS.get(task)
        if kind is None:
            report["notes"].append(f"{task}: no score, task unknown")
            continue
        lines = [line for item in items for line in _lines(item, kind, texts, lang)]
        report["lines"] += lines
        name = f"{task}-{_MEASURES[kind]}"
        value, report["details"][task] = _score(kind, lines, lang, comet, bertscore)
        report["scores"][name] = value
        if value is None:
            report["notes"].append(f"{name}: not computed, no {_MEASURES[kind]} model was given")
    return report


def mcif_rows(
    texts: Mapping[str, str],
    reference: Sequence[McifReference],
    lang: str,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The pairs that the task compares, as rows for :func:`score`.

    Args:
        texts: id of the sample to answer.
        reference: what :func:`read_mcif_reference` returned.
        lang: language of the answers.
        known: id of the sample to the row of the predictions file, where there is one: its audio,
            duration, question and finish reason are taken over for items of a single sample.

    Returns:
        A row for each transcript, line of a translation, answer and summary, and for nothing else:
        ``id``, ``task`` (asr, st, sqa or summary), ``mcif_task``, languages, ``prediction``,
        ``target``, of translations ``source_text``, of questions their kind as ``domain``.

    Raises:
        InputError: for ids without a text.
    """
    _check_ids(texts, reference)
    rows = []
    for item in reference:
        kind = _KINDS.get(item.task, item.task)
        if kind not in _ROW_TASKS:  # such as chapters, whose reference is no text
            continue
        shared = {"mcif_task": item.task, "task": _ROW_TASKS[kind]}
        shared |= {"source_lang": "en", "target_lang": lang}
        shared |= {"domain": item.qa_type} if item.qa_type else {}
        shared |= _of_sample(item, known or {})
        answers = {id_: texts[id_].strip() for id_ in item.ids}
        if kind == "TRANS":
            rows += [
                shared
                | {
                    "id": f"{item.task}-{item.iid}-{line['line']}",
                    "source_text": line["source"],
                    "prediction": line["prediction"],
                    "target": line["reference"],
                }
                for line in _lines(item, kind, answers, lang)
            ]
            continue
        joined, target = " ".join(answers.values()), " ".join(item.reference.split("\n"))
        rows.append(
            shared
            | {"id": f"{item.task}-{item.iid}", "prediction": joined, "target": target}
            | ({"source_lang": lang} if kind == "ASR" else {})
        )
    return rows


def _of_sample(item: McifReference, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = [known[id_] for id_ in item.ids if id_ in known]
    reasons = [row["finish_reason"] for row in rows if "finish_reason" in row]
    cut = {"finish_reason": "length"} if "length" in reasons else {}
    if len(item.ids) > 1 or not rows:
        return cut
    names = ("audio", "offset", "duration", "duration_s", "question", "finish_reason")
    return {name: rows[0][name] for name in names if name in rows[0]}


_ROW_TASKS = {"ASR": "asr", "TRANS": "st", "QA": "sqa", "SUM": "summary"}


# ---- reading ------------------------------------------------------------------------------------


def _read_sample(sample: ET.Element, where: str) -> McifReference:
    for attribute in ("id", "iid", "task"):
        if not sample.get(attribute, "").strip():
            raise InputError(f"{where} has no {attribute}; give the file of references")
    task = sample.attrib["task"]
    where = f"{where} ({task} {sample.attrib['iid']})"
    reference = sample.findtext("reference")
    if not (reference or "").strip():
        raise InputError(f"{where} has no reference; give the file of references")
    ids = tuple(id_.strip() for id_ in sample.attrib["id"].split(","))
    transcript = sample.findtext("metadata/transcript")
    kind = _KINDS.get(task)
    if kind in ("QA", "SUM") and len(ids) > 1:
        raise InputError(f"{where} has {len(ids)} ids; write one, an answer is one text")
    if kind == "TRANS":
        lines, sources = reference.count("\n") + 1, (transcript or "").count("\n") + 1
        if not transcript or lines != sources:
            has = f"{sources} lines of transcript" if transcript else "no transcript"
            raise InputError(f"{where} has {has} for {lines} of reference; write one for each")
    return McifReference(
        task,
        sample.attrib["iid"],
        ids,
        reference,
        transcript,
        sample.get("qa_type"),
        sample.get("qa_origin"),
    )


# ---- scoring ------------------------------------------------------------------------------------


def _check_ids(texts: Mapping[str, str], reference: Sequence[McifReference]) -> None:
    if not reference:
        raise InputError("reference: no item to score; give at least one")
    missing = [id_ for item in reference for id_ in item.ids if id_ not in texts]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"predictions: no text for id {missing[0]!r}{more}; answer every sample, an empty text "
            "will do"
        )


def _lines(item: McifReference, kind: str, texts: Mapping[str, str], lang: str) -> list[Line]:
    """What is compared for one item."""
    answers = [texts[id_] for id_ in item.ids]
    sources: list[dict[str, str]] = [{}]
    if kind == "ASR":
        clean = normalizer("whisper", lang)
        predictions, references = [" ".join(map(clean, answers))], [clean(item.reference)]
    elif kind == "TRANS":
        references = item.reference.split("\n")
        predictions = resegment(
            "\n".join(answers), references, characters=base_language(lang) == "zh"
        )
        references = [text.strip() for text in references]
        sources = [{"source": text.strip()} for text in (item.transcript or "").split("\n")]
    else:
        predictions, references = answers, [item.reference]
    return [
        {"task": item.task, "iid": item.iid, "line": number}
        | source
        | {"prediction": prediction, "reference": reference}
        for number, (source, prediction, reference) in enumerate(
            zip(sources, predictions, references, strict=True), start=1
        )
    ]


def _score(
    kind: str, lines: list[Line], lang: str, comet: Comet | None, bertscore: BertScore | None
) -> tuple[float | None, dict[str, Any]]:
    """The score of a task, None without its model, and what else is known of it."""
    predictions, references = _column(lines, "prediction"), _column(lines, "reference")
    if kind == "ASR":
        return _wer(predictions, references)
    if kind == "TRANS":
        sources = _column(lines, "source")
        value = None if comet is None else float(comet(sources, predictions, references))
        return value, bleu_chrf(references, predictions, lang)
    value = None if bertscore is None else float(bertscore(predictions, references, lang))
    return value, {}


def _wer(predictions: list[str], references: list[str]) -> tuple[float, dict[str, Any]]:
    # Not this package's wer: that one counts Chinese by characters, the official scorer does not.
    out = jiwer.process_words(references, predictions)
    counts = {kind: getattr(out, kind) for kind in ("insertions", "deletions", "substitutions")}
    words = out.hits + out.substitutions + out.deletions
    return float(out.wer), counts | {"reference_words": words, "normalizer": "whisper"}


def _column(lines: list[Line], name: str) -> list[str]:
    return [line[name] for line in lines]
