"""Predicted peak memory against what a profiler sees, and what is made of it."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from torchtune_speech import config, training
from torchtune_speech.config import config_path
from torchtune_speech.errors import InputError
from torchtune_speech.models import weight_bytes
from torchtune_speech.training._memory import keep_layers

STAGES = {
    "projector": ("projector",),
    "lora_finetune_text": ("lora",),
    "multimodal_fuse": ("projector", "lora"),
}
SHAPE = {
    "vocab_size": 3_000,
    "num_layers": 5,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 64,
    "intermediate_dim": 160,
    "max_seq_len": 512,
}


def make_config(stage, **changes):
    """The 8B's configuration of a stage with a small model, on the CPU."""
    cfg = OmegaConf.load(config_path(f"llama3_1_8b/{stage}"))
    name = "speech_llama3_1" if stage == "projector" else "lora_speech_llama3_1"
    cfg.model = {"_component_": f"torchtune_speech.models.{name}", **SHAPE}
    if "projector" in cfg:
        cfg.projector |= {"in_dim": 40, "out_dim": 64, "embed_dim": 48}
        cfg.projector |= {"num_heads": 3, "num_layers": 2}
    small = {"device": "cpu", "dtype": "fp32", "max_seq_len": 256, "rows_per_step": 2}
    return OmegaConf.merge(cfg, small, {"gradient_accumulation_steps": 1}, changes)


def predict(cfg, stage, recomputed=False, **kinds):
    return training.predict_memory(cfg, STAGES[stage], activation_checkpointing=recomputed, **kinds)


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark of the prediction, which knows how to measure."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import memory

    yield memory
    for name in ("memory", "common"):
        sys.modules.pop(name, None)


def measured(benchmark, cfg, stage, recomputed=False):
    batch = training.planned_batch(cfg, benchmark.meta_projector(cfg))
    return benchmark.measure(cfg, STAGES[stage], batch, recomputed)


@pytest.mark.parametrize("recomputed", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_predicted_is_measured_and_few_layers_stand_for_all(benchmark, stage, recomputed):
    cfg = make_config(stage)
    found = predict(cfg, stage, recomputed)
    assert found == predict(cfg, stage, recomputed, all_layers=True)
    assert found.total == pytest.approx(measured(benchmark, cfg, stage, recomputed), rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "gradient_accumulation_steps": 2,
            "rows_per_step": 4,
            "max_seq_len": 128,
            "projector": {"embed_dim": 192},
        },
        {"ctc_weight": 0.3, "projector": {"ctc_vocab_size": 3_001}},
        {"projector": {"stack": 2, "dropout": 0.0}, "optimizer": {"fused": False}},
    ],
)
def test_accumulation_ctc_and_other_projectors(benchmark, changes):
    cfg = make_config("multimodal_fuse", **changes)
    found = predict(cfg, "multimodal_fuse").total
    assert found == pytest.approx(measured(benchmark, cfg, "multimodal_fuse"), rel=0.02)


def test_an_optimizer_may_need_more_than_the_backward_pass(benchmark):
    large = {"projector": {"embed_dim": 384, "num_heads": 6}, "max_seq_len": 32}
    cfg = make_config("projector", **large, optimizer={"fused": False, "foreach": True})
    found = predict(cfg, "projector")
    assert found.phase == "optimizer's step"
    assert found.total == pytest.approx(measured(benchmark, cfg, "projector"), rel=0.02)
    # On a GPU many tensors at once are what torch takes by itself.
    cfg = make_config("projector", **large, optimizer={"fused": None}, device="cuda")
    assert predict(cfg, "projector").phase == "optimizer's step"


def test_parts_are_what_there_is():
    cfg = make_config("multimodal_fuse", dtype="bf16")
    memory = predict(cfg, "multimodal_fuse")
    model = training.meta_speech_llm(cfg.model, config.instantiate(cfg.projector), torch.bfloat16)
    training.trainable_groups(model, *STAGES["multimodal_fuse"])
    counts = training.parameter_counts(model)
    assert memory.parts["frozen weights"] == 2 * counts["llm"]
    assert memory.parts["trained weights"] == 4 * counts["trainable"]
    state = memory.parts["optimizer state"] - 8 * counts["trainable"]
    assert 0 <= state <= 4 * sum(p.requires_grad for p in model.parameters())  # step numbers


def test_attention_on_a_gpu_is_flex_attention():
    stage, part = "lora_finetune_text", "activations, temporaries"

    def activations(device, length):
        cfg = make_config(stage, device=device, max_seq_len=length)
        return predict(cfg, stage).parts[part]

    short = activations("cuda", 512)
    assert activations("cuda", 2048) < 4.05 * short  # nothing has the size of a row's square
    assert short < 0.99 * activations("cpu", 512)  # nor are rows taken apart into samples


