import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import bertscore, comet

ROOT = Path(__file__).parents[2]
# COMET_PYTHON: Python of an environment elsewhere that has what `make comet-env` installs.
PYTHON = Path(os.environ.get("COMET_PYTHON", ROOT / ".venv-comet" / "bin" / "python"))
needs_environment = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"{PYTHON} is absent: run `make comet-env` or set COMET_PYTHON"
)

SOURCES = [
    "The doctor waits in the garden.",
    "The nurse sings.",
    "The baker sells six expensive guitars on the island every year.",
    "He.",
    "The nurse waits in the library.",
]
PREDICTIONS = [
    "Der Arzt wartet im Garten.",
    "Die singt Jahr.",
    "Der Arzt verkauft teure Gitarren, im Garten, auf der Insel.",
    "Er.",
    "医生在花园里等。",
]
REFERENCES = [
    "Der Arzt wartet im Garten.",
    "Die Krankenschwester singt.",
    "Der Bäcker verkauft jedes Jahr sechs teure Gitarren auf der Insel.",
    "Er.",
    "Die Krankenschwester wartet in der Bibliothek.",
]


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """The command line and we compute on the same device everywhere."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random models: encoder, two COMET checkpoints, a baseline."""
    folder = tmp_path_factory.mktemp("comet") / "tiny"
    run(PYTHON, Path(__file__).with_name("make_tiny_comet.py"), folder)
    return folder


def run(*command, code=0):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ours(tiny):
    """A function that scores all segments; each start of that Python takes seconds, so once."""

    @functools.cache
    def score(kind, with_references=None, path="checkpoints/model.ckpt", **arguments):
        with_references = kind == "regression" if with_references is None else with_references
        references = REFERENCES if with_references else None
        model = str(tiny / kind / path)
        return comet(SOURCES, PREDICTIONS, references, model=model, python=str(PYTHON), **arguments)

    return score


def of_command_line(tiny, kind, folder):
    """Scores of `comet-score`: by segment in full, and the system's as printed."""
    words = ["--gpus", "0", "--model", tiny / kind / "checkpoints" / "model.ckpt"]
    files = {"-s": SOURCES, "-t": PREDICTIONS}
    if kind == "regression":
        files["-r"] = REFERENCES
    for word, lines in files.items():
        (folder / f"texts{word}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        words += [word, folder / f"texts{word}"]
    printed = run(PYTHON.with_name("comet-score"), *words, "--to_json", folder / "scores.json")
    (segments,) = json.loads((folder / "scores.json").read_text(encoding="utf-8")).values()
    return [segment["COMET"] for segment in segments], float(
        printed.split("score: ")[-1].split()[0]
    )


# Run directly, without our worker: what the library's own `predict` gives.
PREDICT = """
import json, sys
from comet import load_from_checkpoint
model, rows = json.loads(sys.argv[1])
predicted = load_from_checkpoint(model).predict(rows, gpus=0, progress_bar=False)
print("SCORES", json.dumps([predicted.scores, predicted.system_score]))
"""


@needs_environment
@pytest.mark.parametrize("kind", ["regression", "referenceless"])
def test_float16_is_the_command_line(tiny, ours, kind, tmp_path):
    expected, printed = of_command_line(tiny, kind, tmp_path)
    result = ours(kind, precision="float16")
    assert result.scores == pytest.approx(expected, abs=1e-6)
    assert result.system == pytest.approx(fmean(expected), abs=1e-6)
    assert result.system == pytest.approx(printed, abs=5e-5 + 1e-6)
    assert max(expected) - min(expected) > 0.01, "the models tell segments apart"


@needs_environment
@pytest.mark.parametrize("kind", ["regression", "referenceless"])
def test_float32_is_the_library(tiny, ours, kind):
    rows = [
        {"src": s, "mt": m, "ref": r}
        for s, m, r in zip(SOURCES, PREDICTIONS, REFERENCES, strict=True)
    ]
    job = json.dumps([str(tiny / kind / "checkpoints" / "model.ckpt"), rows])
    scores, system = json.loads(run(PYTHON, "-c", PREDICT, job).split("SCORES ")[1])
    result = ours(kind)
    assert result.scores == pytest.approx(scores, abs=1e-6)
    assert result.system == pytest.approx(system, abs=1e-6)
    assert any(score != pytest.approx(float(f"{score:.3f}"), abs=1e-6) for score in scores)


@needs_environment
def test_batch_size_does_not_matter(ours):
    in_one_batch = ours("regression").scores
    for batch_size in (1, 2):
        scores = ours("regression", batch_size=batch_size).scores
        assert scores == pytest.approx(in_one_batch, abs=1e-5)


@needs_environment
def test_signature_says_what_the_scores_depend_on(ours):
    with_references = ours("regression").signature.split("|")
    assert with_references[:2] == ["metric:comet", "model:regression"]
    assert {"refs:yes", "precision:float32", "unbabel-comet:2.2.7"} <= set(with_references)
    without = ours("referenceless", precision="float16").signature.split("|")
    assert {"model:referenceless", "refs:no", "precision:float16"} <= set(without)
    assert with_references[2] != without[2], "the digest of the checkpoint"


@needs_environment
def test_a_reference_free_model_ignores_references(ours):
    # Named by its folder besides, which is the same model.
    assert ours("referenceless", with_references=True, path="") == ours("referenceless")


@needs_environment
def test_a_model_that_needs_references_says_so(ours):
    with pytest.raises(InputError, match="ValueError: regression scores against references; give"):
        ours("regression", with_references=False)


@needs_environment
def test_a_model_by_its_name_on_the_hub(tiny, ours, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tiny / "hub"))
    name = "Unbabel/tiny-comet-da"
    result = comet(SOURCES, PREDICTIONS, REFERENCES, model=name, python=str(PYTHON))
    local = ours("regression")
    assert result.scores == local.scores
    assert result.signature == local.signature.replace("model:regression", f"model:{name}")
    with pytest.raises(InputError, match="comet: LocalEntryNotFoundError: "):
        comet(SOURCES, PREDICTIONS, REFERENCES, model="Unbabel/none-such", python=str(PYTHON))


