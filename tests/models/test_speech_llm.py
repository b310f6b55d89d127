"""SpeechLLM against Hugging Face: logits, LoRA in both directions, merged export."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_world import DIM, FAMILIES, FRAME_DIM, build_llm, make_chat, make_llm
from transformers import AutoModelForCausalLM

from torchtune_speech import models
from torchtune_speech.errors import InputError
from torchtune_speech.generation import Decoding, Prompt, generate
from torchtune_speech.models import (
    LLAMA3_1_8B,
    export_merged,
    load_hf_weights,
    load_peft_adapter,
    speech_llama3_1_8b,
    speech_llama3_1_from_hf,
    splice_speech,
    to_peft,
    transformer_projector,
)


@pytest.fixture(scope="module", params=FAMILIES)
def llm_dir(request, tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm") / request.param, family=request.param)


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm") / "tiny-llama")


def tiny_projector():
    torch.manual_seed(1)
    return transformer_projector(FRAME_DIM, DIM, embed_dim=16, num_layers=1, num_heads=2)


def speech_input(placeholder_id):
    """Two utterances of 4 and 6 frames in a batch of two rows of the same length."""
    p = placeholder_id
    tokens = torch.tensor([[5, 6, p, p, p, p, 7, 8, 9, 10], [11, p, p, p, p, p, p, 12, 13, 14]])
    frames = torch.randn(10, FRAME_DIM, generator=torch.Generator().manual_seed(2))
    index = (tokens.flatten() == p).nonzero().flatten()
    return tokens, {"frames": frames, "frame_lengths": torch.tensor([4, 6]), "speech_index": index}


def spliced_embeddings(hf, model, tokens, speech):
    vectors = model.projector(speech["frames"], speech["frame_lengths"])
    embeddings = hf.get_input_embeddings()(tokens)
    return (
        embeddings.flatten(0, 1).index_copy(0, speech["speech_index"], vectors).view_as(embeddings)
    )


def peft_model(llm_dir, folder, rank=4):
    """A PEFT adapter with random weights on every adapted matrix, saved by PEFT itself."""
    torch.manual_seed(3)
    hf = AutoModelForCausalLM.from_pretrained(llm_dir, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(
        hf, LoraConfig(r=rank, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    peft.save_pretrained(folder)
    return peft.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [False, True])
def test_logits_equal_hugging_face_for_the_same_embeddings(tmp_path, family, tie):
    llm_dir = make_llm(tmp_path / "llm", family=family, tie=tie)
    model = build_llm(llm_dir, tiny_projector())
    missing = model.load_state_dict(load_hf_weights(llm_dir), strict=False).missing_keys
    assert all(name.startswith("projector.") for name in missing)
    hf = AutoModelForCausalLM.from_pretrained(llm_dir, dtype=torch.float32)
    tokens, speech = speech_input(placeholder_id=3)
    with torch.no_grad():
        expected = hf(inputs_embeds=spliced_embeddings(hf, model, tokens, speech)).logits
        got = model(tokens, **speech)
        some = model(tokens, **speech, select=torch.tensor([0, 9, 17]))
    assert (got - expected).abs().max() < 1e-4
    assert expected.std() > 0.1  # not a comparison of zeros
    torch.testing.assert_close(some, got.flatten(0, 1)[[0, 9, 17]])


def test_logits_with_lora_equal_peft(llm_dir, tmp_path):
    peft = peft_model(llm_dir, tmp_path / "adapter")
    model = build_llm(llm_dir, tiny_projector(), lora_rank=4, lora_alpha=16)
    weights = load_hf_weights(llm_dir) | load_peft_adapter(tmp_path / "adapter", llm_dir)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert all(name.startswith("projector.") for name in missing)
    tokens, speech = speech_input(placeholder_id=3)
    with torch.no_grad():
        embeddings = spliced_embeddings(peft, model, tokens, speech)
        expected = peft(inputs_embeds=embeddings).logits
        with peft.disable_adapter():
            plain = peft(inputs_embeds=embeddings).logits
        got = model(tokens, **speech)
    assert (got - expected).abs().max() < 1e-4
    assert (expected - plain).abs().max() > 0.1


def test_peft_round_trip_is_bit_exact(llm_dir, tmp_path):
    peft_model(llm_dir, tmp_path / "adapter")
    ours = load_peft_adapter(tmp_path / "adapter", llm_dir)
    config = models.read_hf_config(llm_dir)
    back = to_peft({name.removeprefix("decoder."): t for name, t in ours.items()}, config)
    original = models.read_safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    reordered = not torch.equal(original[name], ours["decoder.layers.0.attn.q_proj.lora_b.weight"])
    assert reordered == (config["model_type"] == "llama")


def test_merged_export_generates_the_same_text_in_hugging_face(llm_dir, tmp_path):
    peft_model(llm_dir, tmp_path / "adapter")
    export_merged(llm_dir, tmp_path / "adapter", tmp_path / "merged", max_shard_size="100KB")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    model = build_llm(llm_dir, lora_rank=4, lora_alpha=16)
    model.load_state_dict(
        load_hf_weights(llm_dir) | load_peft_adapter(tmp_path / "adapter", llm_dir)
    )
    chat = make_chat(llm_dir)
    prompt = [*chat.bos_ids, *chat.header_ids("user"), *chat.encode("The doctor waits.")]
    prompt += chat.end_ids + chat.after_ids
    answer = generate(
        model,
        [Prompt(prompt)],
        Decoding(12),
        stop_ids=[chat.end_ids[0]],
        placeholder_id=chat.placeholder_id,
    )[0]
    theirs = hf.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=chat.end_ids
    )
    new = theirs[0, len(prompt) :].tolist()
    assert answer.tokens == (new[:-1] if new[-1] in chat.end_ids else new)
    with pytest.raises(InputError, match="exists"):
        export_merged(llm_dir, tmp_path / "adapter", tmp_path / "merged")


def test_vectors_and_placeholders_must_match():
    with pytest.raises(ValueError, match="5 speech vectors for 4 placeholders"):
        splice_speech(torch.zeros(1, 8, 2), torch.zeros(5, 2), torch.arange(4))


def test_splice_changes_only_the_placeholders():
    embeddings = torch.zeros(2, 3, 2)
    out = splice_speech(embeddings, torch.ones(2, 2), torch.tensor([1, 5]))
    assert out.flatten(0, 1)[:, 0].tolist() == [0, 1, 0, 0, 0, 1]
    assert embeddings.sum() == 0


def test_a_batch_without_speech_still_runs_the_projector(llm_dir):
    model = build_llm(llm_dir, tiny_projector())
    tokens = torch.tensor([[5, 6, 7]])
    empty = {
        "frames": torch.zeros(0, FRAME_DIM),
        "frame_lengths": torch.zeros(0, dtype=torch.long),
        "speech_index": torch.zeros(0, dtype=torch.long),
    }
    with_dummy = model(tokens, **empty)
    torch.testing.assert_close(with_dummy, model(tokens))
    with_dummy.sum().backward()
    grads = [p.grad for p in model.projector.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def test_8b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = speech_llama3_1_8b()
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
    assert len(model.decoder.layers) == LLAMA3_1_8B["num_layers"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rotary scaling 'yarn'"),
    ],
)
def test_other_families_are_refused_in_one_line(llama_dir, tmp_path, change, says):
    config = json.loads((llama_dir / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says) as error:
        speech_llama3_1_from_hf(str(tmp_path))
    assert "\n" not in str(error.value)


def test_rotary_scaling_is_read_from_old_and_new_configs(llama_dir, tmp_path):
    new = json.loads((llama_dir / "config.json").read_text())
    rope = new.pop("rope_parameters")
    old = new | {
        "rope_theta": 10_000.0,
        "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"},
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert models.llama_shape_from_hf(tmp_path)["rope_base"] == 10_000
    assert models.llama_shape_from_hf(tmp_path)["scale_factor"] == 8
    (tmp_path / "config.json").write_text(json.dumps(new | {"rope_scaling": None}))
    assert models.llama_shape_from_hf(tmp_path)["scale_factor"] == 1
