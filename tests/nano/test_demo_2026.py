"""The steps, report and tables of the demo of 2026, without training anything."""

import json
from pathlib import Path

import pytest
from tiny_world import prediction_row as row
from transformers import LlamaForCausalLM

from torchtune_speech.nano import _pipeline, demo_2026
from torchtune_speech.nano._llm import nano_llama_config
from torchtune_speech.nano._tokenizer import write_tokenizer
from torchtune_speech.nano.demo_2026 import (
    OUT,
    prediction_file,
    steps_2026,
    system_options,
    training_folders,
)
from torchtune_speech.nano.report_2026 import (
    SYSTEMS,
    format_cost_table,
    format_score_table,
    report_2026,
    training_cost,
)


def test_each_system_is_predicted_after_what_it_is_made_of():
    steps = steps_2026()
    predicted = [step.name.removeprefix("predict ") for step in steps if "predict" in step.name]
    assert predicted == [name for name in SYSTEMS if not name.startswith("2025")]
    made = {str(step.product.parent.parent) for step in steps} | {
        str(step.product) for step in steps
    }
    for words in system_options().values():
        for word in words:
            path = word.partition("=")[2]
            assert not path.startswith(str(OUT)) or path in made, word
    folders = {str(folder) for name, folder in training_folders().items() if "2025" not in name}
    assert folders <= made


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that the commands run in: it has an untrained LLM, and no more."""
    folder = tmp_path / "runs" / "nano" / "llm"
    folder.mkdir(parents=True)
    LlamaForCausalLM(nano_llama_config(write_tokenizer(folder))).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def commands(monkeypatch):
    """The words of each step's command, by step."""
    words = []
    monkeypatch.setattr(_pipeline, "command", lambda *w: words.append(w))
    monkeypatch.setattr(demo_2026, "command", lambda *w: words.append(w))
    for step in steps_2026():
        step.run()
    return dict(zip((step.name for step in steps_2026()), words, strict=True))


def test_training_commands_plan_their_steps(commands, run, here, capsys):
    training = {name: words for name, words in commands.items() if "resume=true" in words}
    assert len(training) == len(steps_2026()) - 14  # features, keep, twelve predictions
    for name, (_, _, recipe, *words) in training.items():
        assert run(recipe, *words, "dry_run=true") == 0, (name, capsys.readouterr().err)
        assert "steps" in capsys.readouterr().out


def test_stage_1_is_scored_on_all_of_the_test_set(commands):
    for version in ("v1", "v2"):
        words = commands[f"{version} stage_1"]
        assert "eval_dataset.manifest=runs/nano/data/test.jsonl" in words
        assert "eval_samples=208" in words


def test_generation_commands_are_refused_for_nothing_but_missing_files(commands, run, here, capsys):
    for name, (_, _, recipe, *words) in commands.items():
        if "predict" in name:
            assert run(recipe, *words) == 1
            error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
            assert len(error) == 1 and "test.jsonl: manifest not found" in error[0], (name, error)


def test_predictions_of_the_demo_are_read_where_it_wrote_them():
    assert prediction_file("2025 A+B") == Path("runs/nano/predictions-A+B.jsonl")
    assert prediction_file("v2 C kept") == OUT / "v2" / "predictions-C-kept.jsonl"


@pytest.fixture
def folders(tmp_path):
    """A run of each stage: a warm-up step and one through the LLM; stage 1 without LLM."""
    stages = {}
    for name in training_folders():
        folder = tmp_path / name
        folder.mkdir()
        extra = {"vectors": 5} if "stage_1" in name else {}
        rows = [
            {"loss": 2.0, "ctc_loss": 2.0, "seconds": 0.2, "tokens": 10, "samples": 4} | extra,
            {"loss": 1.0, "ctc_loss": 2.0, "seconds": 0.5, "tokens": 30, "samples": 5} | extra,
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        nearest = {"wer": 0.25, "word_cosine": 0.9, "pads_found": 1.0}
        report = {"nearest_token": nearest}
        if name.startswith("v2"):
            report["ctc"] = {"wer": 0.125}
        before = {"nearest_token": {"wer": 1.0, "word_cosine": 0.0, "pads_found": 0.0}}
        lines = [{"step": 1, "report": before}, {"step": 2, "report": report}]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        stages[name] = folder
    return stages


def test_cost_tells_steps_without_the_llm_apart(folders):
    assert training_cost(folders["2025 A"]) == {
        "steps": 2, "seconds": 0.7, "samples": 9, "tokens": 40,
        "llm_steps": 1, "llm_samples": 5, "llm_tokens": 30,
    }  # fmt: skip
    alone = training_cost(folders["v1 stage_1"])
    assert (alone["tokens"], alone["llm_steps"], alone["llm_tokens"]) == (40, 0, 0)


def test_report_and_tables(folders):
    heard = [
        row("asr", "en", "The nurse reads a book.", "The nurse reads the book.", 0),
        row("st", "de", "Die Krankenschwester liest heute ein Buch.", "Die Oma schläft jetzt.", 1),
        row("st", "de", "Die Krankenschwester liest heute ein Buch.", "The nurse reads it now.", 2),
        row("sqa", "en", "In the garden.", "In the garden.", 3) | {"prompt_tokens": 50},
    ]
    report = report_2026(
        dict.fromkeys(SYSTEMS, heard), folders=folders, seconds={"a": 1.0}, normalizer="whisper"
    )
    assert set(report) == {"2025", "v1", "v2", "normalizer", "n", "seconds"}
    assert report["v1"]["stage1"]["nearest_token_wer"] == 0.25
    assert report["v1"]["stage1"]["ctc_wer"] is None and report["v2"]["stage1"]["ctc_wer"] == 0.125
    assert report["v2"]["C kept"]["asr"]["wer"] == pytest.approx(0.2)
    assert list(report["v2"]["training"]) == [
        *("stage_1", "stage_2", "stage_2_kept", "stage_2_tasks", "C", "C_kept")
    ]
    lines = format_score_table(report).splitlines()
    table = lines[: 2 + len(SYSTEMS)]
    assert len({len(line) for line in table}) == 1
    # In the language asked for, and the mean of 30, 30, 30 and 50.
    assert all(line.split()[-2:] == ["0.500", "35.0"] for line in table[2:])
    assert "Stage 1 of v1, nearest tokens: WER 0.250 (normalizer: basic)." in lines
    for line in heard:  # as before this was written
        del line["prompt_tokens"]
    report = report_2026(
        dict.fromkeys(SYSTEMS, heard), folders=folders, seconds={"a": 1.0}, normalizer="whisper"
    )
    assert format_score_table(report).splitlines()[2].split()[-1] == "-"
    cost = format_cost_table(report).splitlines()
    assert cost[-1].split() == ["v2", "C_kept", "2", "1", "9", "40", "1", "6.0"]
    (stage_1,) = (line for line in cost if line.startswith("v2 stage_1"))
    assert stage_1.split()[-2:] == ["0", "-"]