@needs_environment
def test_newlines_and_odd_characters_stay_within_a_segment(tiny):
    model = str(tiny / "regression")
    odd = ["a\nb", 'quote " \\ \u2028 tab\t', ""]
    result = comet(odd, odd, odd, model=model, python=str(PYTHON))
    again = comet(odd[1:], odd[1:], odd[1:], model=model, python=str(PYTHON))
    assert result.scores[1:] == pytest.approx(again.scores, abs=1e-5)


# bert_score run directly.
BERT_SCORE = """
import json, sys, bert_score
cands, refs, arguments = json.loads(sys.argv[1])
*_, f1 = bert_score.score(cands, refs, **arguments)
print("SCORES", json.dumps([f1.tolist(), f1.mean().item()]))
"""


def direct_bert_score(**arguments):
    job = json.dumps([PREDICTIONS, REFERENCES, arguments])
    return json.loads(run(PYTHON, "-c", BERT_SCORE, job).split("SCORES ")[1])


@needs_environment
def test_bertscore_is_what_the_mcif_scorer_calls(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tiny / "hub"))
    scores, system = direct_bert_score(lang="de", rescale_with_baseline=True)
    result = bertscore(PREDICTIONS, REFERENCES, "de-AT", python=str(PYTHON))
    assert result.scores == pytest.approx(scores, abs=1e-6)
    assert result.system == pytest.approx(system, abs=1e-6)
    parts = result.signature.split("|")
    assert parts[:2] == ["metric:bertscore-f1", "model:bert-base-multilingual-cased"]
    assert {"layer:9", "lang:de", "idf:no", "rescale:yes", "bert-score:0.3.13"} <= set(parts)


@needs_environment
def test_bertscore_of_a_local_model(tiny):
    model, baseline = str(tiny / "encoder"), str(tiny / "baseline.tsv")
    scores, system = direct_bert_score(
        model_type=model,
        num_layers=2,
        lang="de",
        rescale_with_baseline=True,
        baseline_path=baseline,
    )
    result = bertscore(
        PREDICTIONS,
        REFERENCES,
        "de",
        python=str(PYTHON),
        model=model,
        num_layers=2,
        baseline=baseline,
    )
    assert result.scores == pytest.approx(scores, abs=1e-6)
    assert result.system == pytest.approx(system, abs=1e-6)
    parts = result.signature.split("|")
    assert {"model:encoder", "layer:2"} <= set(parts)
    assert not {"rescale:yes", "rescale:no"} & set(parts), "the digest of the baseline"


@needs_environment
def test_rescaling_by_hand(tiny):
    """(F - baseline) / (1 - baseline), the baseline of layer 2 being 0.23."""
    arguments = {"python": str(PYTHON), "model": str(tiny / "encoder"), "num_layers": 2}
    raw = bertscore(PREDICTIONS, REFERENCES, "de", rescale=False, **arguments)
    baseline = str(tiny / "baseline.tsv")
    rescaled = bertscore(PREDICTIONS, REFERENCES, "de", baseline=baseline, **arguments)
    assert rescaled.scores == pytest.approx([(f - 0.23) / 0.77 for f in raw.scores], abs=1e-6)
    assert raw.scores[0] == pytest.approx(1.0, abs=1e-6)  # the texts are the same


@needs_environment
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_layers": 2}, "baseline: none for .* in 'de'; give one or set rescale=False"),
        ({"rescale": False}, "num_layers: bert_score knows no layer for"),
        ({"num_layers": 10, "rescale": False}, "num_layers should be between 0 and 9"),
    ],
)
def test_bertscore_refuses_what_bert_score_passes_over(tiny, settings, complaint):
    with pytest.raises(InputError, match=complaint):
        bertscore(["a"], ["a"], "de", python=str(PYTHON), model=str(tiny / "encoder"), **settings)


