"""One report and one table of the demo's systems."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_speech.evaluation import score

# Name of the system -> options of `tune run speech_generate`.
TEXT = ["projector=null", "dataset.features=null", "dataset.text_twins=true"]
SYSTEMS: dict[str, list[str]] = {
    "LLM": [*TEXT, "dataset.tasks=[st,sqa]"],
    "A": ["projector_checkpoint=runs/nano/A"],
    "B": [*TEXT, "dataset.tasks=[st,sqa]", "adapter_checkpoint=runs/nano/B"],
    "A+B": ["projector_checkpoint=runs/nano/A", "adapter_checkpoint=runs/nano/B"],
    "C": ["checkpoint=runs/nano/C"],
}
DESCRIPTIONS = {
    "LLM": "frozen LLM, reads",
    "A": "projector alone, hears",
    "B": "LoRA alone, reads",
    "A+B": "both, not fused, hears",
    "C": "fused, hears",
}
LANGUAGES = ("de", "it", "zh")


def demo_report(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seconds: Mapping[str, float],
    normalizer: str,
) -> dict[str, Any]:
    """Scores of all systems.

    Args:
        predictions: system to the rows of its predictions file.
        seconds: step of the demo to its wall-clock time.
        normalizer: of the word error rate.

    Returns:
        System to scores, and ``normalizer``, ``n`` and ``seconds``. Systems that read text have the
        tasks ``mt`` and ``qa``, those that hear speech ``asr``, ``st`` and ``sqa``.
    """
    reports = {
        name: score(rows, normalizer=normalizer, ter=False) for name, rows in predictions.items()
    }
    shared = ("normalizer", "signatures")
    return {
        **{
            name: {k: v for k, v in report.items() if k not in shared}
            for name, report in reports.items()
        },
        "normalizer": normalizer,
        "n": reports["C"]["n"],
        "seconds": dict(seconds),
    }


def format_demo_table(report: Mapping[str, Any]) -> str:
    """The table of the demo.

    Args:
        report: from :func:`demo_report`.

    Returns:
        Aligned lines.
    """
    rows = [score_header()]
    rows += [[name, text, *score_cells(report[name])] for name, text in DESCRIPTIONS.items()]
    return format_rows(rows, left=2) + "\n\n" + test_note(report)


def test_note(report: Mapping[str, Any]) -> str:
    """What the scores were measured on."""
    n = report["n"]
    sizes = f"{n['asr']} for ASR, {_size(n['st'])} for ST, {_size(n['sqa'])} for SQA"
    return f"Unseen sentences, unseen voices: {sizes}. Normalizer: {report['normalizer']}."


def format_rows(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Cells in columns, with a line under the first row.

    Args:
        rows: cells, as many in each row.
        left: how many columns stand at the left of their width; the others at the right.

    Returns:
        Aligned lines.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def score_header() -> list[str]:
    """Heads of a system's name, its description and :func:`score_cells`."""
    return ["", "", "WER", *(f"BLEU {lang}" for lang in LANGUAGES), "QA", "QA unanswerable"]


def score_cells(scores: Mapping[str, Any]) -> list[str]:
    """Scores of a system, hearing or reading, as cells of a table."""
    translation = scores.get("st") or scores.get("mt") or {}
    answers = scores.get("sqa") or scores.get("qa") or {}
    return [
        number_cell(scores.get("asr", {}).get("wer"), 3),
        *(number_cell(translation.get(lang, {}).get("bleu"), 1) for lang in LANGUAGES),
        number_cell(answers.get("accuracy"), 3),
        number_cell(answers.get("unanswerable_accuracy"), 3),
    ]


def number_cell(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _size(n: int | Mapping[str, int]) -> int:
    return n if isinstance(n, int) else sum(n.values())
