import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import speech_eval
from omegaconf import OmegaConf

from torchtune_speech.config import config_path
from torchtune_speech.data import write_mcif_output
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import NeuralScores
from torchtune_speech.files import read_jsonl, write_jsonl

PREDICTIONS = [
    {"id": "1", "task": "asr", "target": "red green blue", "prediction": "red green blew"},
    {"id": "2", "task": "st", "target_lang": "zh", "target": "我爱你们", "prediction": "我爱你们"},
    # The text twin of a speech row has its id.
    {"id": "2", "task": "mt", "target_lang": "zh", "target": "我爱你们", "prediction": ""},
    {"id": "3", "task": "sqa", "target": "Not answerable.", "prediction": "Not answerable."},
]
MANIFEST = [
    {"id": "1", "task": "asr", "audio": "1.wav", "target": "red green blue", "domain": "talks"},
    {"id": "2", "task": "st", "audio": "2.wav", "target": "我爱你们", "target_lang": "zh"},
    {"id": "3", "task": "sqa", "audio": "3.wav", "question": "Who?", "target": "Not answerable."},
]


def write(path, rows):
    write_jsonl(path, rows)
    return str(path)


def without_targets(rows=PREDICTIONS):
    """Predictions as they are when the model was given no references."""
    return [{"id": row["id"], "task": row["task"], "prediction": row["prediction"]} for row in rows]


def run(**keys):
    cfg = OmegaConf.create(keys)
    recipe = speech_eval.SpeechEvalRecipe(cfg)
    recipe.setup(cfg)
    return recipe.evaluate()


def test_report_lies_beside_the_predictions(tmp_path, capsys):
    report = run(predictions=write(tmp_path / "predictions.jsonl", PREDICTIONS))
    assert report["asr"]["wer"] == pytest.approx(1 / 3)
    assert report["st"]["zh"]["bleu"] == 100.0
    assert report["mt"]["zh"]["empty"] == 1
    assert report["sqa"]["unanswerable_accuracy"] == 1.0
    assert report["predictions"] == [str(tmp_path / "predictions.jsonl")]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    table = capsys.readouterr().out
    assert "0.333" in table and "normalizer: whisper" in table


def test_several_files_count_as_one(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate(PREDICTIONS)]
    report = run(predictions=paths, output=str(tmp_path / "new" / "all.json"), normalizer="basic")
    assert report["n"] == {"asr": 1, "st": 1, "mt": 1, "sqa": 1}
    assert report["normalizer"] == "basic"
    assert (tmp_path / "new" / "all.json").is_file()


def test_references_are_joined_by_id(tmp_path):
    path = write(tmp_path / "predictions.jsonl", without_targets()[::-1])
    manifest = write(tmp_path / "manifest.jsonl", MANIFEST)  # its audio files do not exist
    report = run(predictions=path, manifest=manifest)
    assert report["asr"]["wer"] == pytest.approx(1 / 3)
    assert report["st"]["zh"]["bleu"] == 100.0
    assert set(report["mt"]) == {"zh"}
    assert report["domains"]["talks"]["asr"]["n"] == 1
    assert "missing" not in report


def test_the_manifest_has_the_last_word(tmp_path):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    corrected = [{**MANIFEST[0], "target": "red green blew"}, *MANIFEST[1:]]
    report = run(predictions=path, manifest=write(tmp_path / "manifest.jsonl", corrected))
    assert report["asr"]["wer"] == 0.0


def test_part_of_a_manifest(tmp_path):
    path = write(tmp_path / "predictions.jsonl", without_targets(PREDICTIONS[:1]))
    manifest = write(tmp_path / "manifest.jsonl", MANIFEST)
    assert run(predictions=path, manifest=manifest, where={"task": "asr"})["n"] == {"asr": 1}


