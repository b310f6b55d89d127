"""`python -m torchtune_speech.nano.metric_study`: metrics on answers known to be right or wrong.

Questions on sentences of the nano world, each with an answer of every kind of `make_answer`; the
metrics' scores of them, and how far those agree with what is right by construction.
"""

import argparse
import importlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sacrebleu.metrics import CHRF

from torchtune_speech.config import one_line_errors
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import (
    agreement_table,
    answer_f1,
    exact_match,
    format_agreement,
)
from torchtune_speech.files import write_json, write_jsonl
from torchtune_speech.nano._corrupt import ANSWER_KINDS, make_answer
from torchtune_speech.nano._grammar import QUESTION_KINDS, answerable_kinds, ask, draw_sentences
from torchtune_speech.nano._lexicon import LANGUAGES

Row = dict[str, Any]
# Rows of answers -> the score of each, in order.
Metric = Callable[[Sequence[Row]], Sequence[float | None]]

_DESCRIPTION = """\
Makes answers that are right or wrong by construction and asks the metrics about them: per question
the reference, a paraphrase, a verbose answer (right), and another entity, another language, a
negation, a truncated answer and a refusal (wrong).

  python -m torchtune_speech.nano.metric_study --out runs/metric_study

writes answers.jsonl (a row an answer, with its scores) and agreement.json, and prints tables. A
metric of your own, such as BERTScore or an LLM that judges, is a function from the rows (with
question, target, prediction, target_lang) to one number each, or null, in any module on the path:

  python -m torchtune_speech.nano.metric_study --out runs/metric_study --metric judge=mine:judged
"""


def length_ratio(reference: str, prediction: str) -> float:
    """The shorter of two texts over the longer one, in characters.

    Args:
        reference: right answer.
        prediction: answer of the model.

    Returns:
        0 to 1; 1 for texts of the same length, whatever they say.
    """
    short, long = sorted((len(reference), len(prediction)))
    return short / long if long else 1.0


def sentence_chrf(reference: str, prediction: str) -> float:
    """chrF2 of one text, as a fraction.

    Args:
        reference: right answer.
        prediction: answer of the model.

    Returns:
        0 to 1.

    Source: https://aclanthology.org/W15-3049
    """
    return CHRF().sentence_score(prediction, [reference]).score / 100


def _each(score: Callable[[str, str, str], float]) -> Metric:
    return lambda rows: [
        float(score(row["target"], row["prediction"], row["target_lang"])) for row in rows
    ]


METRICS: Mapping[str, Metric] = {
    "exact_match": _each(exact_match),
    "answer_f1": _each(answer_f1),
    "chrf": _each(lambda reference, prediction, _: sentence_chrf(reference, prediction)),
    "length_ratio": _each(lambda reference, prediction, _: length_ratio(reference, prediction)),
}


def study_rows(
    num_questions: int, seed: int = 0, langs: Sequence[str] = LANGUAGES
) -> Iterator[Row]:
    """Draws questions and makes an answer of every kind to each, in every language.

    Args:
        num_questions: how many; the kinds of question take turns.
        seed: seed of all chance.
        langs: languages of questions and answers.

    Yields:
        Rows with ``id``, ``question_id`` (shared by languages and kinds of answer),
        ``question_kind``, ``target_lang``, ``question``, ``target``, ``prediction``, ``kind``,
        ``way`` and ``right``.
    """
    rng = random.Random(seed)
    sentences = draw_sentences(rng, seen=set())
    for index in range(num_questions):
        question_kind = QUESTION_KINDS[index % len(QUESTION_KINDS)]
        sentence = next(s for s in sentences if question_kind in answerable_kinds(s))
        for lang in langs:
            question = ask(sentence, question_kind, lang)
            for kind in ANSWER_KINDS:
                answer = make_answer(sentence, question_kind, lang, kind, rng)
                yield {
                    "id": f"q{index:04d}-{lang}-{kind}",
                    "question_id": f"q{index:04d}",
                    "question_kind": question_kind,
                    "target_lang": lang,
                    "question": question.text,
                    "target": question.answer,
                    "prediction": answer.text,
                    "kind": kind,
                    "way": answer.way,
                    "right": answer.right,
                }


def add_scores(rows: Sequence[Row], metrics: Mapping[str, Metric]) -> None:
    """Scores rows, into their ``scores``.

    Args:
        rows: from `study_rows`.
        metrics: name to metric.

    Raises:
        InputError: if a metric does not give one number a row.
    """
    for row in rows:
        row["scores"] = {}
    for name, metric in metrics.items():
        scores = list(metric(rows))
        if len(scores) != len(rows):
            raise InputError(
                f"metric {name}: {len(scores)} scores of {len(rows)} rows; give one each"
            )
        for row, score in zip(rows, scores, strict=True):
            row["scores"][name] = score


