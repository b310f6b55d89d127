"""The Conformer beside that of transformers, on the same weights."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
    SeamlessM4Tv2ConformerEncoder,
    SeamlessM4Tv2SpeechEncoder,
)

from torchtune_speech.encoders import _conformer, _seamless_m4t_v2

LENGTHS = [130, 7, 91, 1]


def _pair(**changes):
    """Theirs and ours: projection and stack of three layers, with weights far from trivial."""
    torch.manual_seed(0)
    config = SeamlessM4Tv2Config(
        hidden_size=32,
        speech_encoder_layers=3,
        speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=48,
        add_adapter=False,
        **changes,
    )
    model = SeamlessM4Tv2SpeechEncoder(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs = torch.nn.ModuleDict(
        {"feature_projection": model.feature_projection, "encoder": model.encoder}
    )
    ours = torch.nn.ModuleDict(_seamless_m4t_v2._build(config, 3)).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    return theirs, ours


@torch.no_grad()
def _assert_same(theirs, ours):
    assert isinstance(theirs["encoder"], SeamlessM4Tv2ConformerEncoder)
    features = pad_sequence([torch.randn(n, 160) for n in LENGTHS], batch_first=True)
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    expected = theirs["encoder"](theirs["feature_projection"](features), attention_mask=mask)
    found = ours["encoder"](ours["feature_projection"](features), lengths)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
    expected = theirs["encoder"](theirs["feature_projection"](features[:1]))
    found = ours["encoder"](ours["feature_projection"](features[:1]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("final_norm", [True, False])
def test_equals_transformers(final_norm):
    theirs, ours = _pair()
    if not final_norm:
        theirs["encoder"].layer_norm = ours["encoder"].layer_norm = torch.nn.Identity()
    _assert_same(theirs, ours)


@pytest.mark.parametrize(
    "changes",
    [
        {"speech_encoder_chunk_size": 16, "speech_encoder_left_chunk_num": 2},
        {"speech_encoder_chunk_size": 50, "speech_encoder_left_chunk_num": 0},
        {"speech_encoder_chunk_size": 16, "speech_encoder_left_chunk_num": -1},
        {"left_max_position_embeddings": 5, "right_max_position_embeddings": 0},
        {"conv_depthwise_kernel_size": 5, "speech_encoder_hidden_act": "relu"},
        {"layer_norm_eps": 0.1},
    ],
)
def test_equals_transformers_with_other_settings(changes):
    _assert_same(*_pair(**changes))


@pytest.mark.parametrize("max_scores", [1, 4 * 2 * 130 * 40])
def test_blocks_of_queries_change_nothing(monkeypatch, max_scores):
    whole = _conformer.relative_attention
    monkeypatch.setattr(
        _conformer,
        "relative_attention",
        lambda *arguments: whole(*arguments, max_scores=max_scores),
    )
    _assert_same(*_pair(speech_encoder_chunk_size=16, speech_encoder_left_chunk_num=2))
