import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import speech_eval
from omegaconf import OmegaConf

from torchtune_speech.config import config_path
from torchtune_speech.errors import InputError
from torchtune_speech.files import write_jsonl

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


def test_missing_ids_are_refused_unless_allowed(tmp_path):
    path = write(tmp_path / "predictions.jsonl", [*PREDICTIONS[:1], {**PREDICTIONS[0], "id": "9"}])
    manifest = write(tmp_path / "manifest.jsonl", MANIFEST)
    with pytest.raises(InputError) as error:
        run(predictions=path, manifest=manifest)
    message = str(error.value)
    assert "2 manifest rows without a prediction (first: '2')" in message
    assert "1 predictions without a manifest row (first: '9')" in message
    assert "allow_missing=true" in message
    assert not (tmp_path / "report.json").exists()

    report = run(predictions=path, manifest=manifest, allow_missing=True)
    assert report["n"] == {"asr": 1}
    assert list(report["missing"].values()) == [2, 1]
    assert any("2 manifest rows" in note for note in report["notes"])


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


@pytest.mark.parametrize("family", ["nano", "an4", "llama3_1_8b"])
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
