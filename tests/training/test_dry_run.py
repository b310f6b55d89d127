"""Dry runs: exact counts, no weights, no files, on any machine."""

import re
import resource

import pytest
import torch
from omegaconf import OmegaConf
from tiny_world import make_data, make_llm, make_tokenizer, write_config

from torchtune_speech import config, training
from torchtune_speech.errors import InputError
from torchtune_speech.training import _dry_run

TRAINED = {
    "projector": ("projector",),
    "lora_finetune_text": ("lora",),
    "multimodal_fuse": ("projector", "lora"),
}


# Parameters of the LLM and of LoRA, r (in + out) for q, k, v, o and the three matrices of the
# feed-forward network in each layer; GiB of frozen weights.
REAL = {
    "llama3_1_8b": (
        8_030_261_248,
        32 * 8 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)),
        "14.96",
    ),
    "qwen3_4b": (
        4_022_468_096,
        36 * 8 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728)),
        "7.49",
    ),
}
# Of SeamlessM4T-v2's 50 a second, as each family's extract_features averages them.
RATES = {"llama3_1_8b": "16.7", "qwen3_4b": "25"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


def numbers(text):
    """Parameter counts of a report, by part."""
    block = text.split("parameters\n")[1].split("\n\n")[0]
    rows = (re.match(r"  (\w+) +([\d,]+)  \S", line) for line in block.splitlines())
    return {row[1]: int(row[2].replace(",", "")) for row in rows}


def step_table(text):
    """The cells of the report's table of steps, without its head."""
    lines = text.split("steps of the plan\n")[1].splitlines()[2:]
    return [re.split(r" {2,}", line.strip()) for line in lines]


@pytest.mark.parametrize("recipe", TRAINED)
@pytest.mark.parametrize("family", REAL)
def test_real_sizes_without_any_file(family, recipe, run_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, (llm, lora, frozen) = f"{family}/{recipe}", REAL[family]
    words = ["llm_dir=nowhere", "output_dir=out", "dry_run=true"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, _ = run_recipe(recipe, "--config", name, *words)
    assert code == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB
    assert list(tmp_path.iterdir()) == []
    counts = numbers(out)
    assert counts["llm"] == llm
    assert counts["lora"] == ("lora" in TRAINED[recipe]) * lora
    assert (counts["projector"] > 40e6) == ("projector" in TRAINED[recipe])
    assert counts["trainable"] == sum(counts[part] for part in TRAINED[recipe])
    assert re.search(rf"frozen weights +{frozen} GiB +{frozen} GiB +bf16\n", out)
    notes = [line for line in out.splitlines() if "SYNTHETIC" in line]
    assert len(notes) == 1 and "data/europarl_st/train.jsonl" in notes[0]
    rate = "" if recipe == "lora_finetune_text" else f" ({RATES[family]} frames a second)"
    assert f"SYNTHETIC lengths{rate}, since" in notes[0]
    rows = step_table(out)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    # Twins stand in the rows of their speech, which is longer than its text; one step of a block
    # has what the others left.
    short = [row for row in rows if float(row[5].rstrip("%")) < (75 if "twins" in row[1] else 90)]
    assert len(short) <= 1
    if recipe == "multimodal_fuse":
        sources = [row[1] for row in rows]
        assert sources[sources.index("st/de") + 1] == "st/de (text twins)"


@pytest.mark.parametrize("recipe", TRAINED)
def test_steps_are_those_of_the_run_when_the_data_is_there(world, recipe):
    cfg = OmegaConf.load(write_config(world, recipe, seed=3))
    text = training.dry_run_report(cfg, TRAINED[recipe], steps=5)
    projector = config.instantiate(cfg.get("projector"))
    dataset = config.instantiate(
        cfg.dataset,
        tokenizer=make_tokenizer(world / "llm"),
        max_seq_len=cfg.max_seq_len,
        **({"output_length": projector.output_length} if projector else {}),
    )
    plan = training.build_plan(
        dataset,
        max_seq_len=cfg.max_seq_len,
        rows_per_step=cfg.rows_per_step,
        mixture=cfg.mixture,
        paired=cfg.get("paired", False),
        seed=3,
    )
    for number, source, rows, samples, tokens, _ in step_table(text):
        step = next(plan)
        assert int(number) == step.number + 1
        assert source.split(" ")[0] == step.source
        assert source.endswith("(text twins)") == step.is_twin
        assert (int(rows), int(samples)) == (len(step.rows), len(step.samples))
        lengths = plan.twin_lengths if step.is_twin else dataset.lengths
        assert int(tokens.replace(",", "")) == lengths[step.samples].sum()
    assert f"{len(dataset):,} samples, {dataset.lengths.sum():,} tokens" in text
    assert "SYNTHETIC" not in text and "first 5 of 6 steps" in text


def test_bad_data_that_is_there_is_an_error(world, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "task": "asr", "audio": "0.wav"}\n')
    cfg = OmegaConf.load(write_config(world, "projector"))
    cfg.dataset.manifest = str(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match="bad.jsonl:1: field 'target' is missing"):
        training.dry_run_report(cfg, TRAINED["projector"])
    cfg.dataset.manifest = [cfg.dataset.manifest, str(tmp_path / "other.jsonl")]
    assert "not there: " + str(tmp_path / "other.jsonl") + "\n" in training.dry_run_report(
        cfg, TRAINED["projector"]
    )


def test_wrong_settings_are_errors_although_nothing_is_loaded(world):
    good = OmegaConf.load(write_config(world, "projector"))
    for words, message in [
        ("projector.out_dim=16", "projector.out_dim: 16"),
        ("projector.num_layer=2", "did you mean 'num_layers'"),
        ("learning_rate.projector.shedule=cosine", "learning_rate.projector"),
        ("learning_rate.lora.lr=1", "learning_rate: needs one entry each"),
        ("epochs=1", "max_steps, epochs: give one of the two"),
        ("dtype=fp8", "dtype: 'fp8' is unknown"),
        ("rows_per_step=0", "rows_per_step: 0"),
        ("projector.in_dim=20", "projector.in_dim: 20, but the frames of"),
    ]:
        cfg = OmegaConf.merge(good, OmegaConf.from_dotlist([words]))
        with pytest.raises(InputError, match=message):
            training.dry_run_report(cfg, TRAINED["projector"])


def test_rows_that_the_run_refuses_are_refused(world):
    for recipe, words, message in [
        ("projector", ["dataset.tasks=[asr,mt]"], "dataset: sample 0-mt has no speech"),
        ("lora_finetune_text", ["dataset.text_twins=false"], "has speech, and this recipe trains"),
        (
            "projector",
            ["pad_token=99999", "normalizer=basic", "dataset.on_too_long=skip"],
            "pad_token: 99999 is token 99999, but the table of",
        ),
    ]:
        features = str(world / "data" / "features")
        good = OmegaConf.load(write_config(world, recipe))
        cfg = OmegaConf.merge(
            good, {"dataset": {"features": features}}, OmegaConf.from_dotlist(words)
        )
        with pytest.raises(InputError, match=message):
            training.dry_run_report(cfg, TRAINED[recipe])
    mixed = OmegaConf.load(write_config(world, "multimodal_fuse", mixture=None))
    mixed.dataset.tasks = ["asr", "mt"]  # LoRA learns from text, too
    assert "16 samples" in training.dry_run_report(mixed, TRAINED["multimodal_fuse"])


def test_a_ctc_loss_without_a_head_is_refused_without_data(world):
    for recipe in ("projector", "multimodal_fuse"):
        cfg = OmegaConf.load(write_config(world, recipe, ctc_weight=0.3))
        cfg.dataset.manifest, cfg.projector.ctc_vocab_size = "nowhere", None
        with pytest.raises(InputError, match="projector.ctc_vocab_size: null, but the CTC loss"):
            training.dry_run_report(cfg, TRAINED[recipe])


def test_frames_of_a_store_that_is_not_there(world):
    cfg = OmegaConf.load(write_config(world, "projector"))
    for dataset, rate in [
        ({"features": "runs/an4/features"}, 50),
        ({"features": "elsewhere"}, 50 / 3),
        ({"features": "elsewhere", "frame_average": 5}, 10),
    ]:
        cfg.dataset |= dataset
        assert _dry_run.frame_rate(cfg) == rate


def test_processes_share_the_memory_and_the_first_one_prints(world, monkeypatch, capsys):
    cfg = OmegaConf.load(write_config(world, "projector", rows_per_step=8))
    alone, shared = (training.dry_run_report(cfg, ("projector",), world_size=n) for n in (1, 8))
    assert "8 x 160 tokens at a time" in alone and "1 x 160 tokens at a time" in shared
    assert "memory of one process of 8" in shared
    assert "gathered for use" in shared and "gathered for use" not in alone
    assert numbers(alone) == numbers(shared) and step_table(alone) == step_table(shared)
    monkeypatch.setenv("WORLD_SIZE", "8")
    for rank in "70":
        monkeypatch.setenv("RANK", rank)
        training.dry_run(cfg, ("projector",))
    assert capsys.readouterr().out == shared + "\n"
