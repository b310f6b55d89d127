"""The recipes with an LLM of another family: all three stages, answers, and the merged export."""

import json
import sys

import pytest
import torch
from tiny_world import make_data, make_llm, write_config
from transformers import AutoModelForCausalLM

from torchtune_speech.cli import main
from torchtune_speech.files import read_jsonl

STAGES = [
    ("projector", "A", {"quantize": "nf4"}),
    ("lora_finetune_text", "B", {"activation_checkpointing": True}),
    ("multimodal_fuse", "C", {}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, recipe_module):
    """A Qwen3 with stages A, B and C of two steps each."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm", family="qwen3")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        for recipe, name, changes in STAGES:
            if name == "C":
                changes = {"projector_checkpoint": str(folder / "A")}
                changes |= {"adapter_checkpoint": str(folder / "B")}
            fixed = {"output_dir": str(folder / name), "max_steps": 2, "num_workers": 0}
            file = write_config(folder, recipe, **fixed, **changes)
            patch.setattr(sys, "argv", [recipe, "--config", str(file)])
            with pytest.raises(SystemExit) as stop:
                recipe_module(recipe).recipe_main()
            assert not stop.value.code
    return folder


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