def format_kinds(rows: Sequence[Row], right_if: Mapping[str, str]) -> str:
    """The table of metrics and kinds of answer.

    Args:
        rows: scored rows.
        right_if: metric to its best threshold, as `agreement` names it.

    Returns:
        Aligned lines: for each kind, and each way in which its answers were made, mean score and
        share judged rightly by each metric at its threshold.
    """
    parts: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        parts.setdefault(row["kind"], {}).setdefault(row["way"], []).append(row)
    table = [
        ["kind", "is", *right_if],
        ["", "", *(f"right if {text}" for text in right_if.values())],
    ]
    for kind, right in ANSWER_KINDS.items():
        ways = dict(sorted(parts[kind].items()))
        found = {kind: [row for way in ways.values() for row in way]}
        if len(ways) > 1:
            found |= {f"  {way}": part for way, part in ways.items()}
        for name, part in found.items():
            cells = [_cell(part, metric, text) for metric, text in right_if.items()]
            table.append([name, "right" if right else "wrong", *cells])
    return _aligned("mean score, and share judged rightly at the best threshold", table)


def format_pairs(rows: Sequence[Row]) -> str:
    """How often a paraphrase scores higher than a wrong answer to the same question.

    Args:
        rows: scored rows.

    Returns:
        Aligned lines: for each kind of wrong answer and each metric the share of questions, ties
        counting one half.
    """
    names = list(rows[0]["scores"])
    by_question: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_question.setdefault((row["question_id"], row["target_lang"]), {})[row["kind"]] = row
    table = [["paraphrase against", *names]]
    for wrong in (kind for kind, right in ANSWER_KINDS.items() if not right):
        cells = [
            fmean(
                _won(answers["paraphrase"]["scores"][name], answers[wrong]["scores"][name])
                for answers in by_question.values()
            )
            for name in names
        ]
        table.append([wrong, *(f"{cell:.2f}" for cell in cells)])
    return _aligned("how often the right answer in other words scores higher (0.50: blind)", table)


def _won(right: float | None, wrong: float | None) -> float:
    if right is None or wrong is None:
        return 0.5
    return (float(right > wrong) + float(right >= wrong)) / 2


def _cell(rows: Sequence[Row], metric: str, right_if: str) -> str:
    scored = [row for row in rows if row["scores"][metric] is not None]
    if not scored:
        return "-"
    hits = [_judge(row["scores"][metric], right_if) == row["right"] for row in scored]
    return f"{fmean(row['scores'][metric] for row in scored):.2f} {fmean(hits):5.0%}"


def _judge(score: float, right_if: str) -> bool:
    if right_if in ("always", "never"):
        return right_if == "always"
    sign, threshold = right_if.split()
    return (score >= float(threshold)) == (sign == ">=")


def _aligned(title: str, table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]
    return "\n".join([title, *lines])


def _imported(option: str) -> tuple[str, Metric]:
    name, _, path = option.partition("=")
    module, _, function = path.partition(":")
    if not (name and module and function):
        raise InputError(f"--metric: {option!r}; write NAME=MODULE:FUNCTION")
    try:
        return name, getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--metric {name}: {error}; is its folder on PYTHONPATH?") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano.metric_study",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--num-questions", type=int, default=400, metavar="N", help="questions (%(default)s)"
    )
    parser.add_argument(
        "--langs", default=",".join(LANGUAGES), metavar="LANG,...", help="languages (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all chance (%(default)s)")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=MODULE:FUNCTION",
        help="a metric of your own; may be given several times",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study.

    Args:
        arguments: the words after the program's name; None takes those of the command line.

    Returns:
        Exit status.
    """
    options = _parser().parse_args(arguments)
    with one_line_errors():
        if options.num_questions < 2:
            raise InputError(f"--num-questions: {options.num_questions}; give 2 or more")
        langs = options.langs.split(",")
        if unknown := [lang for lang in langs if lang not in LANGUAGES]:
            raise InputError(f"--langs: {unknown[0]!r}; choose from {', '.join(LANGUAGES)}")
        metrics = dict(METRICS) | dict(map(_imported, options.metric))
        rows = list(study_rows(options.num_questions, options.seed, langs))
        add_scores(rows, metrics)
        write_jsonl(options.out / "answers.jsonl", rows)
        report = agreement_table(
            rows, "right", by="target_lang", group="question_id", seed=options.seed
        )
        write_json(options.out / "agreement.json", report)
        right_if = {name: found["right_if"] or "never" for name, found in report["all"].items()}
        print(f"{format_kinds(rows, right_if)}\n\n{format_pairs(rows)}\n")
        print(format_agreement(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
