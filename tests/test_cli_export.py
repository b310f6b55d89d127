"""`torchtune-speech export`: a checkpoint's LoRA merged into the LLM, as a folder of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tiny_world import make_llm
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from torchtune_speech import training
from torchtune_speech.cli import main
from torchtune_speech.models import (
    lora_speech_llama3_1_from_hf,
    peft_config,
    read_hf_config,
    to_peft,
)
from torchtune_speech.nano._llm import nano_llama_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An LLM, and runs `B` (LoRA, two checkpoints) and `A` (no LoRA)."""
    folder = tmp_path_factory.mktemp("world")
    llm = make_llm(folder / "llm")
    model = lora_speech_llama3_1_from_hf(str(llm), lora_rank=4, lora_alpha=16)
    fingerprints = {"llm": training.llm_fingerprint(llm), "store": None, "data": ""}
    for step in (2, 10):
        step_dir = folder / "B" / f"step_{step}"
        step_dir.mkdir(parents=True)
        torch.manual_seed(step)
        adapter = {
            name.removeprefix("decoder."): torch.randn(p.shape) * 0.1
            for name, p in model.state_dict().items()
            if ".lora_" in name
        }
        save_file(to_peft(adapter, read_hf_config(llm)), step_dir / "adapter_model.safetensors")
        peft = peft_config(**training.lora_settings(model), base=str(llm))
        (step_dir / "adapter_config.json").write_text(json.dumps(peft))
        stage = {"format": 1, "step": step, "fingerprints": fingerprints}
        (step_dir / "stage.json").write_text(json.dumps(stage))
    (folder / "A" / "step_1").mkdir(parents=True)
    shutil.copy(folder / "B" / "step_2" / "stage.json", folder / "A" / "step_1")
    return folder


def export(capsys, llm, adapter, out):
    capsys.readouterr()  # what transformers says
    words = ["export", "--llm", str(llm), "--adapter", str(adapter), "--out", str(out)]
    try:
        code = main(words)
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def merged_weight(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.model.layers[1].self_attn.q_proj.weight


def test_run_checkpoint_and_peft_folder_give_the_merged_model(world, tmp_path, capsys):
    plain = tmp_path / "adapter"
    plain.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(world / "B" / "step_2" / name, plain)
    weights = {}
    for name, adapter in {
        "newest": world / "B",
        "named": world / "B" / "step_2",
        "peft": plain,
    }.items():
        code, out, err = export(capsys, world / "llm", adapter, tmp_path / name)
        assert (code, err) == (0, ""), err
        assert str(tmp_path / name) in out
        weights[name] = merged_weight(tmp_path / name)
        files = {p.name for p in (tmp_path / name).iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer.model", "model.safetensors"} <= files
    assert torch.equal(weights["named"], weights["peft"])
    base = merged_weight(world / "llm")
    assert (weights["named"] - base).abs().max() > 0.01
    assert (weights["named"] - weights["newest"]).abs().max() > 0.01
    lora = training.load_trained(adapter=world / "B", llm_dir=world / "llm")
    a, b = (lora[f"decoder.layers.1.attn.v_proj.lora_{x}.weight"] for x in "ab")
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).model.layers[1].self_attn
        for path in (world / "llm", tmp_path / "newest")
    ]
    update = models[1].v_proj.weight - models[0].v_proj.weight
    assert torch.allclose(update, 16 / 4 * b @ a, atol=1e-5)


@pytest.mark.parametrize(
    ("llm", "adapter", "message"),
    [
        ("nowhere", "B", "nowhere: no config.json there"),
        ("llm", "nowhere", "nowhere: no checkpoint there"),
        ("llm", "A", "step_1: no adapter_config.json"),
        ("other", "B", "trained with the LLM 'llm', this run uses 'other'"),
        ("other", "plain", "does not fit"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    world, tmp_path, capsys, llm, adapter, message
):
    if llm == "other":
        other = nano_llama_config(256, hidden_size=64, num_hidden_layers=2)
        LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    if adapter == "plain":
        shutil.copytree(world / "B" / "step_2", tmp_path / "plain")
        (tmp_path / "plain" / "stage.json").unlink()
    llm, adapter = (
        (p if (p := tmp_path / name).exists() else world / name) for name in (llm, adapter)
    )
    before = sorted(tmp_path.iterdir())
    code, out, err = export(capsys, llm, adapter, tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_folder_is_kept(world, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = export(capsys, world / "llm", world / "B", tmp_path)
    assert code == 1 and err == f"error: {tmp_path}: exists; name a new folder\n"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_read_only_files_of_the_llm_are_copied(world, capsys, tmp_path):
    llm = shutil.copytree(world / "llm", tmp_path / "llm")
    (llm / "config.json").chmod(0o444)
    code, _, _ = export(capsys, llm, world / "B", tmp_path / "out")
    assert code == 0
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o200


def test_an_adapter_with_other_scaling_is_refused(world, capsys, tmp_path):
    adapter = shutil.copytree(world / "B" / "step_2", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    code, _, err = export(capsys, world / "llm", adapter, tmp_path / "out")
    assert code == 1
    assert "adapter_config.json: use_rslora cannot be expressed" in err
    assert not (tmp_path / "out").exists()