def test_missing_ids_are_refused_unless_allowed(tmp_path, capsys):
    path = write(tmp_path / "predictions.jsonl", [*PREDICTIONS[:1], {**PREDICTIONS[0], "id": "9"}])
    manifest = write(tmp_path / "manifest.jsonl", MANIFEST)
    with pytest.raises(InputError) as error:
        run(predictions=path, manifest=manifest)
    message = str(error.value)
    assert "2 manifest rows without a prediction (first: '2')" in message
    assert "1 predictions without a manifest row (first: '9', task asr)" in message
    assert "allow_missing=true" in message
    assert not (tmp_path / "report.json").exists()

    report = run(predictions=path, manifest=manifest, allow_missing=True)
    assert report["n"] == {"asr": 1}
    assert list(report["missing"].values()) == [2, 1]
    assert any("2 manifest rows" in note for note in report["notes"])
    assert not any(line.startswith("missing") for line in capsys.readouterr().out.splitlines())


def test_a_reference_is_that_of_the_same_task(tmp_path):
    """Manifests of several tasks may name their rows alike."""
    other = {"id": "1", "task": "st", "target_lang": "de", "target": "rot", "prediction": "rot"}
    path = write(tmp_path / "predictions.jsonl", [*without_targets(), *without_targets([other])])
    manifest = write(tmp_path / "manifest.jsonl", MANIFEST)
    with pytest.raises(InputError, match=r"1 predictions without .*first: '1', task st\)"):
        run(predictions=path, manifest=manifest)
    report = run(predictions=path, manifest=manifest, allow_missing=True)
    assert report["n"] == {"asr": 1, "st": 1, "mt": 1, "sqa": 1}
    assert list(report["missing"].values()) == [0, 1]


def test_verdicts_of_people_outlive_another_scoring(tmp_path):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    run(predictions=path)
    samples = tmp_path / "report.samples.jsonl"
    judged = [row | {"human": number} for number, row in enumerate(read_jsonl(samples))]
    write(samples, judged)
    run(predictions=path, normalizer="basic")
    assert [row["human"] for row in read_jsonl(samples)] == [0, 1, 2, 3]
    changed = [{**PREDICTIONS[0], "prediction": "red"}, *PREDICTIONS[1:]]
    run(predictions=write(tmp_path / "predictions.jsonl", changed))
    assert ["human" in row for row in read_jsonl(samples)] == [False, True, True, True]


def test_half_a_character_is_scored_and_written(tmp_path):
    row = {**PREDICTIONS[0], "prediction": "red \ud83d green"}
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(row))
    run(predictions=str(path))
    assert read_jsonl(tmp_path / "report.samples.jsonl")[0]["prediction"] == row["prediction"]


def test_scores_that_nothing_can_have_are_told(tmp_path, caplog):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS[:1])
    run(predictions=path, comet="some/model", bertscore=True)
    assert "comet: there are no translations to score" in caplog.text
    assert "bertscore: there are no answers or summaries to score" in caplog.text


