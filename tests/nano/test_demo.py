"""The demo's steps, report and table, without training anything."""

import itertools
from pathlib import Path

import pytest
from tiny_world import prediction_row as row

from torchtune_speech.files import read_json
from torchtune_speech.nano import _pipeline
from torchtune_speech.nano._pipeline import PipelineStep, command, run_pipeline, training_step
from torchtune_speech.nano.demo import demo_steps
from torchtune_speech.nano.report import SYSTEMS, demo_report, format_demo_table


def test_steps_run_once_and_their_times_are_kept(tmp_path, monkeypatch):
    clock = itertools.count(step=10)  # each look at it takes ten seconds
    monkeypatch.setattr(_pipeline.time, "perf_counter", lambda: next(clock))
    runs = []

    def step(name, ok=True):
        def run():
            runs.append(name)
            if not ok:
                raise RuntimeError
            (tmp_path / name).touch()

        return PipelineStep(name, tmp_path / name, run)

    with pytest.raises(RuntimeError):
        run_pipeline([step("a"), step("b", ok=False)], tmp_path / "seconds.json")
    assert read_json(tmp_path / "seconds.json") == {"a": 10, "b (unfinished)": 10}
    seconds = run_pipeline([step("a"), step("b")], tmp_path / "seconds.json")
    assert runs == ["a", "b", "b"]
    assert seconds == {"a": 10, "b": 20}
    (tmp_path / "b").unlink()
    assert run_pipeline([step("b")], tmp_path / "seconds.json") == {"a": 10, "b": 10}


def test_a_half_trained_stage_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = []
    monkeypatch.setattr(_pipeline, "command", lambda *w: words.append(w))
    step = training_step("nano", "projector", "A")
    (tmp_path / "runs/nano/A/step_5").mkdir(parents=True)
    (tmp_path / "runs/nano/A/step_5/stage.json").touch()
    assert not step.is_done
    step.run()
    assert words[0][:5] == ("tune", "run", "projector", "--config", "nano/projector")
    assert "resume=true" in words[0]
    step.product.parent.mkdir(parents=True)
    step.product.write_text('{"evaluation_due": true}')  # stopped at its last step
    run_pipeline([step], tmp_path / "seconds.json")
    assert len(words) == 2
    step.product.write_text('{"evaluation_due": false}')
    run_pipeline([training_step("nano", "projector", "A")], tmp_path / "seconds.json")
    assert len(words) == 2


def test_a_failing_command_ends_the_demo_with_its_exit_code(capfd):
    with pytest.raises(SystemExit) as end:
        command("python", "-c", "import sys; sys.exit(7)")
    assert end.value.code == 7


def test_the_demo_has_all_its_steps():
    names = [step.name for step in demo_steps()]
    assert names[:7] == ["world", "fluent answers", "llm", "features", "A", "B", "C"]
    assert names[7:] == [f"predict {name}" for name in SYSTEMS]
    assert all(step.product.parts[:2] == Path("runs/nano").parts for step in demo_steps())


def test_report_and_table():
    heard = [
        row("asr", "en", "The nurse reads a book.", "The nurse reads the book.", 0),
        row("st", "de", "Die Krankenschwester liest heute ein Buch.", "Die Oma schläft.", 1),
        row("sqa", "en", "In the garden.", "In the garden.", 2),
        row("sqa", "en", "Not answerable.", "The nurse.", 3),
    ]
    read = [row(task.replace("st", "mt").replace("sqa", "qa"), "de", "a b c d", "a b c d", 4)
            for task in ("st", "sqa")]  # fmt: skip
    predictions = {name: heard if name in ("A", "A+B", "C") else read for name in SYSTEMS}
    report = demo_report(predictions, seconds={"A": 1.5}, normalizer="whisper")
    assert report["C"]["asr"]["wer"] == pytest.approx(0.2)
    assert report["C"]["sqa"]["accuracy"] == 0.5
    assert report["C"]["sqa"]["unanswerable_accuracy"] == 0.0
    assert report["normalizer"] == "whisper"
    assert report["n"]["asr"] == 1
    assert report["seconds"] == {"A": 1.5}
    table = format_demo_table(report)
    lines = table.splitlines()
    assert len({len(line) for line in lines[:1] + lines[2:7]}) == 1  # aligned
    assert "0.200" in next(line for line in lines if line.startswith("C "))
    assert "-" in next(line for line in lines if line.startswith("B "))
