import inspect
import json

import pytest
import torch
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3_1 import llama3_1
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from torchtune_speech.errors import InputError
from torchtune_speech.nano import __main__ as command_line
from torchtune_speech.nano import _world as world_module
from torchtune_speech.nano import build_world
from torchtune_speech.nano._llm import encode_row, load_tokenizer, nano_llama_config, pretrain_llm

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
SETTINGS = {"steps": 5, "batch_size": 8, "warmup_steps": 2, **TINY}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("nano") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "write_speech", lambda jobs, **_: 0.0)
        build_world(out_dir, num_train=0, num_dev=0, num_test=0, num_text=0, num_lm=60)
    return out_dir


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("llm") / "llm"
    pretrain_llm(data, out_dir, **SETTINGS)
    return out_dir


def test_folder_loads_in_transformers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size
    assert set(model.generation_config.eos_token_id) == {
        tokenizer.convert_tokens_to_ids(name)
        for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    }
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "The doctor waits."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**chat, max_new_tokens=3)
    assert answer.shape[1] > chat["input_ids"].shape[1]


def test_folder_is_a_llama_3_1(folder):
    """torchtune's own Llama-3.1 with these weights gives the same logits."""
    hf = AutoModelForCausalLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tune = llama3_1(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        embed_dim=config["hidden_size"],
        max_seq_len=256,
        intermediate_dim=config["intermediate_size"],
        norm_eps=config["rms_norm_eps"],
        rope_base=config["rope_parameters"]["rope_theta"],
    )
    weights = hf_to_tune(
        hf.state_dict(), num_heads=heads, num_kv_heads=kv_heads, dim=config["hidden_size"]
    )
    tune.load_state_dict(weights)
    tokens = torch.randint(config["vocab_size"], (2, 20), generator=torch.manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tune(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)


def test_pretraining_learns(data, tmp_path):
    summary = pretrain_llm(data, tmp_path / "llm", steps=60, batch_size=16, warmup_steps=5, **TINY)
    assert summary["loss"] < 7.0 < torch.tensor(3000.0).log()
    assert summary == json.loads((tmp_path / "llm" / "nano.json").read_text())


def test_same_seed_same_weights(data, folder, tmp_path):
    pretrain_llm(data, tmp_path / "llm", steps=5, batch_size=8, warmup_steps=2, **TINY)
    first, second = (path / "model.safetensors" for path in (folder, tmp_path / "llm"))
    assert first.read_bytes() == second.read_bytes()


def test_rows_in_the_chat_format(folder):
    tokenizer = load_tokenizer(folder)
    turns = [("Two.\nGerman:", "Zwei."), ("Italian:", "Due.")]
    tokens, labels = encode_row({"turns": turns}, tokenizer)
    learnt = [at for at, label in enumerate(labels) if label != -100]
    expected = []
    for _, answer in turns:
        expected += [*tokenizer.encode(answer, add_bos=False, add_eos=False), tokenizer.eot_id]
    assert [labels[at] for at in learnt] == expected
    # Every label is the token that comes next.
    assert [tokens[at + 1] for at in learnt[:-1]] == expected[:-1]
    messages = []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, return_dict=False)
    assert chat == [*tokens, tokenizer.eot_id]


def test_running_text_is_learnt_whole(folder):
    tokenizer = load_tokenizer(folder)
    tokens, labels = encode_row({"turns": [("", "Zwei.")]}, tokenizer)
    assert labels == [*tokens[1:], tokenizer.eos_id]
    assert tokens[0] == tokenizer.bos_id


def test_size_of_the_demo():
    config = nano_llama_config(3000)
    assert config.num_key_value_heads < config.num_attention_heads
    assert not nano_llama_config(3000, tie_word_embeddings=False).tie_word_embeddings
    model = LlamaForCausalLM(config)
    assert 1.5e6 < model.num_parameters() < 3e6


def test_built_once(data, folder, tmp_path):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert pretrain_llm(data, folder, **SETTINGS)["steps"] == 5
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="there already, made with seed 0; remove it or name"):
        pretrain_llm(data, folder, **SETTINGS, seed=1)
    with pytest.raises(InputError, match="made with batch_size 8, changes {'hidden_size': 32"):
        pretrain_llm(data, folder, steps=5, batch_size=4, warmup_steps=2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "lm_text.jsonl").write_text((data / "lm_text.jsonl").read_text() + "\n")
    with pytest.raises(InputError, match="made with another lm_text.jsonl"):
        pretrain_llm(other, folder, **SETTINGS)
    with pytest.raises(InputError, match="lm_text.jsonl: not there"):
        pretrain_llm(tmp_path / "nowhere", tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_command_line_shows_the_true_defaults(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "torchtune_speech.nano._llm.pretrain_llm", lambda *_, **settings: given.update(settings)
    )
    assert command_line.main(["llm", "--data", "a", "--out", "b"]) == 0
    parameters = inspect.signature(pretrain_llm).parameters
    assert given == {name: parameters[name].default for name in given}
