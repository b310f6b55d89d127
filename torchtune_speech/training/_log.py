"""Progress of a run: a bar for people, JSON lines for programs, torchtune's loggers for both."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torchtune.training.metric_logging import MetricLoggerInterface
from tqdm import tqdm

from torchtune_speech.files import atomic_write

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SCORES = ("wer", "accuracy", "unanswerable_accuracy", "word_cosine", "pads_found")


class TrainingLog:
    """Writes a line of ``metrics.jsonl`` each step, and moves the progress bar.

    Args:
        output_dir: folder of the run.
        max_steps: steps of the run.
        first_step: steps done before; later lines of an earlier attempt are dropped.
        enabled: False in all processes but the main one.
        name: shown before the bar.
        logger: a torchtune metric logger that gets the same numbers; None for none.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        max_steps: int,
        first_step: int = 0,
        enabled: bool = True,
        name: str = "train",
        logger: MetricLoggerInterface | None = None,
    ) -> None:
        self._dir, self._enabled, self._logger = Path(output_dir), enabled, logger
        self._bar = tqdm(
            total=max_steps, initial=first_step, desc=name, unit="step", disable=not enabled
        )
        self._file = None
        if enabled:
            self._dir.mkdir(parents=True, exist_ok=True)
            for file in (METRICS_FILE, EVALUATIONS_FILE):
                _keep_steps(self._dir / file, first_step)
            self._file = open(self._dir / METRICS_FILE, "a", encoding="utf-8")

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record a step.

        Args:
            step: steps done, this one included.
            metrics: numbers and names; ``loss`` and ``tokens_per_second`` (or
                ``frames_per_second``) are shown at the bar.
        """
        if not self._enabled:
            return
        self._file.write(
            json.dumps({"step": step, **{k: _short(v) for k, v in metrics.items()}}) + "\n"
        )
        self._file.flush()
        what = "tokens" if "tokens_per_second" in metrics else "frames"
        speed = f"{metrics[f'{what}_per_second']:,.0f}"
        shown = {"loss": f"{metrics['loss']:.3f}", f"{what}/s": speed}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if self._logger is not None:
            numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
            self._logger.log_dict(numbers, step=step)

    def evaluation(
        self, step: int, report: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Record an evaluation, and show a few of its examples.

        Args:
            step: steps done.
            report: scores.
            examples: predictions to look at.
        """
        if not self._enabled:
            return
        # Not twice, where an earlier attempt was killed right after it.
        _keep_steps(self._dir / EVALUATIONS_FILE, step - 1)
        with open(self._dir / EVALUATIONS_FILE, "a", encoding="utf-8") as file:
            row = {"step": step, "report": report, "examples": list(examples)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        flat = flat_scores(report)
        self.say(f"step {step}: " + "  ".join(f"{k} {v:.3f}" for k, v in flat.items()))
        for row in examples:
            self.say(
                f"  [{row['task']} {row['target_lang']}] {row['target']!r} -> {row['prediction']!r}"
            )
        if self._logger is not None:
            self._logger.log_dict({f"dev/{k}": v for k, v in flat.items()}, step=step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._bar.write(text)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._logger is not None:
            self._logger.close()


def flat_scores(report: Mapping[str, Any]) -> dict[str, float]:
    """The scores one looks at first.

    Args:
        report: from :func:`torchtune_speech.evaluation.score`.

    Returns:
        E.g. ``{"asr_wer": 0.05, "st_de_bleu": 81.2, "sqa_accuracy": 0.9}``.
    """
    scores: dict[str, float] = {}
    for task, value in report.items():
        if not isinstance(value, Mapping):
            continue
        for name in SCORES:
            if isinstance(value.get(name), (int, float)):
                scores[f"{task}_{name}"] = value[name]
        for lang, inner in value.items():
            if isinstance(inner, Mapping) and isinstance(inner.get("bleu"), (int, float)):
                scores[f"{task}_{lang}_bleu"] = inner["bleu"]
    return scores


def _short(value: Any) -> Any:
    """Nine significant digits tell any two float32 numbers apart; JSON has no word for NaN."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _keep_steps(file: Path, last: int) -> None:
    """Drop the lines of steps that will be done again, and a line that was cut short."""
    if not file.exists():
        return
    kept = []
    # Not splitlines(): predictions may hold U+2028, which ends no line of JSON.
    for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= last:
            kept.append(line)
    with atomic_write(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
