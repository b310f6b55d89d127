"""Running: skipping, going on after a stop, running changed steps again, saying what failed."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchtune_speech.errors import InputError
from torchtune_speech.files import read_json
from torchtune_speech.study import dry_run, load_study, run_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(write_study, tree, launcher, calls):
    """A function that runs the study; gives the (recipe, output folder) of the calls made."""

    def run(**options):
        options = {"out": Path("out"), "launcher": launcher} | options
        try:
            run_study(load_study(write_study(tree)), **options)
        finally:
            made = [(recipe, folder(words)) for recipe, *words in calls()]
        return made

    return run


def folder(words):
    path = Path(words[0].split("=")[1])
    path = path.parent if path.suffix else path
    return str(path.relative_to("out"))


def names(made):
    return [folder.split("/")[-1] for _, folder in made]


def test_all_is_run_once_and_then_nothing(run):
    made = run()
    assert made[:4] == [
        ("projector", "10/seed_0/A"),
        ("multimodal_fuse", "10/seed_0/C"),
        ("speech_generate", "10/seed_0/predict"),
        ("speech_eval", "10/seed_0/score"),
    ]
    assert len(made) == 19 and names(made).count("A") == 1
    before = Path("out/study.json").read_text()
    assert run() == []
    assert Path("out/study.json").read_text() == before


def test_what_is_missing_is_made(run):
    run()
    Path("out/20/seed_1/score/report.json").unlink()
    (Path("out/10/seed_2/C/step_10") / "stage.json").unlink()
    assert run() == [("speech_eval", "20/seed_1/score"), ("multimodal_fuse", "10/seed_2/C")]


def test_a_checkpoint_on_the_way_is_not_the_end(run):
    run()
    whole, half = (Path(f"out/10/seed_0/C/step_{n}") for n in (10, 6))
    whole.rename(half)
    stage = half / "stage.json"
    stage.write_text(stage.read_text().replace('"step": 10', '"step": 6'))
    assert run() == [("multimodal_fuse", "10/seed_0/C")]
    assert half.exists(), "it went on from there"


def test_a_step_that_was_stopped_before_its_last_evaluation_is_gone_on_with(run):
    run()
    stage = Path("out/10/seed_0/C/step_10/stage.json")
    stage.write_text(stage.read_text().replace('"metrics"', '"evaluation_due": true, "metrics"'))
    assert run() == [("multimodal_fuse", "10/seed_0/C")]
    assert run() == []


def test_without_max_steps_the_end_of_the_command_counts(run):
    run()
    for file in Path("out").glob("**/stage.json"):
        file.write_text(file.read_text().replace('"max_steps": ', '"max_steps": null, "was": '))
    assert run() == []
    record = Path("out/10/seed_0/A.json")
    record.write_text(record.read_text().replace('"ended": true', '"ended": false'))
    assert run() == [("projector", "10/seed_0/A")]


def test_changed_steps_and_what_follows_are_run_again(run, tree):
    run()
    stale = Path("out/10/seed_0/score/stale")
    stale.touch()
    tree["pipeline"]["predict"]["set"]["limit"] = 3
    made = run()
    assert names(made) == ["predict", "score"] * 6
    assert not stale.exists()
    tree["variants"]["20"] = tree["variants"].pop(20) | {"steps": 25}
    made = run()
    assert {name for _, name in made} == {
        f"20/seed_{s}/{step}" for s in (0, 1, 2) for step in ("C", "predict", "score")
    }
    tree["seeds"] = [0, 1, 2, 3]
    assert len(run()) == 6
    tree["seeds"] = [1]
    assert run() == [("projector", "10/seed_1/A")], "it was in seed_0, which is no more"


def test_a_failure_is_one_line_with_the_log(run, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "speech_generate")
    with pytest.raises(InputError) as error:
        run()
    assert str(error.value) == (
        "out/10/seed_0/predict: train.jsonl:7: no 'target'; add it; see out/10/seed_0/predict.log"
    )
    assert "loss 1.2\n" in Path("out/10/seed_0/predict.log").read_text()
    monkeypatch.delenv("FAKE_FAIL")
    assert names(run())[:2] == ["predict", "score"], "A and C were done"


def test_a_command_that_says_nothing_or_writes_nothing_has_failed(run):
    with pytest.raises(InputError, match="out/10/seed_0/A: exit code 1; see out/10/seed_0/A.log"):
        run(launcher=["false"])
    with pytest.raises(InputError, match="it wrote no A; see"):
        run(launcher=["true"])
    Path("out/10/seed_0/A.log").write_text("error: of an earlier attempt\n")
    with pytest.raises(InputError, match="it wrote no A; see"):
        run(launcher=["true"])
    assert names(run())[0] == "A"


def test_a_folder_of_somebody_else_is_left_alone(run):
    mine = Path("out/10/seed_0/C/thesis.txt")
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(InputError, match="written by something else than this study"):
        run()
    assert mine.exists()


@pytest.fixture
def hanging_study(write_study, tree, launcher, tmp_path):
    """A study in a process of its own whose step C waits after its first checkpoint."""
    os.mkfifo("hanging")
    program = (
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from torchtune_speech.study import load_study, run_study\n"
        f"run_study(load_study({write_study(tree)!r}), Path('out'), launcher={launcher!r})"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"FAKE_HANG": "multimodal_fuse", "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.DEVNULL)
    open("hanging").close()  # until the step has come so far
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_lets_its_step_save_and_goes_on(hanging_study, run, calls, number):
    hanging_study.send_signal(number)
    hanging_study.wait(timeout=60)
    assert hanging_study.returncode == {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT}[number]
    checkpoints = sorted(p.name for p in Path("out/10/seed_0/C").glob("step_*"))
    assert checkpoints == ["step_1", "step_2"]
    assert read_json("out/10/seed_0/C.json")["seconds"] >= 0
    assert [recipe for recipe, *_ in calls()] == ["projector", "multimodal_fuse"]
    made = run()
    assert made[0] == ("multimodal_fuse", "10/seed_0/C") and len(made) == 18
    assert Path("out/10/seed_0/C/step_2").exists(), "it went on from there"


def test_a_step_that_outlives_its_study_keeps_another_away(hanging_study, run, calls):
    hanging_study.kill()
    hanging_study.wait()
    calls()
    with pytest.raises(InputError, match="^out: a study, or a step that outlived one, is at work"):
        run()
    (step,) = step_processes()
    watch = os.pidfd_open(step)
    os.kill(step, signal.SIGTERM)
    select.select([watch], [], [])  # until it has ended; it is no child of this process
    assert names(run())[0] == "C"


def step_processes():
    """Processes of the fake recipe that were started in this folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            here = (folder / "cwd").resolve() == Path.cwd()
        except OSError:
            continue
        if here and any(word.endswith(b"fake_tune.py") for word in words):
            yield int(folder.name)


def test_dry_run_marks_what_is_done(run, write_study, tree):
    run()
    Path("out/20/seed_1/score/report.json").unlink()
    lines = dry_run(load_study(write_study(tree)), Path("out")).splitlines()
    open_ = [line for line in lines if line.startswith("tune run ")]
    assert len(open_) == 1 and "20/seed_1/score" in open_[0]
    assert sum(line.startswith("# done: tune run ") for line in lines) == 18
