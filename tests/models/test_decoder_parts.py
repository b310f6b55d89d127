"""Our parts in torchtune's decoder; that they give the same is in test_sample_attention.py."""

import pytest
import torch
from torchtune.modules import RMSNorm

from torchtune_speech.errors import InputError
from torchtune_speech.models import (
    SpeechLLM,
    lora_speech_llama3_1,
    lora_speech_qwen3,
    qwen3,
    speech_llama3_1,
)
from torchtune_speech.models._decoder_parts import OnePassRotary, SlimRMSNorm

SHAPE = dict(
    vocab_size=97, num_layers=3, num_heads=4, num_kv_heads=2, embed_dim=32, max_seq_len=64,
    intermediate_dim=48,
)  # fmt: skip


@pytest.mark.parametrize(
    ("build", "norms"),
    [
        (lambda: speech_llama3_1(**SHAPE), 3 * 2 + 1),
        (lambda: SpeechLLM(qwen3(head_dim=8, **SHAPE)), 3 * 4 + 1),
    ],
    ids=["llama", "qwen3"],
)
def test_all_norms_are_ours(build, norms):
    found = [module for module in build().modules() if isinstance(module, RMSNorm)]
    assert len(found) == norms and all(type(norm) is SlimRMSNorm for norm in found)


def test_layers_share_one_rotary_embedding():
    layers = speech_llama3_1(**SHAPE).decoder.layers
    first = layers[0].attn.pos_embeddings
    assert type(first) is OnePassRotary
    assert all(layer.attn.pos_embeddings is first for layer in layers)


def test_on_the_meta_device_the_rotary_table_waits():
    with torch.device("meta"):
        rope = speech_llama3_1(**SHAPE).decoder.layers[0].attn.pos_embeddings
    assert not rope.is_cache_built
    with pytest.raises(RuntimeError, match="rope_init"):
        rope(torch.zeros(1, 2, 4, 8))
    rope.rope_init()
    assert rope(torch.ones(1, 2, 4, 8)).isfinite().all()


@pytest.mark.parametrize("build", [lora_speech_llama3_1, lora_speech_qwen3])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["q_proj", "o_proj"], "'o_proj' is unknown; use output_proj"),
        (["w1"], "'w1' is unknown; use q_proj, k_proj, v_proj, output_proj"),
        ("q_proj", "'q_proj'; give a list of"),
    ],
)
def test_projections_without_lora_are_no_accident(build, names, said):
    shape = SHAPE | ({"head_dim": 8} if build is lora_speech_qwen3 else {})
    with pytest.raises(InputError, match=said):
        build(lora_attn_modules=names, **shape)
