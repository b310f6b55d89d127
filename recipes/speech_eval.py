"""Scores predictions: WER, BLEU, chrF, TER, answers, faulty outputs; by task and language.

Reads what `speech_generate` wrote (JSON lines with `id`, `task`, `target`, `prediction` and, where
known, `source_lang`, `target_lang`, `domain`, `finish_reason`), prints a table and writes

- report.json: all scores with 95 % intervals (docs/report_schema.md),
- report.html: a page with plots, the worst samples, and all samples to filter, read and hear,
- report.samples.jsonl: the samples with their scores, for `torchtune-speech agreement` and you.

COMET, BERTScore and a judge are computed where they are asked for. With `mcif_reference=FILE.xml`
the predictions of an official source file, JSON lines or XML, are scored as the
Instruction-following task does, beside all other scores.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torchtune.utils import get_logger

from torchtune_speech import config
from torchtune_speech.data import (
    TEXT_TWIN_TASKS,
    Sample,
    load_manifest,
    read_mcif_output,
    read_mcif_task,
    sample_to_row,
)
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import (
    GIVEN_SCORES,
    UNANSWERABLE,
    Ask,
    add_bertscore,
    add_comet,
    add_judge,
    check_source_texts,
    format_table,
    mcif_rows,
    mcif_scores,
    read_mcif_reference,
    sample_scores,
    score,
    write_html,
)
from torchtune_speech.evaluation import normalizer as check_normalizer
from torchtune_speech.files import iter_jsonl, read_jsonl, write_json, write_jsonl
from torchtune_speech.training import flat_scores

KEYS = {
    "predictions": "JSON lines (or official XML) to score: a path, or a list scored together",
    "manifest": "references by id for predictions without `target`; default: those have it",
    "where": "rows of the manifest that count, column: value or list; default: all",
    "allow_missing": "score what both manifest and predictions have; default: false",
    "normalizer": "of the error rates: whisper, basic, mms or none; default: whisper",
    "ter": "false leaves TER out, which takes long on Chinese; default: true",
    "unanswerable": "language: answer expected to unanswerable questions, beside en, de, it, zh",
    "comet": "COMET model of translations, such as Unbabel/wmt22-comet-da; default: none",
    "comet_free": "reference-free COMET model, such as Unbabel/wmt22-cometkiwi-da; default: none",
    "bertscore": "true computes BERTScore of answers and summaries; default: false",
    "neural_python": "Python of `make comet-env`, for these; default: .venv-comet/bin/python",
    "judge": "component: LLM that judges answers, see docs/neural_scores.md; default: none",
    "judge_prompt": "packaged prompt of the judge; default: sqa_v1",
    "mcif_reference": "official references (.xml): score as the Instruction-following task does",
    "mcif_track": "short or long, where that file holds both",
    "mcif_lang": "language, where that file holds several",
    "html": "false writes no page; default: true",
    "audio_folder": "folder that the audio paths of predictions start at, for the page's players",
    "training_run": "output_dir of a training run, for its curves on the page",
    "output": "the report to write; default: report.json beside the (first) predictions",
}

Row = dict[str, Any]


class SpeechEvalRecipe:
    """Scores files of predictions.

    Every row needs ``id``, ``task`` and ``prediction``. References are the rows' own ``target``, or
    those of a manifest, which has the last word and must have the same ids, for the same tasks.
    The same id may come once for each task (a speech row and its text twin share it).

    Args:
        cfg: the config, with the keys in ``KEYS``.

    Raises:
        InputError: for an unknown or missing key.
    """

    def __init__(self, cfg: DictConfig) -> None:
        config.check_keys(cfg, KEYS)
        if not cfg.get("predictions"):
            raise InputError("config: no predictions; add predictions=PATH of a .jsonl file")
        paths = cfg.predictions
        self.paths = [Path(p) for p in (paths if isinstance(paths, ListConfig) else [paths])]
        self.output = Path(cfg.get("output") or self.paths[0].parent / "report.json")
        self.normalizer = cfg.get("normalizer") or "whisper"
        self.unanswerable = {**UNANSWERABLE, **(cfg.get("unanswerable") or {})}
        self.ter = bool(cfg.get("ter", True))
        self.allow_missing = bool(cfg.get("allow_missing", False))
        if self.output.suffix != ".json":
            raise InputError(f"output: {self.output}; give a name that ends in .json")
        # Before hours of neural models, what costs nothing to check.
        check_normalizer(self.normalizer)
        self.curves = _curves(cfg.get("training_run"))
        self.judge = _judge(cfg)
        self.cfg = cfg
        self.mcif: dict[str, Any] | None = None
        self.log = get_logger("INFO")

    def setup(self, cfg: DictConfig) -> None:
        """Reads predictions and references.

        Args:
            cfg: the config.

        Raises:
            InputError: for a missing file, a bad row, a duplicate id or a missing reference.
        """
        self.missing: dict[str, int] = {}
        samples = self.output.with_suffix(".samples.jsonl")
        self.before = {
            (str(row.get("id")), row.get("task"), row.get("prediction")): row
            for row in (read_jsonl(samples) if samples.is_file() else [])
        }
        if cfg.get("mcif_reference"):
            for key in ("manifest", "where", "allow_missing"):
                if cfg.get(key):
                    raise InputError(f"{key}: plays no part with mcif_reference; set it to null")
            self._read_mcif(cfg)
            return
        self.rows = list(self._read())
        manifest = cfg.get("manifest")
        if manifest is not None and not isinstance(manifest, str):
            raise InputError(f"manifest: {manifest!r}; give the path of one manifest")
        if cfg.get("where") and not manifest:
            raise InputError(
                "where: filters rows of the manifest, and there is none; add manifest=PATH, or "
                "take where away"
            )
        if manifest:
            where = OmegaConf.to_container(cfg.where) if cfg.get("where") else None
            # References only: their audio may be on another machine.
            samples = load_manifest(manifest, where=where, check_audio=False)
            self.rows = self._join(self.rows, {s.id: s for s in samples}, manifest)
        for row in self.rows:
            if not isinstance(row.get("task"), str):
                raise InputError(f"{row['_where']}: no 'task'; write asr, st, sqa, mt, qa, ...")
            if not isinstance(row.get("target"), str) or not row["target"].strip():
                raise InputError(
                    f"{row['_where']}: no 'target'; write it in each row, or add manifest=PATH "
                    "with the references"
                )

    def evaluate(self) -> dict[str, Any]:
        """Scores the rows, prints the table and writes the report.

        Returns:
            The report, see :func:`~torchtune_speech.evaluation.score`.
        """
        signatures = self.add_neural_scores()
        report = score(
            self.rows, normalizer=self.normalizer, unanswerable=self.unanswerable, ter=self.ter
        )
        report["signatures"] |= signatures
        given = {name for row in self.rows for name in row.get("scores") or {}}
        report["notes"] += [
            f"{name}: as the predictions brought it along"
            for name in GIVEN_SCORES
            if name in given and name not in signatures
        ]
        report["predictions"] = [str(path) for path in self.paths]
        if self.mcif is not None:
            report["mcif"] = self._with_neural(self.mcif)
            report["notes"] += [
                f"{name}: {'not computed' if value is None else format(value, '.4f')}"
                for name, value in report["mcif"]["scores"].items()
            ]
        if any(self.missing.values()):
            report["missing"] = self.missing
            report["notes"] += [f"{count} {what}" for what, count in self.missing.items()]
        for row, found in zip(
            self.rows, sample_scores(self.rows, self.normalizer, self.unanswerable), strict=True
        ):
            row["scores"] = (row.get("scores") or {}) | found["scores"]
            row["flags"] = found["flags"]
        self._write_samples()
        write_json(self.output, report)
        print(format_table(report))
        for name, value in report.get("mcif", {}).get("scores", {}).items():
            print(f"{name}: {'-' if value is None else format(value, '.4f')}")
        if self.cfg.get("html", True):
            write_html(
                self.output.with_suffix(".html"),
                report,
                self.rows,
                training=self.curves,
                audio_folder=self.cfg.get("audio_folder"),
            )
        self.log.info(f"report written to {self.output}")
        return report

    def add_neural_scores(self) -> dict[str, Any]:
        """Puts COMET, BERTScore and the judge's verdicts into the rows, as far as asked for.

        Returns:
            Signatures, by score.
        """
        cfg, rows = self.cfg, self.rows
        python = {"python": cfg.neural_python} if cfg.get("neural_python") else {}
        translations = [row for row in rows if row["task"] in ("st", "mt")]
        texts = [row for row in rows if row["task"] not in ("asr", "st", "mt")]
        answers = [row for row in texts if row["task"] in ("sqa", "qa")]
        for key, those, what in (
            ("comet", translations, "translations"),
            ("comet_free", translations, "translations"),
            ("bertscore", texts, "answers or summaries"),
            ("judge", answers, "answers to questions"),
        ):
            if cfg.get(key) and not those:
                self.log.warning(f"{key}: there are no {what} to score")
        if cfg.get("comet") or cfg.get("comet_free"):
            check_source_texts(translations)  # before a judge is asked for hours
        signatures: dict[str, Any] = {}
        steps: list[Callable[[], dict[str, Any]]] = []
        if answers and self.judge:  # first: it is the one that may be refused
            prompt = cfg.get("judge_prompt") or "sqa_v1"
            steps.append(partial(add_judge, answers, *self.judge, prompt))
        if translations and cfg.get("comet"):
            steps.append(partial(add_comet, translations, cfg.comet, **python))
        if translations and cfg.get("comet_free"):
            steps.append(partial(add_comet, translations, cfg.comet_free, free=True, **python))
        if texts and cfg.get("bertscore"):
            steps.append(partial(add_bertscore, texts, _target_lang, **python))
        for step in steps:
            signatures |= step()
            self._write_samples()  # so that what one has computed outlives the failure of another
        return signatures

    def _write_samples(self) -> None:
        rows = [{k: v for k, v in row.items() if k != "_where"} for row in self.rows]
        write_jsonl(self.output.with_suffix(".samples.jsonl"), map(self._with_own_columns, rows))

    def _with_own_columns(self, row: Row) -> Row:
        """A sample with the columns that somebody has added to it in an earlier report."""
        before = self.before.get((str(row["id"]), row["task"], row["prediction"]), {})
        return {k: v for k, v in before.items() if k not in ("scores", "flags")} | row

    def _read_mcif(self, cfg: DictConfig) -> None:
        """Reads answers and references of the official task."""
        where = cfg.mcif_reference, cfg.get("mcif_track"), cfg.get("mcif_lang")
        task = read_mcif_task(*where)[1].attrib
        track, lang = task["track"], task["text_lang"]
        answers = [
            {"id": id_, "prediction": text, "_where": str(path)}
            for path in self.paths
            if path.suffix == ".xml"
            for id_, text in read_mcif_output(path, track, lang).texts.items()
        ]
        by_id: dict[str, Row] = {}
        for row in [*answers, *self._read()]:
            for key, wanted in (("track", track), ("target_lang", lang)):
                if row.get(key, wanted) != wanted:
                    raise InputError(
                        f"{row['_where']}: {key} is {row[key]!r}, but {cfg.mcif_reference} is of "
                        f"{wanted!r}; give the answers to the same source file"
                    )
            if row["id"] in by_id:
                raise InputError(
                    f"{row['_where']}: id {row['id']!r} came before, in "
                    f"{by_id[row['id']]['_where']}; give each answer once"
                )
            by_id[row["id"]] = row
        reference = read_mcif_reference(*where)
        texts = {id_: row["prediction"] for id_, row in by_id.items()}
        self.mcif = mcif_scores(texts, reference, lang)
        self.rows = mcif_rows(texts, reference, lang, known=by_id)
        unknown = len(by_id.keys() - {id_ for item in reference for id_ in item.ids})
        self.missing = {"predictions without a reference": unknown}

    def _with_neural(self, mcif: dict[str, Any]) -> dict[str, Any]:
        """The official scores; those of neural models are means of what the rows have."""
        for name, value in mcif["scores"].items():
            task, measure = name.rsplit("-", 1)
            values = [
                row["scores"][measure.lower()]
                for row in self.rows
                if row["mcif_task"] == task and measure.lower() in row.get("scores", {})
            ]
            if value is None and values:
                mcif["scores"][name] = fmean(values)
                mcif["notes"] = [note for note in mcif["notes"] if not note.startswith(name)]
        return mcif

    def _read(self) -> Iterator[Row]:
        first: dict[tuple[str, Any], str] = {}
        for path in self.paths:
            if path.suffix == ".xml" and self.cfg.get("mcif_reference"):
                continue
            if path.suffix == ".xml":
                raise InputError(f"{path}: official answers need mcif_reference=FILE.xml; add it")
            if not path.is_file():
                raise InputError(
                    f"predictions: no file {path}; run speech_generate first, or check the path"
                )
            for number, row in iter_jsonl(path):
                where = f"{path}:{number}"
                if not isinstance(row.get("prediction"), str):
                    raise InputError(f"{where}: no 'prediction'; write the model's text there")
                if row.get("id") is None:
                    raise InputError(f"{where}: no 'id'; write the id of the manifest row")
                key = str(row["id"]), row.get("task")
                if key in first:
                    raise InputError(
                        f"{where}: id {key[0]!r} came before, in {first[key]}; "
                        "give each prediction of a task once"
                    )
                first[key] = where
                yield {**row, "id": key[0], "_where": where}
        if not first and not self.cfg.get("mcif_reference"):
            files = ", ".join(map(str, self.paths))
            raise InputError(f"predictions: no row in {files}; run speech_generate first")

    def _join(self, rows: list[Row], samples: Mapping[str, Sample], manifest: str) -> list[Row]:
        shared = [row for row in rows if row["id"] in samples and _fits(row, samples[row["id"]])]
        predicted = {row["id"] for row in shared}
        absent = [repr(id_) for id_ in samples if id_ not in predicted]
        joined = {row["_where"] for row in shared}
        unknown = [
            f"{row['id']!r}, task {row.get('task')}" for row in rows if row["_where"] not in joined
        ]
        self.missing = {
            "manifest rows without a prediction": len(absent),
            "predictions without a manifest row": len(unknown),
        }
        if (absent or unknown) and not self.allow_missing:
            counts = " and ".join(
                f"{len(ids)} {what} (first: {ids[0]})"
                for ids, what in zip((absent, unknown), self.missing, strict=True)
                if ids
            )
            raise InputError(
                f"{manifest}: {counts}, of {len(samples)} rows and {len(rows)} predictions; "
                "narrow the manifest by where, or set allow_missing=true to score the rest"
            )
        if not shared:
            raise InputError(
                f"{manifest}: none of its ids is in the predictions, with the same task; check "
                "both paths"
            )
        changed = sum(
            row.get("target") not in (None, "", samples[row["id"]].target) for row in shared
        )
        if changed:
            self.log.warning(f"{manifest}: {changed} targets differ from the predictions' own")
        return [self._with_reference(row, samples[row["id"]]) for row in shared]

    @staticmethod
    def _with_reference(row: Row, sample: Sample) -> Row:
        known = {"domain": sample.domain, **sample_to_row(sample)}
        return {**known, **row, "target": sample.target}


def _fits(row: Row, sample: Sample) -> bool:
    """Whether a manifest row has the reference of a prediction, or of its text twin."""
    task = row.get("task") or sample.task
    return TEXT_TWIN_TASKS.get(task, task) == TEXT_TWIN_TASKS.get(sample.task, sample.task)


def _target_lang(row: Row) -> str:
    return row.get("target_lang") or "en"


def _judge(cfg: DictConfig) -> tuple[Ask, str] | None:
    """Who judges answers, and the name of that model."""
    node = cfg.get("judge")
    if not node:
        return None
    if not isinstance(node, DictConfig) or "_component_" not in node:
        raise InputError(
            "judge: not a component; write judge._component_=torchtune_speech.evaluation."
            "ask_endpoint judge.url=... judge.model=..."
        )
    name = node.get("model") or node.get("path") or node["_component_"]
    return config.instantiate(node), str(name)


def _curves(run: str | None) -> dict[str, list[Row]] | None:
    """The losses and evaluations of a training run."""
    if not run:
        return None
    steps, evaluations = Path(run) / "metrics.jsonl", Path(run) / "evaluations.jsonl"
    if not steps.is_file():
        raise InputError(f"training_run: {run} has no metrics.jsonl; give the output_dir of a run")
    rows = read_jsonl(evaluations) if evaluations.is_file() else []
    return {
        "train": read_jsonl(steps),
        "eval": [{"step": row["step"]} | flat_scores(row["report"]) for row in rows],
    }


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Runs the recipe once, in the first process.

    Args:
        cfg: the config.
    """
    if int(os.environ.get("RANK", "0")):
        return
    recipe = SpeechEvalRecipe(cfg)
    recipe.setup(cfg)
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