def test_own_unanswerable_phrases(tmp_path):
    rows = [{**PREDICTIONS[3], "target_lang": "fr", "target": "Sans réponse.", "prediction": "Oui"}]
    path = write(tmp_path / "predictions.jsonl", rows)
    report = run(predictions=path, unanswerable={"fr": "Sans réponse."})
    assert report["sqa"]["n_unanswerable"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "4", "task": "asr", "target": "x"}', "no 'prediction'"),
        ('{"task": "asr", "target": "x", "prediction": "x"}', "no 'id'"),
        ('{"id": "4", "target": "x", "prediction": "x"}', "no 'task'"),
        ('{"id": "4", "task": "asr", "prediction": "x"}', "no 'target'.*manifest=PATH"),
        ('{"id": "4", "task": "asr", "target": " ", "prediction": "x"}', "no 'target'"),
        ('{"id": "1", "task": "asr", "target": "x", "prediction": "x"}', "came before, in .*:1;"),
        ('{"id": "4", "task": "asr", ', "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(PREDICTIONS[0]) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"predictions.jsonl:3.*{message}"):
        run(predictions=str(path))
    assert not (tmp_path / "report.json").exists()


def test_a_manifest_that_cannot_be_joined_is_refused(tmp_path):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    with pytest.raises(InputError, match="manifest: .*give the path of one manifest"):
        run(predictions=path, manifest=[path])
    with pytest.raises(InputError, match=r"where: .*add manifest=PATH"):
        run(predictions=path, where={"task": "asr"})


def test_duplicates_across_files_are_refused(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", PREDICTIONS) for name in "ab"]
    with pytest.raises(InputError, match=r"b\.jsonl:1.*a\.jsonl:1"):
        run(predictions=paths)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file .*none\.jsonl"):
        run(predictions=str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match=r"no row in .*empty\.jsonl"):
        run(predictions=write(tmp_path / "empty.jsonl", []))
    with pytest.raises(InputError, match="no predictions"):
        run(predictions=None)


def test_unknown_keys_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="'normaliser'.*'normalizer'"):
        run(predictions="x.jsonl", normaliser="basic")


@pytest.mark.parametrize("family", ["nano", "an4", "llama3_1_8b", "llama3_1_8b-2026", "qwen3_4b"])
def test_shipped_configs_fit_the_recipe(family):
    path = config_path(f"{family}/speech_eval")
    assert path.read_text(encoding="utf-8").startswith("# Recipe: speech_eval - ")
    recipe = speech_eval.SpeechEvalRecipe(OmegaConf.load(path))
    written = OmegaConf.load(config_path(f"{family}/speech_generate")).output
    assert [str(path) for path in recipe.paths] == [written]
    # runs/nano/report.json is the demo's.
    name = "scores.json" if family == "nano" else "report.json"
    assert recipe.output == recipe.paths[0].parent / name


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["speech_eval", "--config", "nano/speech_eval", f"predictions={tmp_path}/no"]
    )
    with pytest.raises(SystemExit) as stop:
        speech_eval.recipe_main()
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: predictions: no file") and err.count("\n") == 1


