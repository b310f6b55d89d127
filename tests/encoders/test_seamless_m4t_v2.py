import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SeamlessM4Tv2Config, SeamlessM4Tv2ForSpeechToText

from torchtune_speech.encoders import Encoder, filter_bank_encoder, seamless_m4t_v2_encoder
from torchtune_speech.errors import InputError

LAYERS = 3
LENGTHS = [8_000, 48_000, 1_000, 17_345, 31_999]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SeamlessM4Tv2Config(
        vocab_size=64,
        hidden_size=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        speech_encoder_layers=LAYERS,
        speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=48,
        max_position_embeddings=64,
    )
    model = SeamlessM4Tv2ForSpeechToText(config).eval()
    # Norms and biases start at one and zero, where a mistake may not show.
    for parameter in model.speech_encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-seamless"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def waveforms():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * 0.1 for n in LENGTHS]


def _hidden_states(model, waveform):
    """Raw outputs of all layers, then the output of the stack, from Hugging Face's own forward."""
    features = filter_bank_encoder()([waveform])[0][None]
    speech_encoder = model.speech_encoder
    outputs = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        for module in [*speech_encoder.encoder.layers, speech_encoder.encoder.layer_norm]
    ]
    with torch.no_grad():
        speech_encoder(features, attention_mask=torch.ones(features.shape[:2]))
    for hook in hooks:
        hook.remove()
    return [o[0] if o.dim() == 3 else o for o in outputs]


def test_every_layer_equals_hugging_face(model, folder, waveforms):
    expected = [_hidden_states(model, w) for w in waveforms]
    for layer in range(1, LAYERS + 1):
        encoder = seamless_m4t_v2_encoder(folder, layer=layer)
        # The last layer is taken after the final norm, the others as they leave their layer.
        position = layer if layer == LAYERS else layer - 1
        for frames, states in zip(encoder(waveforms), expected, strict=True):
            torch.testing.assert_close(frames, states[position], atol=1e-5, rtol=1e-5)


def test_hugging_faces_adaptor_and_ffn_are_not_in_it(model, folder, waveforms):
    frames = seamless_m4t_v2_encoder(folder, layer=LAYERS)(waveforms[:1])[0]
    features = filter_bank_encoder()(waveforms[:1])[0][None]
    with torch.no_grad():
        last = model.speech_encoder(features).last_hidden_state[0]
    assert last.shape != frames.shape


@pytest.mark.parametrize("max_batch_seconds", [0.1, 3.5, None])
def test_batched_equals_one_by_one(folder, waveforms, max_batch_seconds):
    encoder = seamless_m4t_v2_encoder(folder, layer=LAYERS, max_batch_seconds=max_batch_seconds)
    for frames, waveform in zip(encoder(waveforms), waveforms, strict=True):
        torch.testing.assert_close(frames, encoder([waveform])[0], atol=1e-5, rtol=0)


def test_batches_hold_no_more_than_allowed(folder, waveforms):
    encoder = seamless_m4t_v2_encoder(folder, layer=1, max_batch_seconds=3.5)
    shapes = []
    encoder.encoder.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].shape))
    encoder(waveforms)
    assert sum(shape[0] for shape in shapes) == len(LENGTHS)
    assert all(shape[0] == 1 or shape[0] * shape[1] / 50 <= 3.5 for shape in shapes)
    assert len(shapes) < len(LENGTHS)


def test_compiled_once_for_all_batches(folder, waveforms, monkeypatch):
    # Traced as ever, but run without generated code, which would take half a minute to compile.
    traced = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    torch._dynamo.reset()
    encoder = seamless_m4t_v2_encoder(folder, layer=LAYERS, compile=True)
    exact = seamless_m4t_v2_encoder(folder, layer=LAYERS)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = []
    for batch in (waveforms[:2], waveforms, waveforms[2:], [waveforms[0]] * 2):
        for frames, expected in zip(encoder(batch), exact(batch), strict=True):
            torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
    assert len(set(compiled)) == 1 and compiled[0] > 0


