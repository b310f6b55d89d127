import pytest
import torch
from torch import nn

from torchtune_speech.modules import (
    ConformerConvolution,
    ConformerEncoderLayer,
    PackedSelfAttention,
    Packing,
    TransformerEncoderLayer,
    apply_rotary,
    feed_forward,
    pad_packed,
    rotary_angles,
)

LENGTHS = torch.tensor([9, 2, 0, 14, 1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("min_frames", [1, 512])
def test_transformer_layer_equals_torch(min_frames):
    ours = TransformerEncoderLayer(16, 4, 32)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "attn.qkv_proj.",
        "self_attn.out_proj.": "attn.output_proj.",
        "linear1.": "mlp.w1.",
        "linear2.": "mlp.w2.",
        "norm1.": "sa_norm.",
        "norm2.": "mlp_norm.",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        start = next(name for name in names if key.startswith(name))
        state[key.replace(start, names[start])] = value
    ours.load_state_dict(state)
    lengths = LENGTHS[LENGTHS > 0]
    frames = torch.randn(int(lengths.sum()), 16)
    padded, mask = pad_packed(frames, lengths)
    expected = theirs(padded, src_key_padding_mask=~mask)[mask]
    packing = Packing.from_lengths(lengths, min_frames=min_frames)
    torch.testing.assert_close(ours(frames, packing), expected, atol=1e-5, rtol=1e-5)


def test_rotary_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 8)
    near = rotary_angles(torch.tensor([3, 8]), 8)
    far = rotary_angles(torch.tensor([1003, 1008]), 8)
    scores = []
    for cos, sin in (near, far):
        turned_q = apply_rotary(q, (cos[:1], sin[:1]))
        scores.append((turned_q * apply_rotary(k, (cos[1:], sin[1:]))).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-3, rtol=1e-3)
    turned = apply_rotary(torch.cat([q, k]), near)
    torch.testing.assert_close(turned.norm(dim=-1), torch.cat([q, k]).norm(dim=-1))


def test_rotary_tells_order_apart():
    attention = PackedSelfAttention(16, 2)
    frames, packing = torch.randn(5, 16), Packing.from_lengths(torch.tensor([5]))
    rotary = rotary_angles(packing.positions_t, 8)
    with_order = attention(frames, packing, rotary) - attention(
        frames.flip(0), packing, rotary
    ).flip(0)
    without = attention(frames, packing) - attention(frames.flip(0), packing).flip(0)
    assert with_order.abs().max() > 1e-3 and without.abs().max() < 1e-6


def test_attention_sees_the_whole_utterance():
    attention = PackedSelfAttention(16, 2)
    packing = Packing.from_lengths(torch.tensor([6, 3]))
    frames = torch.randn(9, 16, requires_grad=True)
    attention(frames, packing)[0].sum().backward()
    assert frames.grad[:6].abs().sum(1).gt(0).all()  # later frames too: not causal
    assert not frames.grad[6:].any()


def test_conformer_convolution_equals_one_utterance_at_a_time():
    module = ConformerConvolution(8, kernel_size=5)
    frames = torch.randn(int(LENGTHS.sum()), 8)
    outputs = module(frames, Packing.from_lengths(LENGTHS)).split(LENGTHS.tolist())
    for part, output in zip(frames.split(LENGTHS.tolist()), outputs, strict=True):
        if len(part):
            x = nn.functional.glu(module.in_proj(part))
            x = module.depthwise(x.t()[None])[0].t()  # the zeros of its own padding at both ends
            x = module.out_proj(nn.functional.silu(module.norm(x)))
            torch.testing.assert_close(output, x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [TransformerEncoderLayer, ConformerEncoderLayer])
def test_nan_stays_in_its_utterance(layer):
    module = layer(16, 2, 32)
    frames = torch.randn(int(LENGTHS.sum()), 16)
    frames[10] = float("nan")  # in the second utterance
    outputs = module(frames, Packing.from_lengths(LENGTHS)).split(LENGTHS.tolist())
    assert outputs[1].isnan().all()
    assert not any(outputs[u].isnan().any() for u in (0, 3, 4))


def test_swiglu_has_a_gate():
    assert feed_forward(8, 16, "swiglu").w3 is not None
    assert feed_forward(8, 16).w3 is None


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="activation"):
        feed_forward(8, 16, "relu6")
    with pytest.raises(ValueError, match="num_heads"):
        PackedSelfAttention(16, 3)
    with pytest.raises(ValueError, match="kernel_size"):
        ConformerConvolution(16, 4)
