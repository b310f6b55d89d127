"""Report and tables of the demo of 2026: what each system scores, and what its training cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from torchtune_speech.evaluation import score
from torchtune_speech.files import read_jsonl
from torchtune_speech.nano.report import (
    format_rows,
    number_cell,
    score_cells,
    score_header,
    test_note,
)

SYSTEMS = {
    "2025 A": "projector alone, hears",
    "2025 B": "LoRA alone, reads",
    "2025 A+B": "not fused, hears",
    "2025 C": "fused, hears",
    "v1 1+B": "stage 1 and LoRA, no step together",
    "v1 2+B": "stage 2 on ASR alone (sigma 0.9)",
    "v1 2+B tasks": "stage 2 on all tasks (sigma 0)",
    "v2 1+B": "stage 1 and LoRA, no step together",
    "v2 1+B kept": "the same, without pads",
    "v2 1+B tokens": "and with the nearest tokens' embeddings",
    "v2 2+B": "stage 2 on ASR alone (sigma 0.9)",
    "v2 2+B kept": "the same, without pads",
    "v2 2+B tokens": "and with the nearest tokens' embeddings",
    "v2 2+B tasks": "stage 2 on all tasks (sigma 0), without pads",
    "v2 C": "stage 1 and LoRA, fused",
    "v2 C kept": "the same, without pads",
}


def report_2026(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    folders: Mapping[str, Path],
    seconds: Mapping[str, float],
    normalizer: str,
) -> dict[str, Any]:
    """Scores and costs of all systems.

    Args:
        predictions: system, such as ``v2 C``, to the rows of its predictions file.
        folders: training stage, such as ``v2 stage_1``, to its run.
        seconds: step of the demo to its wall-clock time.
        normalizer: of the word error rate.

    Returns:
        ``2025``, ``v1`` and ``v2``, each with its systems' scores and ``prompt_tokens`` (mean
        length of what the LLM read before it answered), ``training`` (stage to
        :func:`training_cost`) and, for SpeechMapper, ``stage1`` with ``nearest_token_wer``,
        ``word_cosine``, ``pads_found`` and ``ctc_wer`` (None without CTC) on the test set; and
        ``normalizer``, ``n`` and ``seconds``.
    """
    report: dict[str, Any] = {"2025": {}, "v1": {}, "v2": {}}
    for name, rows in predictions.items():
        year, _, system = name.partition(" ")
        scores = score(rows, normalizer=normalizer, ter=False)
        scores.pop("signatures")
        report[year][system] = {k: v for k, v in scores.items() if k != "normalizer"}
        report[year][system]["prompt_tokens"] = _mean_prompt(rows)
    for name, folder in folders.items():
        year, _, stage = name.partition(" ")
        report[year].setdefault("training", {})[stage] = training_cost(folder)
        if stage == "stage_1":
            report[year]["stage1"] = _stage_1(folder)
    n = report["2025"]["C"]["n"]
    return {**report, "normalizer": normalizer, "n": n, "seconds": dict(seconds)}


def _mean_prompt(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """None for files of a version that did not write the length."""
    lengths = [row["prompt_tokens"] for row in rows if "prompt_tokens" in row]
    return round(mean(lengths), 2) if lengths else None


def training_cost(folder: Path) -> dict[str, float]:
    """What a training run spent.

    Args:
        folder: the run's ``output_dir``.

    Returns:
        ``steps``, ``seconds`` (in steps, without start-up and evaluation), ``samples`` and
        ``tokens`` (of the rows; in stage 1 those of the transcripts); ``llm_steps``,
        ``llm_samples`` and ``llm_tokens`` are the same of the steps that run the LLM, forward and
        backward. A forward pass is a step's batch, of which the demo's configs have one a step.
    """
    rows = read_jsonl(folder / "metrics.jsonl")
    through_llm = [row for row in rows if _runs_llm(row)]
    return {
        "steps": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "samples": sum(row["samples"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "llm_steps": len(through_llm),
        "llm_samples": sum(row["samples"] for row in through_llm),
        "llm_tokens": sum(row["tokens"] for row in through_llm),
    }


def _runs_llm(row: Mapping[str, Any]) -> bool:
    """Not stage 1, and no step of the warm-up, whose loss is that of CTC alone."""
    return "vectors" not in row and row["loss"] != row.get("ctc_loss")


def _stage_1(folder: Path) -> dict[str, float | None]:
    scores = read_jsonl(folder / "evaluations.jsonl")[-1]["report"]
    nearest = scores["nearest_token"]
    return {
        "nearest_token_wer": nearest["wer"],
        "word_cosine": nearest["word_cosine"],
        "pads_found": nearest["pads_found"],
        "ctc_wer": scores.get("ctc", {}).get("wer"),
    }


def format_score_table(report: Mapping[str, Any]) -> str:
    """The scores, a line for each system.

    Args:
        report: from :func:`report_2026`.

    Returns:
        Aligned lines.
    """
    rows = [[*score_header(), "in language", "prompt"]]
    for name, text in SYSTEMS.items():
        year, _, system = name.partition(" ")
        scores = report[year][system]
        more = (f"{_adherence(scores):.3f}", number_cell(scores["prompt_tokens"], 1))
        rows.append([name, text, *score_cells(scores), *more])
    lines = [format_rows(rows, left=2), "", test_note(report)]
    for year in ("v1", "v2"):
        wer = report[year]["stage1"]["nearest_token_wer"]
        lines.append(f"Stage 1 of {year}, nearest tokens: WER {wer:.3f} (normalizer: basic).")
    return "\n".join(lines)


def format_cost_table(report: Mapping[str, Any]) -> str:
    """What the training stages cost, a line for each.

    Args:
        report: from :func:`report_2026`.

    Returns:
        Aligned lines.
    """
    rows = [["stage", "steps", "seconds", "samples", "tokens", "LLM steps", "LLM tokens a sample"]]
    for year in ("2025", "v1", "v2"):
        for stage, cost in report[year]["training"].items():
            numbers = (cost["steps"], round(cost["seconds"]), cost["samples"], cost["tokens"])
            cells = [f"{n:,}" for n in (*numbers, cost["llm_steps"])]
            read = cost["llm_samples"] and f"{cost['llm_tokens'] / cost['llm_samples']:.1f}"
            rows.append([f"{year} {stage}", *cells, read or "-"])
    return format_rows(rows, left=1)


def _adherence(scores: Mapping[str, Any]) -> float:
    """Share of translations in the language asked for, mean over languages."""
    translation = scores.get("st") or scores.get("mt") or {}
    values = [part["adherence"] for part in translation.values() if "adherence" in part]
    return sum(values) / len(values) if values else float("nan")
