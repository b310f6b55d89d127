"""COMET and BERTScore of one job; a script that the Python of another environment runs as a file.

It imports nothing of the project, whose libraries that environment does not have. On stdin come
JSON lines in UTF-8, first the job, then the segments::

    {"metric": "comet", "model": "Unbabel/wmt22-comet-da", "batch_size": 16, "precision": "float32"}
    {"src": "Good morning.", "mt": "Guten Tag.", "ref": "Guten Morgen."}

or, for BERTScore, ``{"metric": "bertscore", "model": null, "num_layers": null, "lang": "de",
"rescale": true, "baseline": null, "batch_size": 64}`` and segments with ``mt`` and ``ref``. On
stdout comes one JSON object with ``scores``, ``system`` and ``signature``, and nothing else; what
libraries print goes to stderr. A job that fails ends with code 1 and a last line on stderr.
"""

import hashlib
import json
import logging
import os
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Segments = list[dict[str, str]]


def main() -> None:
    """Does the job on stdin."""
    # Libraries print, some of them below Python: stdout itself is bent to stderr, for good.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        job, *segments = [json.loads(line) for line in sys.stdin.buffer]
        _quieten()
        result = {"comet": comet, "bertscore": bertscore}[job["metric"]](job, segments)
        result["system"] = sum(result["scores"]) / len(result["scores"])
    except Exception as error:
        if os.environ.get("TORCHTUNE_SPEECH_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        sys.exit(f"\n{type(error).__name__}: {' '.join(str(error).split())}")
    print(json.dumps(result), file=results, flush=True)


def comet(job: Job, segments: Segments) -> dict[str, Any]:
    """Scores of a COMET model.

    Args:
        job: ``model``, ``batch_size`` and ``precision``.
        segments: ``src``, ``mt`` and, for a model with references, ``ref``.

    Returns:
        ``scores`` and ``signature``.
    """
    import torch
    from comet import load_from_checkpoint

    name, checkpoint = find_checkpoint(job["model"])
    model = load_from_checkpoint(checkpoint)
    # Models of several segments take a reference where there is one; others need or ignore it.
    takes = model.requires_references() or "ref" in model.hparams.get("input_segments", ())
    with_references = "ref" in segments[0]
    if model.requires_references() and not with_references:
        raise ValueError(f"{name} scores against references; give them or take another model")
    if job["precision"] == "float16":
        model.half()
    predicted = model.predict(
        segments, batch_size=job["batch_size"], gpus=int(torch.cuda.is_available())
    )
    signature = {
        "metric": "comet",
        "model": name,
        "checkpoint": digest(checkpoint),
        "refs": "yes" if with_references and takes else "no",
        "precision": job["precision"],
    }
    return {"scores": predicted["scores"], "signature": sign(signature, "unbabel-comet")}


def find_checkpoint(model: str) -> tuple[str, Path]:
    """The checkpoint of a COMET model, downloaded when it is not local.

    Args:
        model: a file ``model.ckpt``, the folder of a published model (``hparams.yaml`` and
            ``checkpoints/model.ckpt``), or a name on the Hugging Face Hub.

    Returns:
        The model's name and the path of its checkpoint.
    """
    from huggingface_hub import snapshot_download

    path = Path(model)
    if path.is_dir():
        return path.resolve().name, path / "checkpoints" / "model.ckpt"
    if path.suffix == ".ckpt":
        return path.resolve().parents[1].name, path
    return model, Path(snapshot_download(model)) / "checkpoints" / "model.ckpt"


def bertscore(job: Job, segments: Segments) -> dict[str, Any]:
    """F1 of BERTScore.

    Args:
        job: ``model``, ``num_layers``, ``lang``, ``rescale``, ``baseline`` and ``batch_size``.
        segments: ``mt`` and ``ref``.

    Returns:
        ``scores`` and ``signature``.
    """
    import bert_score
    from bert_score.utils import lang2model, model2layers

    lang, baseline = job["lang"], job["baseline"]
    model = job["model"] or lang2model[lang]
    num_layers = job["num_layers"]
    if num_layers is None and (num_layers := model2layers.get(model)) is None:
        raise ValueError(f"num_layers: bert_score knows no layer for {model}; give num_layers")
    if job["rescale"]:
        packaged = Path(bert_score.__file__).parent / "rescale_baseline" / lang / f"{model}.tsv"
        baseline = baseline or str(packaged)
        # bert_score would only warn and return the scores as they are.
        if not Path(baseline).is_file():
            raise ValueError(
                f"baseline: none for {model} in {lang!r}; give one or set rescale=False"
            )
    *_, f1 = bert_score.score(
        [segment["mt"] for segment in segments],
        [segment["ref"] for segment in segments],
        model_type=model,
        num_layers=num_layers,
        lang=lang,
        rescale_with_baseline=job["rescale"],
        baseline_path=baseline,
        batch_size=job["batch_size"],
        verbose=True,
    )
    weights = sorted(Path(model).glob("*.safetensors")) or sorted(Path(model).glob("*.bin"))
    signature = {
        "metric": "bertscore-f1",
        "model": Path(model).resolve().name if weights else model,
        **({"weights": digest(*weights)} if weights else {}),
        "layer": num_layers,
        "lang": lang,
        "idf": "no",
        "rescale": _rescaling(job),
    }
    return {"scores": f1.tolist(), "signature": sign(signature, "bert-score")}


def _rescaling(job: Job) -> str:
    if not job["rescale"]:
        return "no"
    return digest(job["baseline"]) if job["baseline"] else "yes"


def sign(parts: dict[str, Any], library: str) -> str:
    """A line that two scores share only when they can be compared.

    Args:
        parts: what the scores depend on.
        library: distribution that computed them.

    Returns:
        The parts and the versions of the libraries, as ``key:value`` joined by ``|``.
    """
    versions = {name: version(name) for name in (library, "transformers", "torch")}
    return "|".join(f"{key}:{value}" for key, value in (parts | versions).items())


def digest(*paths: str | Path) -> str:
    """Twelve hexadecimal digits that tell contents of files apart.

    Args:
        paths: the files.

    Returns:
        The beginning of the SHA-256 of all of them, in order.
    """
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:12]


def _quieten() -> None:
    """Leaves progress bars and errors on the terminal, and no advertisement."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
