"""Training, resuming and decoding with the frozen LLM in fewer bits."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_world import make_data, make_llm, write_config

from torchtune_speech import config, training
from torchtune_speech.files import read_jsonl
from torchtune_speech.models import QUANTIZATIONS, export_merged, is_quantized

HERE = training.Process(torch.device("cpu"), 0, 1)
RECIPES = {"projector": "A", "lora_finetune_text": "B", "multimodal_fuse": "C"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def runs(world, run):
    """A, B and C of six steps each, for every kind: folder of the world, config files by kind."""
    files = {}
    for kind in (None, *QUANTIZATIONS):
        for recipe, name in RECIPES.items():
            changes = {"quantize": kind, "output_dir": str(world / f"{name}-{kind}")}
            if name == "C":
                changes |= {"projector_checkpoint": str(world / f"A-{kind}")}
                changes |= {"adapter_checkpoint": str(world / f"B-{kind}")}
                changes |= {"activation_checkpointing": True}
            file = write_config(world, recipe, **changes)
            files[recipe, kind] = file.rename(world / f"{recipe}-{kind}.yaml")
            assert run(recipe, "--config", files[recipe, kind]) == 0
    return world, files


def losses(folder):
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]


def build(world, kind, **changes):
    """A model of stage C with a trained adapter."""
    cfg = OmegaConf.load(write_config(world, "multimodal_fuse"))
    torch.manual_seed(0)
    return training.build_speech_llm(
        cfg.model,
        llm_dir=cfg.llm_dir,
        projector=config.instantiate(cfg.projector),
        process=HERE,
        quantize=kind,
        **changes,
    )


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_losses_are_near_those_of_the_whole_weights(runs, kind):
    world, _ = runs
    for name in "ABC":
        ours, theirs = losses(world / f"{name}-{kind}"), losses(world / f"{name}-None")
        assert ours != theirs
        assert ours == pytest.approx(theirs, rel=0.1 if kind == "nf4" else 0.05)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_checkpoints_have_the_same_form_and_merge_into_the_whole_weights(runs, kind, tmp_path):
    world, _ = runs
    for name in "ABC":
        ours, theirs = (world / f"{name}-{k}" / "step_6" for k in (kind, None))
        files = sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file())
        for file in (f for f in files if f.suffix == ".safetensors"):
            a, b = load_file(ours / file), load_file(theirs / file)
            assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
                k: (v.shape, v.dtype) for k, v in b.items()
            }
    export_merged(world / "llm", world / f"B-{kind}" / "step_6", tmp_path / "merged")
    merged, llm = (load_file(d / "model.safetensors") for d in (tmp_path / "merged", world / "llm"))
    name = "model.layers.0.mlp.down_proj.weight"
    adapter = load_file(world / f"B-{kind}" / "step_6" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name[:-7]}.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(merged[name], llm[name] + 2 * b @ a)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(runs, run, kind):
    world, files = runs
    words = ["multimodal_fuse", "--config", files["multimodal_fuse", kind]]
    words.append(f"output_dir={world / f'C-{kind}-stopped'}")
    assert run(*words, stop_after=3) == 143
    assert run(*words, "resume=true") == 0
    assert losses(world / f"C-{kind}-stopped") == losses(world / f"C-{kind}")


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_two_processes_take_the_steps_of_one(runs, tune_run, kind):
    world, files = runs
    words = ["--config", files["multimodal_fuse", kind], f"output_dir={world / f'C-{kind}-two'}"]
    words += ["eval_samples=2"]
    done = tune_run("--nproc_per_node", "2", "multimodal_fuse", *words, cwd=world)
    assert done.returncode == 0, done.stderr[-3000:]
    # Rounding to float8 magnifies the differences of the order of sums.
    close = 1e-4 if kind == "nf4" else 1e-2
    assert losses(world / f"C-{kind}-two") == pytest.approx(losses(world / f"C-{kind}"), rel=close)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_predictions_do_not_depend_on_the_batch_size(runs, run, kind):
    world, _ = runs
    file = write_config(world, "speech_generate", checkpoint=str(world / f"C-{kind}"), limit=6)
    texts = []
    for size in (1, 6):
        output = world / f"{kind}-{size}.jsonl"
        words = [f"quantize={kind}", f"batch_size={size}", f"output={output}"]
        assert run("speech_generate", "--config", file, *words) == 0
        texts.append([row["prediction"] for row in read_jsonl(output)])
    assert texts[0] == texts[1] and len(texts[0]) >= 6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_in_nf4_is_that_of_the_matrices_it_stands_for(world, checkpointing):
    small = build(world, "nf4", activation_checkpointing=checkpointing)
    whole = build(world, None)
    whole.load_state_dict(
        {
            name: p.get_original_weight() if is_quantized(p) else p
            for name, p in small.state_dict().items()
        }
    )
    results = []
    for model in (small, whole):
        groups = training.trainable_groups(model, "projector", "lora")
        for name, p in groups["lora"].items():
            generator = torch.Generator().manual_seed(len(name))
            torch.nn.init.normal_(p.data, std=0.1, generator=generator)
        vectors = model.projector.output_length(9)
        logits = model(
            torch.arange(3, 23)[None],
            frames=torch.randn(9, 12, generator=torch.Generator().manual_seed(0)),
            frame_lengths=torch.tensor([9]),
            speech_index=torch.arange(4, 4 + vectors),
        )
        logits.logsumexp(-1).sum().backward()
        trained = {n: p.grad for group in groups.values() for n, p in group.items()}
        results.append((logits, {n: g for n, g in trained.items() if g is not None}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs)
    assert our_grads.keys() == their_grads.keys()
    assert any(".lora_b." in name for name in our_grads)
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, their_grads[name], rtol=1e-3, atol=1e-5)


def test_an_unknown_kind_is_refused_before_anything_is_read(world, run, capsys):
    words = ["llm_dir=nowhere", "quantize=int3", f"output_dir={world / 'X'}"]
    assert run("projector", "--config", write_config(world, "projector"), *words) == 1
    error = capsys.readouterr().err
    assert error == "error: quantize: 'int3' is unknown; use nf4, float8 or null\n"
