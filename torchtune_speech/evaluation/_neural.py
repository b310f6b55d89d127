"""Scores of neural models, computed by the Python of another environment."""

import codecs
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._normalizers import base_language
from torchtune_speech.evaluation._wer import check_pairs

_PYTHON = ".venv-comet/bin/python"
_WORKER = Path(__file__).with_name("neural_worker.py")
_PRECISIONS = ("float32", "float16")


@dataclass(frozen=True)
class NeuralScores:
    """What a neural metric gives.

    Args:
        scores: one a segment, in the order of the predictions.
        system: their mean.
        signature: metric, model, settings and versions of the libraries, as ``key:value`` joined
            by ``|``; scores of different signatures cannot be compared.
    """

    scores: list[float]
    system: float
    signature: str


def comet(
    sources: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str] | None,
    *,
    model: str,
    python: str = _PYTHON,
    batch_size: int = 16,
    precision: str = "float32",
) -> NeuralScores:
    """COMET of translations, on a GPU where there is one.

    Args:
        sources: texts that were translated, one a segment; for speech, their transcripts.
        predictions: translations of the model, in the same order.
        references: translations by people, in the same order; None for a reference-free model,
            which takes no notice of them.
        model: a name on the Hugging Face Hub such as "Unbabel/wmt22-comet-da", a local
            ``checkpoints/model.ckpt`` with ``hparams.yaml`` in the folder above, or that folder.
            The checkpoint is a pickle file, which can run programs: take it from where you trust.
        python: Python of the environment that ``make comet-env`` builds.
        batch_size: segments scored together.
        precision: "float32", like COMET's own ``predict``, or "float16", like its command
            ``comet-score``, whose scores differ in the third or fourth decimal.

    Returns:
        The scores; most models give 0 to 1.

    Raises:
        InputError: if the numbers of texts differ or there are none, the environment is absent,
            or it fails.

    Source: https://aclanthology.org/2020.emnlp-main.213

    Example:
        >>> scores = comet(["Good morning."], ["Guten Tag."], ["Guten Morgen."],
        ...                model="Unbabel/wmt22-comet-da")
        >>> scores.signature.split("|")[:2]
        ['metric:comet', 'model:Unbabel/wmt22-comet-da']
    """
    if precision not in _PRECISIONS:
        raise InputError(f"precision: unknown {precision!r}; use {' or '.join(_PRECISIONS)}")
    _check_file(model, "model", suffix=".ckpt")
    columns = {"src": sources, "mt": predictions}
    if references is not None:
        columns["ref"] = references
    job = {"model": model, "batch_size": batch_size, "precision": precision}
    return _run(python, {"metric": "comet"} | job, columns)


def bertscore(
    predictions: Sequence[str],
    references: Sequence[str],
    lang: str,
    *,
    python: str = _PYTHON,
    model: str | None = None,
    num_layers: int | None = None,
    rescale: bool = True,
    baseline: str | None = None,
    batch_size: int = 64,
) -> NeuralScores:
    """F1 of BERTScore, on a GPU where there is one.

    The defaults are those of the MCIF benchmark's scorer.

    Args:
        predictions: texts of the model, one a segment.
        references: texts by people, in the same order.
        lang: their language; decides model and baseline.
        python: Python of the environment that ``make comet-env`` builds.
        model: a name on the Hugging Face Hub or a local folder; by default bert_score's own
            choice for the language.
        num_layers: layer of the model whose vectors are compared; by default bert_score's own
            choice, which it has for published models alone.
        rescale: whether the scores are stretched so that unrelated texts get about 0; without, all
            scores lie close together near 1.
        baseline: file with the scores of unrelated texts, by layer (``LAYER,P,R,F``); by default
            the one that bert_score brings for model and language.
        batch_size: segments scored together.

    Returns:
        The scores, at most 1.

    Raises:
        InputError: if the numbers of texts differ or there are none, there is no baseline, the
            environment is absent, or it fails.

    Source: https://arxiv.org/abs/1904.09675

    Example:
        >>> round(bertscore(["Im Garten."], ["Im Garten."], "de").system, 4)
        1.0
    """
    if baseline is not None:
        _check_file(baseline, "baseline")
    job = {
        "model": model,
        "num_layers": num_layers,
        "lang": base_language(lang),
        "rescale": rescale,
        "baseline": baseline,
        "batch_size": batch_size,
    }
    return _run(python, {"metric": "bertscore"} | job, {"mt": predictions, "ref": references})


def _check_file(path: str, name: str, suffix: str = "") -> None:
    if path.endswith(suffix) and not Path(path).is_file():
        raise InputError(f"{name}: {path}: no such file; correct the path")


def _run(python: str, job: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> NeuralScores:
    """Has the worker do a job on columns of texts."""
    where = job["metric"]
    _check_columns(columns, where)
    rows = [dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True)]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as returned:
        given.write("".join(json.dumps(line) + "\n" for line in (job, *rows)).encode())
        given.seek(0)
        code, last_line = _call(python, given, returned)
        if code != 0:
            raise InputError(
                f"{where}: {last_line or 'no word of why'} ({python} ended with code {code}; "
                "`make comet-env` builds an environment that has what it needs)"
            )
        returned.seek(0)
        return _parse(returned.read(), where, len(rows))


def _check_columns(columns: Mapping[str, Sequence[str]], where: str) -> None:
    for name, texts in columns.items():
        if name != "mt":
            check_pairs(texts, columns["mt"])
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"{where}: {name} {index} is {text!r}; give a text")


def _call(python: str, given: IO[bytes], returned: IO[bytes]) -> tuple[int, str]:
    """Runs the worker; shows what it writes on stderr; returns its code and last line there."""
    # -I: neither PYTHONPATH nor the folder of the script may bring this environment's modules in.
    command = [python, "-I", str(_WORKER)]
    try:
        process = subprocess.Popen(command, stdin=given, stdout=returned, stderr=subprocess.PIPE)
    except OSError as error:
        raise InputError(
            f"{python}: {error.strerror}; build the environment with `make comet-env`, or name "
            "the Python of another one"
        ) from None
    try:
        # Piecewise, not by lines: a progress bar ends none before it is full.
        decoder, tail = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
        while piece := process.stderr.read1():
            text = decoder.decode(piece)
            sys.stderr.write(text)
            sys.stderr.flush()
            tail = (tail + text)[-4000:]
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return process.wait(), lines[-1] if lines else ""
    finally:  # an interrupted session leaves no worker behind
        process.kill()
        process.wait()
        process.stderr.close()


def _parse(output: bytes, where: str, count: int) -> NeuralScores:
    try:
        result = json.loads(output)
        result = NeuralScores(
            [float(score) for score in result["scores"]],
            float(result["system"]),
            str(result["signature"]),
        )
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{where}: the worker printed {output[:80]!r} in place of scores; is `python` the "
            "environment of `make comet-env`?"
        ) from None
    if len(result.scores) != count:
        raise InputError(
            f"{where}: {len(result.scores)} scores for {count} segments; report this as a bug"
        )
    named = {f"segment {index}": score for index, score in enumerate(result.scores)}
    for name, score in (named | {"the system": result.system}).items():
        if not math.isfinite(score):
            raise InputError(
                f"{where}: {name} scored {score}; try precision float32 and a model known to work"
            )
    return result