@needs_environment
def test_nothing_but_the_result_is_on_stdout(tiny):
    worker = ROOT / "torchtune_speech" / "evaluation" / "neural_worker.py"
    job = {"metric": "bertscore", "model": str(tiny / "encoder"), "num_layers": 1, "lang": "de"}
    job |= {"rescale": False, "baseline": None, "batch_size": 2}
    given = f'{json.dumps(job)}\n{{"mt": "a b", "ref": "a"}}\n{{"mt": "", "ref": "a"}}\n'
    done = subprocess.run([PYTHON, worker], input=given, capture_output=True, text=True)
    assert list(json.loads(done.stdout)) == ["scores", "signature", "system"]
    assert "computing bert embedding" in done.stderr  # what bert_score prints


# Below, other programs stand in for the environment.


@pytest.fixture
def fake(tmp_path):
    """A function that makes a `python` which runs the given code in place of the worker."""

    def make(code):
        (tmp_path / "fake.py").write_text(code)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/fake.py"\n')
        script.chmod(0o755)
        return str(script)

    return make


def scored(python, count=2):
    texts = ["a", "b", "c"][:count]
    return comet(texts, texts, texts, model="some/model", python=python)


GOOD = 'import json; print(json.dumps({"scores": [0.25, 0.75], "system": 0.5, "signature": "s"}))'


def test_the_worker_gets_the_job_and_the_segments(fake, tmp_path):
    # What was given comes back as the signature.
    echo = "import json, sys; given = [json.loads(line) for line in sys.stdin]\n"
    echo += 'print(json.dumps({"scores": [1, 2], "system": 1.5, "signature": json.dumps(given)}))'
    sources, predictions = ["1 ä\n", "2"], ["x", "y"]
    result = comet(sources, predictions, None, model="some/model", python=fake(echo), batch_size=3)
    assert (result.scores, result.system) == ([1.0, 2.0], 1.5)
    assert json.loads(result.signature) == [
        {"metric": "comet", "model": "some/model", "batch_size": 3, "precision": "float32"},
        {"src": "1 ä\n", "mt": "x"},
        {"src": "2", "mt": "y"},
    ]


def test_an_absent_environment_names_the_cure(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/python: No such file.*`make comet-env`"):
        scored("nowhere/python")
    with pytest.raises(InputError, match=r"Permission denied.*`make comet-env`"):
        scored(str(tmp_path))


def test_an_environment_without_the_libraries(monkeypatch):
    # This one has no comet, and the error is the worker's own last line.
    with pytest.raises(InputError) as caught:
        scored(sys.executable)
    assert "comet: ModuleNotFoundError: No module named 'comet' (" in str(caught.value)
    assert "make comet-env" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_quoted(fake, capsys):
    died = 'import sys; print("first\\n50%\\rout of memory", file=sys.stderr); sys.exit(7)'
    with pytest.raises(InputError, match=r"^comet: out of memory \(.*ended with code 7"):
        scored(fake(died))
    assert capsys.readouterr().err == "first\n50%\rout of memory\n"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(InputError, match="no word of why .*ended with code -9"):
        scored(fake(killed))


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        ("hello", r"printed b'hello\\n' in place of scores"),
        ("", r"printed b'\\n' in place"),
        ("[1, 2]", "in place of scores"),
        ('{"scores": [0.1, 0.2]}', "in place of scores"),
        ('{"scores": [0.1, "x"], "system": 0, "signature": ""}', "in place of scores"),
        ('{"scores": [0.1], "system": 0.1, "signature": ""}', "1 scores for 2 segments"),
        ('{"scores": [0.1, NaN], "system": 0.1, "signature": ""}', "segment 1 scored nan"),
        ('{"scores": [-Infinity, 0], "system": 0.1, "signature": ""}', "segment 0 scored -inf"),
        ('{"scores": [0.1, 0.1], "system": NaN, "signature": ""}', "the system scored nan"),
    ],
)
def test_rubbish_is_refused(fake, printed, complaint):
    with pytest.raises(InputError, match=complaint):
        scored(fake(f"print({printed!r})"))


def test_what_the_caller_can_mend(fake):
    python = fake(GOOD)
    assert scored(python).scores == [0.25, 0.75]
    with pytest.raises(InputError, match="3 texts for 2 references|2 texts for 3"):
        comet(["a", "b", "c"], ["a", "b"], None, model="m", python=python)
    with pytest.raises(InputError, match="at least one"):
        comet([], [], None, model="m", python=python)
    with pytest.raises(InputError, match="comet: ref 1 is None; give a text"):
        comet(["a", "b"], ["a", "b"], ["a", None], model="m", python=python)
    with pytest.raises(InputError, match="model: no/model.ckpt: no such file"):
        comet(["a"], ["a"], None, model="no/model.ckpt", python=python)
    with pytest.raises(InputError, match="baseline: no.tsv: no such file"):
        bertscore(["a"], ["a"], "de", baseline="no.tsv", python=python)
    with pytest.raises(InputError, match="precision: unknown 'half'; use float32 or float16"):
        comet(["a"], ["a"], None, model="m", python=python, precision="half")
