"""Stage 1 without the LLM: steps, resume, processes, float16, and what stage A makes of it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import PROJECTOR, make_data, make_llm, write_config

from torchtune_speech import training
from torchtune_speech.files import read_json, read_jsonl

ALL_PARTS = {
    "squared_error": 0.5,
    "pad_squared_error": 0.5,
    "absolute": 1.0,
    "cosine": 1.0,
    "contrast": 0.5,
    "ctc": 0.3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    write_config(
        folder, "speechmapper", output_dir=str(folder / "M"), loss=ALL_PARTS, normalizer="basic"
    )
    return folder


@pytest.fixture(scope="module")
def mapped(world, run):
    """Six steps of stage 1."""
    assert run("speechmapper", "--config", world / "speechmapper.yaml") == 0
    return world


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]


def weights(folder):
    return load_file(folder / "projector.safetensors")


def test_each_step_tells_every_part(mapped):
    rows = read_jsonl(mapped / "M" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        total = sum(weight * row[f"loss_{name}"] for name, weight in ALL_PARTS.items())
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert row["frames"] == row["vectors"] > row["tokens"] > 0
        assert row["grad_norm"] > 0 and row["frames_per_second"] > 0
        assert "loss_scale" not in row


def test_the_checkpoint_has_the_files_of_stage_a(mapped):
    folder = mapped / "M" / "step_6"
    assert {p.name for p in folder.iterdir()} == {"projector.safetensors", "stage.json", "state"}
    assert {p.name for p in (folder / "state").iterdir()} == {"optimizer.safetensors", "plan.json"}
    stage = read_json(folder / "stage.json")
    assert stage["stage"] == "speechmapper"
    assert set(stage["fingerprints"]["llm"]) == {"name", "embeddings"}
    assert {"nearest_token", "ctc", "n"} == set(stage["metrics"])
    assert not any("table" in name for name in weights(folder))


def test_the_loss_falls_and_the_words_come_out(mapped, run):
    out = mapped / "long"
    words = ["--config", mapped / "speechmapper.yaml", f"output_dir={out}", "max_steps=250"]
    words += ["learning_rate.projector.lr=1e-2", "learning_rate.projector.warmup_steps=10"]
    words += ["eval_every_n_steps=250", "projector.embed_dim=32"]
    assert run("speechmapper", *words) == 0
    found = losses(out)
    assert sum(found[-5:]) < 0.3 * sum(found[:5])
    (row,) = read_jsonl(out / "evaluations.jsonl")  # of the training data, which is all there is
    scores = row["report"]["nearest_token"]
    assert scores["wer"] < 0.1 and scores["normalizer"] == "basic"
    assert scores["word_cosine"] > 0.8 and scores["pads_found"] > 0.9
    assert row["examples"][0]["target"].islower()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(mapped, run, capsys, num_workers):
    noise = ["projector.dropout=0.1", f"num_workers={num_workers}"]
    noise += ["spec_augment={time_masks: 1, time_width: 4, freq_masks: 1, freq_width: 3}"]
    words = ["speechmapper", "--config", mapped / "speechmapper.yaml", *noise]
    whole, out = mapped / f"whole-{num_workers}", mapped / f"stopped-{num_workers}"
    assert run(*words, f"output_dir={whole}") == 0
    assert run(*words, f"output_dir={out}", stop_after=3) == 143
    assert losses(out) == losses(whole)[:3]
    capsys.readouterr()
    assert run(*words, f"output_dir={out}") == 1
    assert "resume=true" in capsys.readouterr().err
    assert run(*words, f"output_dir={out}", "max_frames=70", "resume=true") == 1
    assert "max_frames was 60 and is 70" in capsys.readouterr().err
    assert run(*words, f"output_dir={out}", "resume=true") == 0
    assert losses(out) == losses(whole)
    for name in ("projector.safetensors", "state/optimizer.safetensors"):
        one, two = (load_file(d / "step_6" / name) for d in (whole, out))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_stopped_at_its_last_step_a_run_is_evaluated_when_it_goes_on(mapped, run):
    out = mapped / "stopped-last"
    words = ["speechmapper", "--config", mapped / "speechmapper.yaml", f"output_dir={out}"]
    assert run(*words, stop_after=6) == 143
    stage, whole = (d / "step_6" / "stage.json" for d in (out, mapped / "M"))
    assert read_json(stage)["evaluation_due"] and not read_json(stage)["metrics"]
    assert not (out / "evaluations.jsonl").exists()
    assert run(*words, "resume=true") == 0
    one, two = (read_jsonl(d / "evaluations.jsonl") for d in (out, mapped / "M"))
    assert one == two and len(one) == 1
    assert read_json(stage)["metrics"] == read_json(whole)["metrics"] == one[0]["report"]
    assert not read_json(stage)["evaluation_due"]


def test_an_evaluation_that_fails_loses_no_step(mapped, run, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no room for the table")

    out = mapped / "evaluation-fails"
    words = ["speechmapper", "--config", mapped / "speechmapper.yaml", f"output_dir={out}"]
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="no room for the"):
        broken.setattr(training, "evaluate_embeddings", fail)
        run(*words)
    assert read_json(out / "step_6" / "stage.json")["evaluation_due"]
    assert run(*words, "resume=true") == 0
    assert read_json(out / "step_6" / "stage.json")["metrics"]


def test_masks_reach_the_projector(mapped, run):
    out = mapped / "masked"
    words = [f"output_dir={out}", "max_steps=1", "eval_dataset=null"]
    words += ["spec_augment={time_masks: 1, time_width: 4, freq_masks: 1, freq_width: 3}"]
    assert run("speechmapper", "--config", mapped / "speechmapper.yaml", *words) == 0
    assert losses(out)[0] != losses(mapped / "M")[0]


def test_nothing_is_dropped_out_of_an_evaluation(mapped, run):
    """The same weights have the same scores, whatever dropout they are trained under."""
    out = mapped / "dropout"
    words = [f"output_dir={out}", f"projector_checkpoint={mapped / 'M'}", "max_steps=1"]
    words += ["learning_rate.projector.lr=0", "optimizer.weight_decay=0", "projector.dropout=0.5"]
    assert run("speechmapper", "--config", mapped / "speechmapper.yaml", *words) == 0
    before, after = (
        read_json(folder / "stage.json")["metrics"]
        for folder in (mapped / "M" / "step_6", out / "step_1")
    )
    assert before == after


def test_float16_resumes_with_its_scale(mapped, run):
    words = ["speechmapper", "--config", mapped / "speechmapper.yaml", "dtype=fp16"]
    whole, out = mapped / "half", mapped / "half-stopped"
    assert run(*words, f"output_dir={whole}") == 0
    rows = read_jsonl(whole / "metrics.jsonl")
    assert all(row["loss_scale"] > 0 for row in rows)
    assert losses(whole) == pytest.approx(losses(mapped / "M"), rel=0.05)
    assert losses(whole) != losses(mapped / "M")
    assert run(*words, f"output_dir={out}", stop_after=3) == 143
    # The scale and what is counted until it grows are the run's.
    saved = out / "step_3" / "state" / "scaler.json"
    state = read_json(saved)
    assert state["_growth_tracker"] == 3 and state["scale"] == rows[2]["loss_scale"]
    assert run(*words, f"output_dir={out}", "resume=true") == 0
    assert losses(out) == losses(whole)
    assert read_json(out / "step_6/state/scaler.json") == read_json(
        whole / "step_6/state/scaler.json"
    )


def test_two_processes_take_the_steps_of_one(mapped, tune_run):
    out = mapped / "two"
    words = ["--config", mapped / "speechmapper.yaml", f"output_dir={out}"]
    words += ["gradient_accumulation_steps=2"]
    done = tune_run("--nproc_per_node", 2, "speechmapper", *words, cwd=mapped)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(out) == pytest.approx(losses(mapped / "M"), rel=1e-4)
    one, two = weights(mapped / "M" / "step_6"), weights(out / "step_6")
    assert all((one[k] - two[k]).abs().max() < 1e-4 for k in one)


@pytest.mark.parametrize(("dtype", "max_frames"), [("fp32", 45), ("fp16", 200)])
def test_a_process_may_have_no_row(mapped, run, tune_run, dtype, max_frames):
    """The second of two has none in some steps, or in no step one at all, the first included."""
    one, two = (mapped / f"{dtype}-{n}" for n in ("alone", "with-idle"))
    words = ["--config", mapped / "speechmapper.yaml", f"dtype={dtype}", "eval_dataset=null"]
    words += [f"max_frames={max_frames}", "rows_per_step=2", "learning_rate.projector.lr=1e-2"]
    assert run("speechmapper", *words, f"output_dir={one}") == 0
    out = [f"output_dir={two}"]
    done = tune_run("--nproc_per_node", 2, "speechmapper", *words, *out, cwd=mapped)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, both = (read_jsonl(folder / "metrics.jsonl") for folder in (one, two))
    steps = [row["samples"] for row in alone]
    assert steps == ([4, 2] * 3 if dtype == "fp32" else [6] * 6)  # in two rows and one, or in one
    near = 1e-4 if dtype == "fp32" else 2e-3
    assert losses(two) == pytest.approx(losses(one), rel=near)
    assert [r.get("loss_scale") for r in both] == [r.get("loss_scale") for r in alone]
    first, second = weights(one / "step_6"), weights(two / "step_6")
    assert all((first[k] - second[k]).abs().max() < near for k in first)


def test_stage_a_begins_where_stage_1_ended(mapped, run):
    out = mapped / "A"
    file = write_config(mapped, "projector", output_dir=str(out), max_steps=1, eval_dataset=None)
    words = [f"projector_checkpoint={mapped / 'M'}", "normalizer=basic"]
    words += ["optimizer.weight_decay=0"]
    assert run("projector", "--config", file, *words, "learning_rate.projector.lr=0") == 0
    before, after = weights(mapped / "M" / "step_6"), weights(out / "step_1")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_an_llm_with_other_embeddings_is_refused(mapped, run, capsys):
    other = make_llm(mapped / "other", seed=1)
    file = write_config(mapped, "projector", output_dir=str(mapped / "X"), eval_dataset=None)
    words = [f"projector_checkpoint={mapped / 'M'}", "normalizer=basic", f"llm_dir={other}"]
    assert run("projector", "--config", file, *words) == 1
    assert "trained with the LLM 'llm', this run uses 'other'" in capsys.readouterr().err
    # One that differs elsewhere, as with LoRA merged in, has the same words.
    tensors = load_file(mapped / "llm" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name] + 1}, other / "model.safetensors")
    assert run("projector", "--config", file, *words, "max_steps=1") == 0


def test_it_may_begin_with_the_projector_of_another_run(mapped, run):
    out = mapped / "on"
    words = [f"output_dir={out}", f"projector_checkpoint={mapped / 'M'}", "max_steps=1"]
    words += ["learning_rate.projector.lr=0", "optimizer.weight_decay=0"]
    assert run("speechmapper", "--config", mapped / "speechmapper.yaml", *words) == 0
    before, after = weights(mapped / "M" / "step_6"), weights(out / "step_1")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_other_recipes_have_no_float16(mapped, run, capsys):
    file = write_config(mapped, "projector", output_dir=str(mapped / "Y"))
    assert run("projector", "--config", file, "dtype=fp16") == 1
    assert "dtype: 'fp16' is unknown; use fp32 or bf16" in capsys.readouterr().err


def test_dry_run_tells_of_real_data(mapped, run, capsys):
    words = ["--config", mapped / "speechmapper.yaml", "dry_run=true", f"output_dir={mapped / 'Z'}"]
    assert run("speechmapper", *words) == 0
    out = capsys.readouterr().out
    vocab = json.loads((mapped / "llm" / "config.json").read_text())["vocab_size"]
    for text in ("embedding table", f"{vocab} x 32".replace("1920", "1,920"), "6 samples, 111"):
        assert text in out
    assert not (mapped / "Z").exists()
    assert PROJECTOR["_component_"] in out
