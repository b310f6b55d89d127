"""The three stages, generation and scoring through `tune run`, in one process and in two."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_world import make_data, make_llm, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


def losses(folder):
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def run_ok(tune_run, *words, cwd):
    done = tune_run(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def stages(world, tune_run):
    """A, B and C, each trained for six steps."""
    for recipe, name in (("projector", "A"), ("lora_finetune_text", "B"), ("multimodal_fuse", "C")):
        changes = (
            {"projector_checkpoint": str(world / "A"), "adapter_checkpoint": str(world / "B")}
            if name == "C"
            else {}
        )
        file = write_config(world, recipe, output_dir=str(world / name), **changes)
        run_ok(tune_run, recipe, "--config", file, cwd=world)
    return world


def test_each_step_leaves_a_line(stages):
    for name in "ABC":
        rows = [
            json.loads(line) for line in (stages / name / "metrics.jsonl").read_text().splitlines()
        ]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert all(
            row["loss"] > 0 and row["tokens_per_second"] > 0 and row["grad_norm"] > 0
            for row in rows
        )
    assert {"lr_projector", "lr_lora"} <= rows[0].keys()
    assert any("(text twins)" in row["source"] for row in rows)


def test_checkpoints_hold_the_trained_parts(stages):
    expected = {
        "A": {"projector.safetensors", "stage.json", "state"},
        "B": {"adapter_model.safetensors", "adapter_config.json", "stage.json", "state"},
        "C": {
            "projector.safetensors",
            "adapter_model.safetensors",
            "adapter_config.json",
            "stage.json",
            "state",
        },
    }
    for name, files in expected.items():
        assert {p.name for p in (stages / name / "step_6").iterdir()} == files
        stage = json.loads((stages / name / "step_6" / "stage.json").read_text())
        assert stage["step"] == 6
        assert stage["fingerprints"]["llm"]["name"] == "llm"
        assert stage["metrics"]["n"]
    a, c = (load_file(stages / n / "step_6" / "projector.safetensors") for n in "AC")
    assert a.keys() == c.keys()
    assert any((a[k] != c[k]).any() for k in a)


def test_generate_and_score(stages, tune_run):
    file = write_config(
        stages, "speech_generate", checkpoint=str(stages / "C"), output=str(stages / "p.jsonl")
    )
    run_ok(tune_run, "speech_generate", "--config", file, cwd=stages)
    rows = [json.loads(line) for line in (stages / "p.jsonl").read_text().splitlines()]
    ids = [
        json.loads(line)["id"]
        for line in (stages / "data" / "manifest.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == ids
    one_by_one = ["batch_size=1", f"output={stages / 'p1.jsonl'}"]
    run_ok(tune_run, "speech_generate", "--config", file, *one_by_one, cwd=stages)
    singly = [json.loads(line) for line in (stages / "p1.jsonl").read_text().splitlines()]
    assert [r["prediction"] for r in singly] == [r["prediction"] for r in rows]
    done = run_ok(
        tune_run,
        "speech_eval",
        "--config",
        "nano/speech_eval",
        f"predictions={stages / 'p.jsonl'}",
        cwd=stages,
    )
    report = json.loads((stages / "report.json").read_text())
    assert report["n"]["asr"] == 8
    assert "wer" in done.stdout.lower()


@pytest.mark.parametrize("recipe", ["projector", "lora_finetune_text", "multimodal_fuse"])
def test_two_processes_take_the_steps_of_one(stages, tune_run, recipe):
    name = {"projector": "A", "lora_finetune_text": "B", "multimodal_fuse": "C"}[recipe]
    out = stages / f"{name}-two"
    extra = [f"output_dir={out}", "gradient_accumulation_steps=2", "eval_samples=2"]
    run_ok(
        tune_run,
        "--nproc_per_node",
        "2",
        recipe,
        "--config",
        stages / f"{recipe}.yaml",
        *extra,
        cwd=stages,
    )
    assert losses(out) == pytest.approx(losses(stages / name), rel=1e-4)
    file = {"A": "projector", "B": "adapter_model", "C": "projector"}[name] + ".safetensors"
    one, two = (load_file(d / "step_6" / file) for d in (stages / name, out))
    assert all((one[k] - two[k]).abs().max() < 1e-4 for k in one)


def test_resume_continues_the_steps(stages, tune_run):
    file, out = stages / "multimodal_fuse.yaml", stages / "C-resumed"
    run_ok(
        tune_run,
        "multimodal_fuse",
        "--config",
        file,
        f"output_dir={out}",
        "save_every_n_steps=3",
        cwd=stages,
    )
    assert losses(out) == losses(stages / "C")
    # As after a crash between steps 5 and 6: the checkpoint of step 3 is the newest whole one.
    import shutil

    shutil.rmtree(out / "step_6")
    refused = tune_run("multimodal_fuse", "--config", file, f"output_dir={out}", cwd=stages)
    assert refused.returncode == 1
    assert "resume=true" in refused.stderr
    run_ok(
        tune_run,
        "multimodal_fuse",
        "--config",
        file,
        f"output_dir={out}",
        "resume=true",
        cwd=stages,
    )
    assert losses(out) == losses(stages / "C")
    one, two = (load_file(d / "step_6" / "projector.safetensors") for d in (stages / "C", out))
    assert all((one[k] == two[k]).all() for k in one)


KILL_GROUP = '''
import os
import signal


class KillGroup:
    """A metric logger that sends SIGTERM to its process and that one's children, as Slurm does."""

    def __init__(self):
        os.setpgrp()

    def log_dict(self, payload, step):
        if step == 2:
            os.killpg(0, signal.SIGTERM)

    def close(self):
        pass
'''


def test_sigterm_to_the_process_group_ends_in_a_checkpoint(stages, tune_run):
    (stages / "kill_group.py").write_text(KILL_GROUP)
    out = stages / "A-stopped"
    words = [f"output_dir={out}", "num_workers=1", "max_steps=30", "eval_every_n_steps=2"]
    done = tune_run(
        "projector",
        "--config",
        stages / "projector.yaml",
        "metric_logger._component_=kill_group.KillGroup",
        *words,
        cwd=stages,
        path=(ROOT, ROOT / "recipes", stages),
    )
    assert done.returncode == 143, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    step = len(losses(out))
    assert step >= 2
    assert [p.name for p in out.glob("step_*")] == [f"step_{step}"]
    assert not (out / "evaluations.jsonl").exists()  # no time for that


def test_a_projector_of_another_size_is_refused(stages, tune_run):
    done = tune_run(
        "projector",
        "--config",
        stages / "projector.yaml",
        "projector.out_dim=16",
        f"output_dir={stages / 'X'}",
        cwd=stages,
    )
    assert done.returncode == 1
    assert "projector.out_dim" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (stages / "X").exists()
