"""Stage 2 of SpeechMapper: steps under sigma, resume, processes, and what is refused."""

import functools

import pytest
import yaml
from safetensors.torch import load_file
from tiny_world import make_data, make_llm, write_config

from torchtune_speech.files import read_json, read_jsonl
from torchtune_speech.models import load_embedding_table

PAD = "<|reserved_special_token_1|>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    changes = {"sigma": 0.5, "pad_token": PAD, "normalizer": "basic", "eval_dataset": None}
    file = write_config(folder, "projector", output_dir=str(folder / "S"), **changes)
    cfg = yaml.safe_load(file.read_text())
    cfg["dataset"]["on_too_long"] = "skip"
    file.write_text(yaml.safe_dump(cfg))
    return folder


@pytest.fixture(scope="module")
def stage_2(run, world):
    """A function that runs stage 2, with words for its command line; gives its exit code."""
    return functools.partial(run, "projector", "--config", world / "projector.yaml")


@pytest.fixture(scope="module")
def trained(world, stage_2):
    """Six steps of stage 2."""
    assert stage_2() == 0
    return world


def losses(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    return [row[name] for row in rows for name in ("loss", "loss_ce", "loss_nmse")]


def weights(folder):
    return load_file(folder / "step_6" / "projector.safetensors")


def test_each_step_tells_both_parts(trained, stage_2):
    rows = read_jsonl(trained / "S" / "metrics.jsonl")
    assert len(rows) == 6
    for row in rows:
        expected = 0.5 * row["loss_ce"] + 0.5 * row["loss_nmse"]
        assert row["loss"] == pytest.approx(expected, rel=1e-6)
        assert row["loss_nmse"] > 0 and row["ctc_loss"] > 0
    out = trained / "plain"
    assert stage_2(f"output_dir={out}", "sigma=0", "pad_token=null", "normalizer=null") == 0
    assert not any("loss_nmse" in row for row in read_jsonl(out / "metrics.jsonl"))


def test_the_error_is_told_in_units_of_the_embeddings(trained, stage_2):
    """Zero vectors have an error near 1, as vectors of the table have on average."""
    out = trained / "zero"
    assert stage_2(f"output_dir={out}", "projector.output_scale=0", "max_steps=1") == 0
    (row,) = read_jsonl(out / "metrics.jsonl")
    square = load_embedding_table(trained / "llm").square().mean().item()
    assert square < 0.2  # so that the error without a unit would be far from 1
    assert row["loss_nmse"] == pytest.approx(1, rel=0.5)


def test_masks_reach_the_projector(trained, stage_2):
    out = trained / "masked"
    masks = "spec_augment={time_masks: 1, time_width: 4, freq_masks: 1, freq_width: 3}"
    assert stage_2(f"output_dir={out}", masks, "max_steps=1") == 0
    assert losses(out) != losses(trained / "S")[:3]


def test_two_processes_take_the_steps_of_one(trained, tune_run):
    out = trained / "two"
    words = ["--config", trained / "projector.yaml", f"output_dir={out}"]
    words += ["gradient_accumulation_steps=2"]
    done = tune_run("--nproc_per_node", 2, "projector", *words, cwd=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(out) == pytest.approx(losses(trained / "S"), rel=1e-4)
    one, two = weights(trained / "S"), weights(out)
    assert all((one[k] - two[k]).abs().max() < 1e-4 for k in one)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(trained, stage_2):
    out = trained / "stopped"
    assert stage_2(f"output_dir={out}", stop_after=3) == 143
    assert stage_2(f"output_dir={out}", "resume=true") == 0
    assert losses(out) == losses(trained / "S")
    one, two = weights(trained / "S"), weights(out)
    assert all((one[k] == two[k]).all() for k in one)


def samples_of_dry_run(stage_2, capsys, *words):
    """Number of samples that a dry run tells of."""
    capsys.readouterr()
    assert stage_2("dry_run=true", "output_dir=nowhere", *words) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if " samples, " in x]
    return int(line.split()[0])


def test_dry_run_tells_of_the_samples_that_fit(world, stage_2, capsys):
    fewer = samples_of_dry_run(stage_2, capsys)
    assert samples_of_dry_run(stage_2, capsys, "sigma=0") == fewer
    whole = samples_of_dry_run(stage_2, capsys, "sigma=0", "pad_token=null", "normalizer=null")
    assert 0 < fewer < whole


def test_the_data_does_not_depend_on_sigma(trained, stage_2):
    out = trained / "sigma-0"
    assert stage_2(f"output_dir={out}", "sigma=0") == 0
    one, two = (read_json(d / "step_6" / "stage.json") for d in (trained / "S", out))
    assert one["fingerprints"] == two["fingerprints"]
    assert not any("loss_nmse" in row for row in read_jsonl(out / "metrics.jsonl"))
