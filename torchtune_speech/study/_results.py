"""What a study found: every run's scores and cost, a table with intervals, a plot."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, read_json, read_jsonl, write_json
from torchtune_speech.study._plot import Panel, draw_panels
from torchtune_speech.study._step import StudyStep, is_done, last_stage
from torchtune_speech.study._student import CONFIDENCE, mean_interval
from torchtune_speech.study._study import Study, StudyRun

COSTS = {
    "training_steps": "training steps",
    "training_tokens": "training tokens",
    "training_seconds": "training time (s)",
}

_ScoredRun = tuple[StudyRun, Mapping[str, Any]]  # with its row of `study.json`


def write_results(study: Study, runs: Sequence[StudyRun], out: Path) -> dict[str, Any]:
    """Write `study.json`, `table.md` and `plot.svg` of the runs that are done.

    Args:
        study: the study.
        runs: all of its runs.
        out: its folder.

    Returns:
        What is in `study.json`.
    """
    results = collect(study, [r for r in runs if all(is_done(s) for s in r.steps.values())])
    write_json(out / "study.json", results)
    _write_text(out / "table.md", format_table(study, results))
    _write_text(out / "plot.svg", draw_panels(_panels(study, results), study.title))
    return results


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def collect(study: Study, runs: Sequence[StudyRun]) -> dict[str, Any]:
    """Scores and cost of runs, and their means over the seeds.

    Seeds of a variant that share the step a score comes from (nothing in it depends on the seed)
    are one run to that score.

    Args:
        study: the study.
        runs: those that are done.

    Returns:
        `runs`: variant, seed, `scores`, `steps` with their seconds, and the cost of training, which
        counts a shared step in each run; `variants`: for each score `values`, `mean` and
        `interval` (null with one value), and the mean cost; with a baseline also `differences`,
        the same three of the scores less the baseline's with the same seed.
    """
    rows = [
        {
            "variant": run.variant,
            "seed": run.seed,
            "scores": {label: _score(run, path) for label, path in study.scores.items()},
            **_sum_costs([_cost(step) for step in run.steps.values()]),
            "steps": {name: _step_row(step) for name, step in run.steps.items()},
        }
        for run in runs
    ]
    by_variant: dict[str, list[_ScoredRun]] = {}
    for run, row in zip(runs, rows, strict=True):
        by_variant.setdefault(run.variant, []).append((run, row))
    return {
        "study": study.name,
        "title": study.title,
        "varied": study.varied,
        "family": study.family,
        "confidence": CONFIDENCE,
        "baseline": study.baseline,
        "variants": {
            name: _summary(study, by_variant[name], by_variant.get(study.baseline))
            for name in study.variants
            if name in by_variant
        },
        "runs": rows,
    }


def _summary(
    study: Study, runs: Sequence[_ScoredRun], baseline: Sequence[_ScoredRun] | None
) -> dict[str, Any]:
    """Scores of a variant's runs, how they differ from the baseline's, and the mean cost."""
    scores, differences = {}, {}
    for label, path in study.scores.items():
        ours = _by_seed(runs, label, path)
        scores[label] = _statistics(ours.values())
        if baseline is not None and runs is not baseline:
            theirs = _by_seed(baseline, label, path)
            differences[label] = _statistics(
                ((digest, theirs[seed][0]), value - theirs[seed][1])
                for seed, (digest, value) in ours.items()
                if seed in theirs
            )
    costs = {key: mean_interval([row[key] for _, row in runs])[0] for key in COSTS}
    return {"scores": scores, **({"differences": differences} if differences else {}), **costs}


def _by_seed(runs: Sequence[_ScoredRun], label: str, path: str) -> dict[int, tuple[str, float]]:
    """Seed to the digest of the step that a score comes from and the score, where there is one."""
    step = path.partition(".")[0]
    return {
        run.seed: (run.steps[step].digest, row["scores"][label])
        for run, row in runs
        if row["scores"][label] is not None
    }


def _statistics(sourced: Iterable[tuple[Hashable, float]]) -> dict[str, Any]:
    """Values, mean and interval of numbers, of which those from one source are one."""
    values = list(dict(sourced).values())
    mean, interval = mean_interval(values) if values else (None, None)
    return {"values": values, "mean": mean, "interval": interval}


def _score(run: StudyRun, path: str) -> float | None:
    """A score of a run; None if it is undefined, or the variant has no such step.

    Args:
        run: the run.
        path: STEP.KEY.KEY; `*` is the mean over all parts, such as languages.
    """
    name, *keys = path.split(".")
    if name not in run.steps:
        return None
    step = run.steps[name]
    if step.is_training:
        report = (last_stage(step) or {}).get("metrics", {})
    elif step.product.suffix == ".json":
        report = read_json(step.product)
    else:
        raise InputError(f"scores: {path}: step {name} writes no scores; name a speech_eval step")
    values = _lookup(report, keys)
    if not values:
        raise InputError(
            f"scores: {path}: not in {step.folder}; it has {', '.join(map(str, report)) or 'none'}"
        )
    return values[0]


def _lookup(node: Any, keys: Sequence[str]) -> list[float | None]:
    """The one score that a path leads to, None if it is undefined; empty if it leads nowhere."""
    if not keys:
        return [node] if node is None or isinstance(node, (int, float)) else []
    if not isinstance(node, Mapping):
        return []
    if keys[0] != "*":
        return _lookup(node[keys[0]], keys[1:]) if keys[0] in node else []
    parts = [value for part in node.values() for value in _lookup(part, keys[1:])]
    found = [value for value in parts if value is not None]
    return [sum(found) / len(found)] if found else parts[:1]


def _cost(step: StudyStep) -> dict[str, float]:
    """Steps, tokens and seconds of a training step, from its `metrics.jsonl`."""
    if not step.is_training:
        return dict.fromkeys(COSTS, 0)
    rows = read_jsonl(step.folder / "metrics.jsonl")
    return {
        "training_steps": len(rows),
        "training_tokens": sum(row["tokens"] for row in rows),
        "training_seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _sum_costs(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(sum(cost[key] for cost in costs), 1) for key in COSTS}


def _step_row(step: StudyStep) -> dict[str, Any]:
    record = read_json(step.record)
    cost = _cost(step) if step.is_training else {}
    return {"folder": str(step.folder), "seconds": record["seconds"], **cost}


def format_table(study: Study, results: Mapping[str, Any]) -> str:
    """The table of a study, in Markdown.

    Args:
        study: the study.
        results: from :func:`collect`.

    Returns:
        Title, a line on how to read it, and a row a variant; with a baseline, a second table of
        the differences from it.
    """
    seeds = ", ".join(str(seed) for seed in study.seeds)
    finished = f"{len(results['runs'])} of {len(study.variants) * len(study.seeds)} runs"
    how = (
        f"Configs: {study.family}. Seeds: {seeds} ({finished} done). Mean over the seeds and, in "
        f"brackets, its {CONFIDENCE:.0%} confidence interval (Student's t over the seeds; none "
        "where one seed was run, or where the seed changes nothing). It says how another seed "
        "might end, nothing of other test data."
    )
    digits = {label: _digits(results, label) for label in study.scores}
    rows = [
        [
            name,
            *(_cell(row["scores"][label], digits[label]) for label in study.scores),
            *(f"{row[key]:,.0f}" for key in COSTS),
        ]
        for name, row in results["variants"].items()
    ]
    table = _markdown([study.varied, *study.scores, *COSTS.values()], rows)
    text = f"# {study.title}\n\n{how}\n\n{table}\n"
    compared = {n: row for n, row in results["variants"].items() if "differences" in row}
    if not compared:
        return text
    rows = [
        [name, *(_cell(row["differences"][label], digits[label], "+") for label in study.scores)]
        for name, row in compared.items()
    ]
    table = _markdown([study.varied, *study.scores], rows)
    return text + (
        f"\nDifferences from `{study.baseline}`, seed by seed. Where the interval leaves out zero, "
        f"another seed is likely to differ the same way:\n\n{table}\n"
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digits(results: Mapping[str, Any], label: str) -> int:
    """Digits after the point: one for scores up to 100, three for shares."""
    values = [v for row in results["variants"].values() for v in row["scores"][label]["values"]]
    return 1 if max(map(abs, values), default=0) >= 10 else 3


def _cell(score: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """Mean and interval; `sign` is `+` where numbers above zero are to show it."""
    if score["mean"] is None:
        return "-"
    form = f"{sign}.{digits}f"
    if score["interval"] is None:
        return f"{score['mean']:{form}}"
    low, high = score["interval"]
    return f"{score['mean']:{form}} [{low:{form}}, {high:{form}}]"


def _panels(study: Study, results: Mapping[str, Any]) -> list[Panel]:
    variants = results["variants"]
    return [
        Panel(
            x_label=study.varied,
            y_label=label,
            names=list(variants),
            values=[row["scores"][label]["values"] for row in variants.values()],
            means=[row["scores"][label]["mean"] for row in variants.values()],
            intervals=[row["scores"][label]["interval"] for row in variants.values()],
        )
        for label in study.plot
    ]
