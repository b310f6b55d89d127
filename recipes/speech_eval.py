"""Scores predictions: WER, BLEU, chrF, TER, answers, faulty outputs; by task and language.

Reads what `speech_generate` wrote (JSON lines with `id`, `task`, `target`, `prediction` and, where
known, `source_lang`, `target_lang`, `domain`, `finish_reason`), prints a table and writes it all to
a JSON file.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torchtune.utils import get_logger

from torchtune_speech import config
from torchtune_speech.data import Sample, load_manifest
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import UNANSWERABLE, format_table, score
from torchtune_speech.files import iter_jsonl, write_json

KEYS = {
    "predictions": "JSON lines to score: a path, or a list of paths scored together",
    "manifest": "references by id for predictions without `target`; default: those have it",
    "where": "rows of the manifest that count, column: value or list; default: all",
    "allow_missing": "score what both manifest and predictions have; default: false",
    "normalizer": "of the error rates: whisper, basic, mms or none; default: whisper",
    "ter": "false leaves TER out, which takes long on Chinese; default: true",
    "unanswerable": "language: answer expected to unanswerable questions, beside en, de, it, zh",
    "output": "the report to write; default: report.json beside the (first) predictions",
}

Row = dict[str, Any]


class SpeechEvalRecipe:
    """Scores files of predictions.

    Every row needs ``id``, ``task`` and ``prediction``. References are the rows' own ``target``, or
    those of a manifest, which has the last word and must have the same ids. The same id may
    come once for each task (a speech row and its text twin share it).

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
        self.log = get_logger("INFO")

    def setup(self, cfg: DictConfig) -> None:
        """Reads predictions and references.

        Args:
            cfg: the config.

        Raises:
            InputError: for a missing file, a bad row, a duplicate id or a missing reference.
        """
        self.rows = list(self._read())
        self.missing: dict[str, int] = {}
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
        report = score(
            self.rows, normalizer=self.normalizer, unanswerable=self.unanswerable, ter=self.ter
        )
        report["predictions"] = [str(path) for path in self.paths]
        if any(self.missing.values()):
            report["missing"] = self.missing
            report["notes"] += [f"{count} {what}" for what, count in self.missing.items()]
        write_json(self.output, report)
        print(format_table(report))
        self.log.info(f"report written to {self.output}")
        return report

    def _read(self) -> Iterator[Row]:
        first: dict[tuple[str, Any], str] = {}
        for path in self.paths:
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
        if not first:
            files = ", ".join(map(str, self.paths))
            raise InputError(f"predictions: no row in {files}; run speech_generate first")

    def _join(self, rows: list[Row], samples: Mapping[str, Sample], manifest: str) -> list[Row]:
        predicted = {row["id"] for row in rows}
        absent = [id_ for id_ in samples if id_ not in predicted]
        unknown = [row["id"] for row in rows if row["id"] not in samples]
        self.missing = {
            "manifest rows without a prediction": len(absent),
            "predictions without a manifest row": len(unknown),
        }
        if (absent or unknown) and not self.allow_missing:
            counts = " and ".join(
                f"{len(ids)} {what} (first: {ids[0]!r})"
                for ids, what in zip((absent, unknown), self.missing, strict=True)
                if ids
            )
            raise InputError(
                f"{manifest}: {counts}, of {len(samples)} rows and {len(rows)} predictions; "
                "narrow the manifest by where, or set allow_missing=true to score the rest"
            )
        shared = [row for row in rows if row["id"] in samples]
        if not shared:
            raise InputError(f"{manifest}: none of its ids is in the predictions; check both paths")
        changed = sum(
            row.get("target") not in (None, "", samples[row["id"]].target) for row in shared
        )
        if changed:
            self.log.warning(f"{manifest}: {changed} targets differ from the predictions' own")
        return [self._with_reference(row, samples[row["id"]]) for row in shared]

    @staticmethod
    def _with_reference(row: Row, sample: Sample) -> Row:
        known = {
            "task": sample.task,
            "source_lang": sample.source_lang,
            "target_lang": sample.target_lang,
            "domain": sample.domain,
        }
        return {**known, **row, "target": sample.target}


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
