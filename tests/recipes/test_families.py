"""The recipes with an LLM of another family: all stages, answers, and the merged export."""

import json

import pytest
import torch
from tiny_world import DIM, FRAME_DIM, make_chat, make_data, make_llm, write_config
from transformers import AutoModelForCausalLM

from torchtune_speech.cli import main
from torchtune_speech.data import KeptPositions
from torchtune_speech.files import read_jsonl

PAD = "<|vision_start|>"
STAGES = [
    ("projector", "A", {"quantize": "nf4"}),
    ("lora_finetune_text", "B", {"activation_checkpointing": True}),
    ("multimodal_fuse", "C", {}),
]
MAPPER = {
    "_component_": "torchtune_speech.models.speechmapper_projector",
    "in_dim": FRAME_DIM,
    "out_dim": DIM,
    "block_dims": [16, 32],
    "kernel_sizes": 3,
    "strides": 1,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dims": 32,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, run):
    """A Qwen3 with stages A, B and C of two steps each."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm", family="qwen3")
    make_data(folder / "data")
    for recipe, name, changes in STAGES:
        if name == "C":
            changes = {"projector_checkpoint": str(folder / "A")}
            changes |= {"adapter_checkpoint": str(folder / "B")}
        fixed = {"output_dir": str(folder / name), "max_steps": 2, "num_workers": 0}
        assert run(recipe, "--config", write_config(folder, recipe, **fixed, **changes)) == 0
    return folder


@pytest.fixture(scope="module")
def mapped(world, run):
    """Stage 1 of SpeechMapper until it finds pads, what it keeps, and two steps of stage 2."""
    targets = {"pad_token": PAD, "normalizer": "basic"}
    targets["projector"] = MAPPER | {"ctc_vocab_size": make_chat(world / "llm").vocab_size + 1}
    fixed = {"output_dir": str(world / "M"), "max_steps": 100, "num_workers": 0}
    file = write_config(world, "speechmapper", **fixed, **targets)
    rate = ["learning_rate.projector.lr=1e-2", "learning_rate.projector.warmup_steps=10"]
    assert run("speechmapper", "--config", file, *rate) == 0
    words = ["--checkpoint", world / "M", "--features", world / "data" / "features"]
    words += ["--output", world / "kept.parquet"]
    assert main(["keep", *map(str, words)]) == 0
    fixed = {"output_dir": str(world / "S"), "max_steps": 2, "sigma": 0.5}
    fixed |= {"eval_dataset": None, "projector_checkpoint": str(world / "M")}
    file = write_config(world, "projector", **fixed, **targets)
    words = ["dataset.on_too_long=skip", f"dataset.kept={world / 'kept.parquet'}"]
    assert run("projector", "--config", file, *words) == 0
    return world


def test_the_stages_train(world):
    for _, name, _ in STAGES:
        rows = read_jsonl(world / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2]
        assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows)


def test_answers_hold_no_special_token(world, run_recipe):
    config = write_config(world, "speech_generate", checkpoint=str(world / "C"))
    output = world / "predictions.jsonl"
    words = [f"output={output}", "max_new_tokens=8", "projector_checkpoint=null"]
    code, _, err = run_recipe("speech_generate", "--config", config, *words)
    assert code == 0, err
    rows = read_jsonl(output)
    assert len(rows) == 40 and len({row["prediction"] for row in rows}) > 5
    assert not any("<|" in row["prediction"] for row in rows)


def test_stage_1_finds_words_and_pads(mapped):
    rows = read_jsonl(mapped / "M" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(1, 101)]
    assert rows[-1]["loss_contrast"] < 0.3 * rows[0]["loss_contrast"]
    (evaluation,) = read_jsonl(mapped / "M" / "evaluations.jsonl")  # of what it was trained on
    assert evaluation["report"]["nearest_token"]["wer"] < 0.1
    kept = KeptPositions(mapped / "kept.parquet")
    assert kept.fingerprint["pad_token"] == make_chat(mapped / "llm").special_tokens[PAD]
    # Of the sentences that fit, tokens of the transcript and vectors.
    for key, words, vectors in (("2.wav", 7, 11), ("6.wav", 11, 23)):
        assert kept.positions(key, vectors).tolist() == [*range(words)]


def test_stage_2_is_held_to_the_words(mapped):
    for row in read_jsonl(mapped / "S" / "metrics.jsonl"):
        expected = 0.5 * row["loss_ce"] + 0.5 * row["loss_nmse"]
        assert row["loss"] == pytest.approx(expected, rel=1e-6)
        assert 0 < row["loss_nmse"] < 0.5 < row["loss_ce"]  # the words are known from stage 1


def test_the_llm_may_read_the_nearest_tokens(mapped, run_recipe):
    """In a batch or alone; the vectors themselves give other answers."""
    targets = {"projector": MAPPER | {"ctc_vocab_size": make_chat(mapped / "llm").vocab_size + 1}}
    stages = {"projector_checkpoint": str(mapped / "S"), "adapter_checkpoint": str(mapped / "B")}
    config = write_config(mapped, "speech_generate", checkpoint=None, **stages, **targets)
    answers = []
    for words in (["batch_size=40"], ["batch_size=1"], ["nearest_tokens=false"]):
        output = mapped / f"{words[0]}.jsonl"
        words = [f"output={output}", "max_new_tokens=8", "nearest_tokens=true", *words]
        words += [f"dataset.kept={mapped / 'kept.parquet'}"]
        code, _, err = run_recipe("speech_generate", "--config", config, *words)
        assert code == 0, err
        answers.append({row["id"]: row["prediction"] for row in read_jsonl(output)})
    assert answers[0] == answers[1] != answers[2]
    assert not any("<|" in text for text in answers[0].values())


def test_the_merged_folder_is_a_qwen3(world, capsys):
    words = ["--llm", str(world / "llm"), "--adapter", str(world / "C")]
    assert main(["export", *words, "--out", str(world / "merged")]) == 0, capsys.readouterr().err
    config = json.loads((world / "merged" / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    before, after = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32).model.layers[0]
        for name in ("llm", "merged")
    )
    assert torch.equal(before.self_attn.q_norm.weight, after.self_attn.q_norm.weight)
    assert not torch.equal(before.self_attn.q_proj.weight, after.self_attn.q_proj.weight)


def test_the_tokenizer_of_another_family_is_one_line(world, run_recipe):
    config = write_config(world, "projector", output_dir=str(world / "no"))
    words = ["tokenizer.path=" + str(world / "data")]
    code, out, err = run_recipe("projector", "--config", config, *words)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and "no tokenizer_config.json there" in err
    assert err.count("\n") == 1