@pytest.mark.parametrize("kind", ["nf4", "float8"])
def test_quantised_weights_are_smaller(kind):
    cfg = make_config("lora_finetune_text", quantize=kind)
    quantised = predict(cfg, "lora_finetune_text", recomputed=True)
    model = training.meta_speech_llm(cfg.model, None, torch.float32, kind)
    training.trainable_groups(model, "lora")
    frozen = sum(weight_bytes(p) for p in model.parameters() if not p.requires_grad)
    assert quantised.parts["frozen weights"] == pytest.approx(frozen, rel=0.01)  # views
    shared = predict(cfg, "lora_finetune_text", recomputed=True, world_size=2)
    matrices = sum(weight_bytes(p) for p in model.parameters() if type(p.data) is not torch.Tensor)
    assert shared.parts["frozen weights"] > matrices


def test_processes_share_weights_and_gather_some():
    cfg = make_config("projector", rows_per_step=8)
    alone, shared = (predict(cfg, "projector", world_size=n) for n in (1, 8))
    for part in ("frozen weights", "trained weights", "gradients", "optimizer state"):
        assert shared.parts[part] == -(-alone.parts[part] // 8)
    few_rows = predict(make_config("projector", rows_per_step=1), "projector")
    part = "activations, temporaries"
    assert shared.parts[part] == few_rows.parts[part] < alone.parts[part]
    model = training.meta_speech_llm(cfg.model, config.instantiate(cfg.projector), torch.float32)
    layer = sum(p.nbytes for p in model.decoder.layers[0].parameters())
    outside = [*keep_layers(model, 1).decoder.parameters()]
    tables = sum(p.nbytes for p in outside) - layer
    projector = sum(p.nbytes for p in model.projector.parameters())
    # The projector with its gradients.
    assert shared.parts["gathered for use"] == 2 * layer + tables + 2 * projector
    cfg = make_config("projector", rows_per_step=8, shard_llm=False)
    whole = predict(cfg, "projector", world_size=8)
    assert whole.parts["frozen weights"] == alone.parts["frozen weights"]
    assert whole.parts["gradients"] == shared.parts["gradients"]
    assert whole.parts["gathered for use"] == 2 * projector


@pytest.mark.parametrize("stack", [1, 3])
def test_a_planned_batch_fits_the_model_and_is_full(stack):
    cfg = make_config("projector", max_seq_len=600, rows_per_step=6)
    cfg.projector.stack = stack
    projector = config.instantiate(cfg.projector)
    batch = training.planned_batch(cfg, projector, world_size=2)
    assert batch["tokens"].shape == (3, 600)
    vectors = projector.output_length(batch["frame_lengths"])
    assert int(vectors.sum()) == len(batch["speech_index"]) > 0.75 * 3 * 600
    assert int(batch["frame_lengths"].sum()) == len(batch["frames"])
    assert len(batch["select"]) == (batch["labels"] >= 0).sum() == pytest.approx(360, abs=6)
    assert not set(batch["select"].tolist()) & set(batch["speech_index"].tolist())
    text = training.planned_batch(cfg, None)
    assert text["frames"] is None and len(text["tokens"]) == 6


@pytest.mark.parametrize("fits", [True, False])
def test_auto_recomputes_what_does_not_fit(monkeypatch, caplog, fits):
    cfg = make_config("lora_finetune_text", device="cuda")
    need = predict(cfg, "lora_finetune_text").total
    have = SimpleNamespace(total_memory=round(need / 0.9 * (1.01 if fits else 0.99)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: have)
    process = training.Process(torch.device("cuda"), 0, 1)
    with caplog.at_level(logging.INFO):
        chosen = training.resolve_activation_checkpointing("auto", cfg, ("lora",), process)
    assert chosen is not fits
    assert f"auto {'keeps' if fits else 'recomputes'} the layers" in caplog.text


def test_auto_on_a_cpu_and_plain_values():
    process = training.Process(torch.device("cpu"), 0, 1)
    for value, expected in (("auto", False), (True, True), (False, False)):
        cfg = make_config("projector", activation_checkpointing=value)
        training.check_settings(cfg)
        chosen = training.resolve_activation_checkpointing(value, cfg, ("projector",), process)
        assert chosen is expected
    cfg.activation_checkpointing = "sometimes"
    with pytest.raises(InputError, match="activation_checkpointing: 'sometimes'; use auto"):
        training.check_settings(cfg)