def test_only_the_first_process_scores(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    words = ["speech_eval", "--config", "nano/speech_eval", f"predictions={path}"]
    monkeypatch.setattr(sys, "argv", [*words, "output=null"])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        speech_eval.recipe_main()
    assert not stop.value.code
    assert not (tmp_path / "report.json").exists()
    assert capsys.readouterr().out == ""


def test_tune_run(tmp_path):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    tune = Path(sys.executable).with_name("tune")
    command = [tune, "run", "speech_eval", "--config", "nano/speech_eval", f"predictions={path}"]
    done = subprocess.run(
        [*map(str, command), "normalizer=basic", "output=null"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "0.333" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["normalizer"] == "basic"


def test_normalizer_and_ter_are_keys(tmp_path):
    path = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    report = run(predictions=path, normalizer="mms", ter=False)
    assert report["asr"]["normalizer"] == "mms"
    assert "ter" not in report["st"]["zh"] and "ter" not in report["signatures"]
    assert run(predictions=path)["st"]["zh"]["ter"] == 0.0


def test_the_page_and_the_samples_lie_beside_the_report(tmp_path, run_recipe):
    predictions = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    write_jsonl(run_folder / "metrics.jsonl", [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}])
    evaluation = {"step": 2, "report": {"asr": {"wer": 0.25, "n": 4}}, "examples": []}
    write_jsonl(run_folder / "evaluations.jsonl", [evaluation])
    words = ["--config", "nano/speech_eval", f"predictions={predictions}", "output=null"]
    code, out, err = run_recipe("speech_eval", *words, f"training_run={run_folder}")
    assert code == 0, err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "red green blew" in page and "moving mean" in page and "0.25" in page
    samples = [json.loads(line) for line in open(tmp_path / "report.samples.jsonl")]
    assert samples[0]["scores"] == {"wer": pytest.approx(1 / 3)}
    assert samples[2]["flags"] == ["empty"]
    (tmp_path / "report.html").unlink()
    assert run_recipe("speech_eval", *words, "html=false")[0] == 0
    assert not (tmp_path / "report.html").exists()
    code, _, err = run_recipe("speech_eval", *words, f"training_run={tmp_path}")
    assert code == 1 and "has no metrics.jsonl" in err


OFFICIAL = """<testset name="x" type="reference"><task track="short" text_lang="de">
<sample id="1,2" iid="1" task="TRANS"><reference>Guten Tag.
Auf Wiedersehen.</reference><metadata><transcript>Good day.
Good bye.</transcript></metadata></sample>
<sample id="3" iid="1" task="QA" qa_type="A"><reference>Rom</reference></sample>
</task></testset>"""


@pytest.mark.parametrize("kind", ["xml", "jsonl"])
def test_official_references(tmp_path, run_recipe, kind):
    (tmp_path / "ref.xml").write_text(OFFICIAL)
    texts = {"1": "Guten Tag. Auf", "2": "Wiedersehen.", "3": "Rom"}
    path = tmp_path / f"out.{kind}"
    if kind == "xml":
        write_mcif_output(path, texts, track="short", text_lang="de", name="x")
    else:
        write_jsonl(path, [{"id": id_, "prediction": text} for id_, text in texts.items()])
    words = ["--config", "nano/speech_eval", f"predictions={path}", "output=null"]
    words += [f"mcif_reference={tmp_path / 'ref.xml'}"]
    code, out, err = run_recipe("speech_eval", *words)
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["mcif"]["scores"] == {"TRANS-COMET": None, "QA-BERTScore": None}
    assert report["st"]["de"]["chrf"] == pytest.approx(100.0)  # cut anew to two lines
    assert report["sqa"]["accuracy"] == 1.0
    assert list(report["domains"]) == ["A"] and list(report["domains"]["A"]) == ["sqa"]
    assert "TRANS-COMET: -" in out


class FakeNeural:
    """In place of the other environment: half of a score for each word that both texts have."""

    def __call__(self, first, second, *rest, **options):
        predictions, references = (second, rest[0]) if "model" in options else (first, second)
        scores = [
            len(set(p.split()) & set((r or p).split())) / 2
            for p, r in zip(predictions, references or predictions, strict=True)
        ]
        return NeuralScores(scores, sum(scores) / len(scores), "metric:fake")


def test_neural_scores_get_intervals_and_a_place_among_the_official_ones(
    tmp_path, run_recipe, monkeypatch
):
    given = "torchtune_speech.evaluation._given"
    monkeypatch.setattr(f"{given}.comet", FakeNeural())
    monkeypatch.setattr(f"{given}.bertscore", FakeNeural())
    (tmp_path / "ref.xml").write_text(OFFICIAL)
    path = tmp_path / "out.jsonl"
    texts = {"1": "Guten Tag.", "2": "Wiedersehen.", "3": "Rom"}
    write_jsonl(path, [{"id": id_, "prediction": text} for id_, text in texts.items()])
    words = ["--config", "nano/speech_eval", f"predictions={path}", "output=null", "comet=any"]
    words += [f"mcif_reference={tmp_path / 'ref.xml'}", "bertscore=true", "comet_free=free"]
    code, _, err = run_recipe("speech_eval", *words)
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["mcif"]["scores"] == {"TRANS-COMET": 0.75, "QA-BERTScore": 0.5}
    assert report["st"]["de"]["comet"] == 0.75
    assert report["st"]["de"]["intervals"]["comet"] == [0.5, 1.0]
    assert report["st"]["de"]["comet_free"] == 0.75
    assert report["sqa"]["bertscore"] == 0.5
    assert report["signatures"]["bertscore"] == {"de": "metric:fake"}


def say_yes(conversations):
    return ["Yes."] * len(conversations)


def make_judge(model):
    assert model == "m"
    return say_yes


def test_a_judge_from_the_config(tmp_path, run_recipe, monkeypatch):
    monkeypatch.setattr("torchtune_speech.evaluation.ask_endpoint", make_judge)
    rows = [row | {"question": "Who?"} for row in PREDICTIONS if row["task"] == "sqa"]
    predictions = write(tmp_path / "predictions.jsonl", rows)
    words = ["--config", "nano/speech_eval", f"predictions={predictions}", "output=null"]
    words += ["judge._component_=torchtune_speech.evaluation.ask_endpoint", "judge.model=m"]
    code, _, err = run_recipe("speech_eval", *words)
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["sqa"]["judge"] == 1.0
    assert report["signatures"]["judge"] == "judge:m|prompt:sqa_v1"


def test_official_answers_must_be_those_of_the_reference(tmp_path, run_recipe):
    (tmp_path / "ref.xml").write_text(OFFICIAL)
    texts = {"1": "Guten Tag.", "2": "Auf Wiedersehen.", "3": "Rom"}
    rows = [{"id": id_, "prediction": text, "target_lang": "de"} for id_, text in texts.items()]
    write_mcif_output(tmp_path / "out.xml", texts, track="short", text_lang="de", name="x")
    write_mcif_output(tmp_path / "long.xml", texts, track="long", text_lang="de", name="x")
    write_jsonl(tmp_path / "it.jsonl", [row | {"target_lang": "it"} for row in rows])
    more = {"id": "99", "prediction": "x", "finish_reason": "length"}
    cut = {"finish_reason": "length", "duration_s": 7.0}
    write_jsonl(tmp_path / "good.jsonl", [rows[0], rows[1], rows[2] | cut, more])
    reference = f"mcif_reference={tmp_path / 'ref.xml'}"

    def run_on(*names, words=(reference,)):
        files = ",".join(str(tmp_path / name) for name in names)
        predictions = f"predictions=[{files}]"
        return run_recipe("speech_eval", "--config", "nano/speech_eval", predictions, *words,
                          f"output={tmp_path / 'r.json'}")  # fmt: skip

    for names, message in (
        (["it.jsonl"], "target_lang is 'it'"),
        (["long.xml"], "no task short/de"),
        (["out.xml", "good.jsonl"], "id '1' came before"),
    ):
        code, _, err = run_on(*names)
        assert code == 1 and message in err, err
    code, _, err = run_on("good.jsonl", words=(reference, "manifest=x.jsonl"))
    assert code == 1 and "manifest: plays no part" in err
    code, _, err = run_on("out.xml", words=())
    assert code == 1 and "need mcif_reference" in err
    code, _, err = run_on("good.jsonl")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["missing"] == {"predictions without a reference": 1}
    assert report["sqa"]["length_finishes"] == 1 and list(report["durations"]) == ["5-10"]
    assert "QA-BERTScore: not computed" in report["notes"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("normalizer=foo", "normalizer: unknown name 'foo'"),
        ("judge=somebody", "judge: not a component"),
        ("output=scores.html", "a name that ends in .json"),
        ("training_run=nowhere", "has no metrics.jsonl"),
    ],
)
def test_cheap_settings_are_checked_before_neural_models_run(tmp_path, run_recipe, word, message):
    predictions = write(tmp_path / "predictions.jsonl", PREDICTIONS)
    words = ["--config", "nano/speech_eval", f"predictions={predictions}", "bertscore=true"]
    code, _, err = run_recipe("speech_eval", *words, "neural_python=nowhere", word)
    assert code == 1 and message in err, err


def test_scores_of_the_file_are_averaged_with_a_note_and_computed_ones_anew(tmp_path):
    rows = [row | {"scores": {"wer": 0.9, "comet": 0.7}} for row in PREDICTIONS]
    report = run(predictions=write(tmp_path / "predictions.jsonl", rows))
    assert report["st"]["zh"]["comet"] == 0.7
    assert "comet: as the predictions brought it along" in report["notes"]
    samples = [json.loads(line) for line in open(tmp_path / "report.samples.jsonl")]
    assert samples[0]["scores"]["wer"] == pytest.approx(1 / 3)


def test_what_one_model_has_computed_outlives_another(tmp_path, run_recipe, monkeypatch):
    given = "torchtune_speech.evaluation._given"
    monkeypatch.setattr(f"{given}.comet", FakeNeural())

    def broken(*args, **options):
        raise InputError("no such environment")

    monkeypatch.setattr(f"{given}.bertscore", broken)
    rows = [row | {"source_text": "x"} for row in PREDICTIONS]
    predictions = write(tmp_path / "predictions.jsonl", rows)
    words = ["--config", "nano/speech_eval", f"predictions={predictions}", "output=null"]
    code, _, err = run_recipe("speech_eval", *words, "comet=any", "bertscore=true")
    assert code == 1 and "no such environment" in err
    samples = [json.loads(line) for line in open(tmp_path / "report.samples.jsonl")]
    assert samples[1]["scores"] == {"comet": 0.5}