def test_is_an_encoder(folder):
    encoder = seamless_m4t_v2_encoder(folder, layer=2)
    assert isinstance(encoder, Encoder)
    assert encoder.dim == 32 and encoder.frames_per_second == 50.0
    assert encoder([]) == []
    # Nothing that the frames do not need is in memory.
    names = set(encoder.state_dict())
    assert not any("adapter" in n or "intermediate_ffn" in n or "layers.2" in n for n in names)


def test_bf16(folder, waveforms):
    frames = seamless_m4t_v2_encoder(folder, layer=LAYERS, dtype="bf16")(waveforms)
    exact = seamless_m4t_v2_encoder(folder, layer=LAYERS)(waveforms)
    assert frames[0].dtype == torch.bfloat16
    torch.testing.assert_close(frames[1].float(), exact[1], atol=0.3, rtol=0.1)


def test_fingerprint_knows_weights_and_layer_but_not_the_machine(folder, tmp_path):
    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)
    fingerprint = seamless_m4t_v2_encoder(folder, layer=LAYERS).fingerprint()
    assert seamless_m4t_v2_encoder(moved, layer=LAYERS).fingerprint() == fingerprint
    assert fingerprint["id"] == "tiny-seamless" and fingerprint["after_final_norm"]
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    earlier = seamless_m4t_v2_encoder(folder, layer=2).fingerprint()
    assert earlier["layer"] == 2 and not earlier["after_final_norm"]

    weights = load_file(moved / "model.safetensors")
    weights["text_decoder.layer_norm.bias"] += 1.0
    save_file(weights, moved / "model.safetensors")
    assert seamless_m4t_v2_encoder(moved, layer=LAYERS).fingerprint() == fingerprint
    weights["speech_encoder.encoder.layers.0.ffn1.output_dense.bias"][0] += 1e-3
    save_file(weights, moved / "model.safetensors")
    altered = seamless_m4t_v2_encoder(moved, layer=LAYERS).fingerprint()
    assert altered["weights"] != fingerprint["weights"]


def test_sharded_checkpoint_needs_only_the_shards_of_the_speech_encoder(
    model, folder, tmp_path, waveforms
):
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith("speech_encoder.")}
    needed -= {
        file for file in needed if not any(
            n.startswith(("speech_encoder.encoder", "speech_encoder.feature"))
            for n, f in index.items() if f == file
        )
    }  # fmt: skip
    spare = set(index.values()) - needed
    assert spare and len(needed) > 1
    for file in spare:
        (tmp_path / file).unlink()
    expected = seamless_m4t_v2_encoder(folder, layer=LAYERS)(waveforms)
    for a, b in zip(
        seamless_m4t_v2_encoder(tmp_path, layer=LAYERS)(waveforms), expected, strict=True
    ):
        assert torch.equal(a, b)


def _copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        seamless_m4t_v2_encoder(tmp_path / "nowhere")


def test_layer_out_of_range(folder):
    with pytest.raises(InputError, match="layer is 24; the speech encoder has layers 1 to 3"):
        seamless_m4t_v2_encoder(folder)


def test_another_kind_of_model(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    (copy / "config.json").write_text('{"model_type": "seamless_m4t"}')
    with pytest.raises(InputError, match="model_type is 'seamless_m4t'"):
        seamless_m4t_v2_encoder(copy)


def test_no_weights(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        seamless_m4t_v2_encoder(copy, layer=1)


def test_truncated_weights(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not readable"):
        seamless_m4t_v2_encoder(copy, layer=1)


def test_no_config(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        seamless_m4t_v2_encoder(tmp_path)


def test_meta_device_loads_nothing(folder):
    tiny = seamless_m4t_v2_encoder(folder, layer=2, device="meta")
    assert tiny.fingerprint()["weights"] is None and tiny.dim == 32


def test_meta_device_without_the_model_has_the_shape_of_the_large_one():
    encoder = seamless_m4t_v2_encoder("/nowhere/seamless", device="meta", dtype="bf16")
    parameters = list(encoder.parameters())
    assert encoder.dim == 1024 and all(p.is_meta and p.dtype == torch.bfloat16 for p in parameters)
    assert 550e6 < sum(p.numel() for p in parameters) < 650e6


def test_other_positions_are_refused(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"position_embeddings_type": "rotary"}))
    with pytest.raises(InputError, match="position_embeddings_type is 'rotary'"):
        seamless_m4t_v2_encoder(copy, layer=1)
