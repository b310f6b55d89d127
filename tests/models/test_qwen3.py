"""Qwen3's own: the order of norm and rotation, its shape, what is refused."""

import json

import pytest
import torch
from tiny_qwen3 import make_qwen3
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    QWEN3_4B,
    HalvesRotary,
    NormFirstAttention,
    block_causal_mask,
    check_hf_settings,
    dense_causal_mask,
    load_hf_weights,
    lora_speech_qwen3_4b,
    qwen3_shape_from_hf,
    speech_llama3_1,
    speech_qwen3_4b,
    speech_qwen3_from_hf,
)

DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 0, 0, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0, 0]])


@pytest.fixture(scope="module")
def llm_dir(tmp_path_factory):
    return make_qwen3(tmp_path_factory.mktemp("llm") / "tiny-qwen3")


@pytest.fixture(scope="module")
def model(llm_dir):
    model = speech_qwen3_from_hf(str(llm_dir))
    model.load_state_dict(load_hf_weights(llm_dir))
    return model


def test_rotary_equals_hugging_face_at_any_position():
    torch.manual_seed(0)
    x, positions = torch.randn(2, 5, 3, 12), torch.randint(200_000, (2, 5))
    rope = {"rope_type": "default", "rope_theta": 5e6}
    theirs = Qwen3RotaryEmbedding(Qwen3Config(head_dim=12, rope_parameters=rope))
    expected, _ = apply_rotary_pos_emb(x, x, *theirs(x, positions), unsqueeze_dim=2)
    rotary = HalvesRotary(12, 5e6)
    torch.testing.assert_close(rotary(x, input_pos=positions), expected)
    counted = rotary(x, input_pos=torch.arange(5).expand(2, 5))
    torch.testing.assert_close(rotary(x), counted)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_norm_rotation_and_scaled_products(model, masked):
    """Against the same in plain steps; another order of norm and rotation gives something else."""
    attn = model.decoder.layers[0].attn
    assert isinstance(attn, NormFirstAttention)
    torch.manual_seed(0)
    x = torch.randn(2, 8, 32)
    mask = dense_causal_mask(DOCUMENTS)

    def plain(steps):
        q, k = attn.q_proj(x).view(2, 8, 4, 12), attn.k_proj(x).view(2, 8, 2, 12)
        for step in steps:
            if step == "norm":
                q, k = attn.q_norm(q), attn.k_norm(k)
            else:
                q, k = (attn.pos_embeddings(h, input_pos=POSITIONS) for h in (q, k))
        v = attn.v_proj(x).view(2, 8, 2, 12)
        q, k, v = (h.transpose(1, 2) for h in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=True)
        return attn.output_proj(out.transpose(1, 2).flatten(2))

    given = mask if masked else block_causal_mask(DOCUMENTS)
    ours = attn(x, x, mask=given, input_pos=POSITIONS)
    seen = DOCUMENTS > 0
    torch.testing.assert_close(ours[seen], plain(["norm", "rotate"])[seen])
    assert (ours - plain(["rotate", "norm"]))[seen].abs().max() > 0.05


def test_without_a_mask_attention_is_causal(model):
    tokens = torch.randint(100, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = model(tokens), model(tokens[:, :6])
    torch.testing.assert_close(whole[:, :6], part)
    assert not torch.allclose(whole[:, 5], whole[:, 6])


def test_torchtunes_cache_is_refused(model):
    with pytest.raises(NotImplementedError, match="DecodingCache"):
        model.decoder.layers[0].attn.setup_cache(1, torch.float32, 8)


@pytest.mark.parametrize("lora", [False, True])
def test_4b_has_the_published_number_of_parameters(lora):
    """https://huggingface.co/Qwen/Qwen3-4B-Instruct-2507: 4.0 billion, 3.6 without embeddings."""
    with torch.device("meta"):
        model = lora_speech_qwen3_4b() if lora else speech_qwen3_4b()
    counts = {name: p.numel() for name, p in model.named_parameters()}
    update = sum(n for name, n in counts.items() if ".lora_" in name)
    # r (in + out) for q, k, v, o and the three matrices of the feed-forward network.
    mlp = 3 * (2560 + 9728)
    assert update == lora * 36 * 8 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + mlp)
    assert sum(counts.values()) - update == 4_022_468_096
    assert counts["decoder.tok_embeddings.weight"] == 151_936 * 2560
    assert len(model.decoder.layers) == QWEN3_4B["num_layers"]


def test_shape_is_read_from_old_and_new_configs(llm_dir, tmp_path):
    new = json.loads((llm_dir / "config.json").read_text())
    shape = qwen3_shape_from_hf(llm_dir)
    assert (shape["rope_base"], shape["head_dim"], shape["embed_dim"]) == (5_000_000, 12, 32)
    rope = new.pop("rope_parameters")
    old = new | {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert qwen3_shape_from_hf(tmp_path) == shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"attention_bias": True}, "attention_bias is True, which torchtune's decoder cannot"),
        ({"use_sliding_window": True}, "use_sliding_window is True, which torchtune's"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which torchtune's decoder cannot express"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "rotary scaling 'yarn'"),
    ],
)
def test_other_models_are_refused_in_one_line(llm_dir, tmp_path, change, says):
    config = json.loads((llm_dir / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says) as error:
        speech_qwen3_from_hf(str(tmp_path))
    assert "\n" not in str(error.value)


def test_weights_of_an_unknown_family_are_refused(llm_dir, tmp_path):
    config = json.loads((llm_dir / "config.json").read_text()) | {"model_type": "mistral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model_type is 'mistral'; .* llama, qwen3"):
        load_hf_weights(tmp_path)


def test_another_rotary_base_than_the_folders_is_refused(llm_dir, tmp_path, model):
    check_hf_settings(model, llm_dir)
    config = json.loads((llm_dir / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 1_000_000.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"rope_theta is 1e\+06, the model's rope_base 5e\+06"):
        check_hf_settings(model, tmp_path)
    shape = dict(num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=8, max_seq_len=8)
    llama = speech_llama3_1(vocab_size=9, rope_base=500_000, **shape)
    with pytest.raises(InputError, match="the model's rope_base 500000"):
        check_hf_settings(llama, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 0.01, the model's norm_eps 1e-05"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0}},
            "rope scaling is 32, the model's scale_factor 8",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
            "rope scaling is 1, the model's scale_factor 8",
        ),
    ],
)
def test_settings_that_no_shape_shows_are_compared(tmp_path, change, says):
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0}
    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_parameters": rope} | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = dict(num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=8, max_seq_len=8)
    llama = speech_llama3_1(vocab_size=9, rope_base=500_000, **shape)
    with pytest.raises(InputError, match=says):
        check_hf_settings(llama, tmp_path)
