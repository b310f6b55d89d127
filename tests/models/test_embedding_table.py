"""The embedding table alone: its values, and the files that are opened for it."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_world import DIM, make_llm
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    FAMILIES,
    Family,
    ProjectorWithTable,
    _hf_weights,
    embedding_digest,
    embedding_mean_square,
    load_embedding_table,
)

NAME = "model.embed_tokens.weight"


def make_qwen3(folder, tie):
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tie,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def in_shards(folder, out):
    """The same LLM in many small shards."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    model.save_pretrained(out, max_shard_size="4KB")
    assert len(list(out.glob("*.safetensors"))) > 3
    return out


@pytest.fixture
def opened(monkeypatch):
    """Names of the safetensors files that are opened."""
    names = set()

    def note(file, *args, **kinds):
        names.add(file.name)
        return safe_open(file, *args, **kinds)

    monkeypatch.setattr(_hf_weights, "safe_open", note)
    return names


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3-tied"])
def test_only_the_shard_with_the_table_is_opened(tmp_path, opened, family):
    whole = tmp_path / "whole"
    make_llm(whole) if family == "llama" else make_qwen3(whole, tie=family == "qwen3-tied")
    expected = AutoModelForCausalLM.from_pretrained(whole).get_input_embeddings().weight
    sharded = in_shards(whole, tmp_path / "sharded")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    for file in sharded.glob("*.safetensors"):  # the others need not even be there
        if file.name != index[NAME]:
            file.unlink()
    opened.clear()
    table = load_embedding_table(sharded)
    assert embedding_digest(sharded) == embedding_digest(whole)
    assert opened == {index[NAME], "model.safetensors"}  # the latter of the whole one's digest
    assert table.dtype == torch.float32
    assert torch.equal(table, expected.float())
    assert torch.equal(load_embedding_table(whole, torch.float16), expected.to(torch.float16))


@pytest.mark.parametrize("chunk_size", [7, 8192])
def test_the_mean_square_is_that_of_a_zero_vector(tmp_path, chunk_size):
    llm = make_llm(tmp_path / "llm")
    table = load_embedding_table(llm)
    found = embedding_mean_square(llm, chunk_size)
    assert found == pytest.approx(table.square().mean().item(), rel=1e-6)
    file = llm / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {NAME: torch.zeros_like(table)}, file)
    with pytest.raises(InputError, match="embeddings are all zero"):
        embedding_mean_square(llm)


def test_the_digest_sees_other_rows_another_shape_and_dtype(tmp_path):
    llm = make_llm(tmp_path / "llm")
    file, first = llm / "model.safetensors", embedding_digest(llm)
    tensors = load_file(file)

    def digest_with(**changed):
        save_file(tensors | changed, file)
        return embedding_digest(llm)

    table = tensors[NAME]
    assert digest_with(**{"lm_head.weight": tensors["lm_head.weight"] + 1}) == first
    others = (table + 1e-6, table[:-1].contiguous(), table.bfloat16())
    assert len({first, *(digest_with(**{NAME: other}) for other in others)}) == 4


def test_the_family_names_the_table(tmp_path, monkeypatch):
    names = {"lm_head.weight": "output.weight", "wte.weight": "tok_embeddings.weight"}
    monkeypatch.setitem(FAMILIES, "other", Family(names, rotary_pairs=False))
    table = torch.randn(5, 4)
    save_file({"wte.weight": table, NAME: table + 1}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    assert torch.equal(load_embedding_table(tmp_path), table)
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    with pytest.raises(InputError, match="model_type is 'another'; give a folder of one of"):
        load_embedding_table(tmp_path)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    llm = make_llm(tmp_path / "llm")
    file = llm / "model.safetensors"
    tensors = load_file(file)
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, file)
    with pytest.raises(InputError, match=rf"llm: holds no {NAME}; download the model"):
        load_embedding_table(llm)
    file.write_text("version https://git-lfs.github.com/spec/v1\nsize 16060556376\n")
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read .*download it again"):
        load_embedding_table(llm)
    file.unlink()
    with pytest.raises(InputError, match=r"llm: no model.safetensors or .*index.json"):
        load_embedding_table(llm)
    index = llm / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NAME: "model-1.safetensors"}}))
    with pytest.raises(InputError, match=r"model-1.safetensors: cannot be read"):
        load_embedding_table(llm)
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, llm / "model-1.safetensors")
    with pytest.raises(InputError, match=rf"model-1.safetensors: holds no {NAME}"):
        embedding_digest(llm)
    index.write_text("[]")
    with pytest.raises(InputError, match=r"index.json: cannot be read"):
        load_embedding_table(llm)


def test_projector_and_table_are_as_wide():
    projector = nn.Linear(3, DIM)
    projector.out_dim = DIM
    table = torch.randn(7, DIM)
    model = ProjectorWithTable(projector, table, contrast=True)
    assert torch.allclose(model.unit_table.norm(dim=1), torch.ones(7))
    assert not model.table.requires_grad and not model.unit_table.requires_grad
    assert ProjectorWithTable(projector, table).unit_table is None
    with pytest.raises(InputError, match=f"projector.out_dim: {DIM}, but .* are 8 wide"):
        ProjectorWithTable(projector, torch.randn(7, 8))
