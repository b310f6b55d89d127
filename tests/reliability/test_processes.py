"""Several processes: four give what one gives, and the death of one ends the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_world import make_data, make_llm, write_config

from torchtune_speech.files import read_jsonl

STEPS = 10
DEADLINE_S = 120
# A metric logger that gives the tests time to interfere.
SLOW_LOGGER = """
import time


class SlowLogger:
    def log_dict(self, numbers, step):
        time.sleep(0.2)

    def close(self):
        pass
"""
SLOW = ["metric_logger._component_=slow_logger.SlowLogger"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny world, and a run of each stage in one process."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    (folder / "slow_logger.py").write_text(SLOW_LOGGER)
    for recipe, name in (("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")):
        before = {}
        if name == "C":
            before = {
                f"{part}_checkpoint": str(folder / stage)
                for part, stage in (("projector", "A"), ("adapter", "B"))
            }
        write_config(
            folder,
            recipe,
            output_dir=str(folder / name),
            max_steps=STEPS,
            eval_dataset=None,
            **before,
        )
        done = start(folder, recipe, folder / name)
        assert done.wait(DEADLINE_S) == 0
    return folder


def start(world, recipe, out, *words, torchrun=()):
    """Starts `tune run`; what it prints goes to a file beside its output."""
    tune = Path(sys.executable).with_name("tune")
    command = [tune, "run", *torchrun, recipe, "--config", world / f"{recipe}.yaml"]
    with open(out.with_name(f"{out.name}.log"), "a") as log:
        return subprocess.Popen(
            [*map(str, command), f"output_dir={out}", *words], cwd=world, stdout=log, stderr=log
        )


def said(out):
    return out.with_name(f"{out.name}.log").read_text()


def losses(out):
    return [row["loss"] for row in read_jsonl(out / "metrics.jsonl")]


def assert_as_one_process(world, name, out):
    assert losses(out) == pytest.approx(losses(world / name), rel=1e-4)
    files = sorted((world / name / f"step_{STEPS}").glob("*.safetensors"))
    assert files
    for file in files:
        one, many = load_file(file), load_file(out / f"step_{STEPS}" / file.name)
        assert one.keys() == many.keys()
        assert max((one[k] - many[k]).abs().max() for k in one) <= 1e-4


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")],
)
def test_four_processes_take_the_steps_of_one_and_one_goes_on(world, recipe, name):
    """Three rows a step: one of four processes has none, and in C whole steps have no speech."""
    out, words = world / f"{name}-four-then-one", ["save_every_n_steps=2", *SLOW]
    process = start(world, recipe, out, *words, torchrun=["--nproc_per_node", "4"])
    _wait_for_checkpoint(out, 4, process)
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    assert 4 <= len(losses(out)) < STEPS
    assert start(world, recipe, out, "resume=true").wait(DEADLINE_S) == 0, said(out)
    assert_as_one_process(world, name, out)


def test_a_worker_that_dies_takes_the_run_down(world):
    out = world / "A-dies"
    process = start(
        world, "projector", out, "max_steps=1000", *SLOW, torchrun=["--nproc_per_node", "2"]
    )
    _wait_for_steps(out, 3, process)
    began = time.monotonic()
    os.kill(_workers(process)[1], signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 1
    assert time.monotonic() - began < 60  # torchrun gives the others 30 s to leave
    assert "Signal 9 (SIGKILL)" in said(out)


def test_torchrun_restarts_what_died_and_the_run_goes_on(world):
    out = world / "A-restarts"
    words = ["resume=true", "save_every_n_steps=1", *SLOW]
    torchrun = ["--nproc_per_node", "2", "--max-restarts", "2"]
    process = start(world, "projector", out, *words, torchrun=torchrun)
    for step in (2, 5):
        _wait_for_checkpoint(out, step, process)
        os.kill(_workers(process)[1], signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 0, said(out)
    assert said(out).count("going on from step_") == 2
    assert_as_one_process(world, "A", out)


def _workers(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs Linux's list of child processes")
    return [int(pid) for pid in children.read_text().split()]


def _wait_for_steps(out, count, process):
    log = out / "metrics.jsonl"
    _wait(lambda: log.exists() and log.read_bytes().count(b"\n") >= count, out, process)


def _wait_for_checkpoint(out, step, process):
    _wait(lambda: (out / f"step_{step}" / "stage.json").exists(), out, process)


def _wait(is_there, out, process):
    deadline = time.monotonic() + DEADLINE_S
    while not is_there():
        assert process.poll() is None and time.monotonic() < deadline, said(out)
        time.sleep(0.01)
