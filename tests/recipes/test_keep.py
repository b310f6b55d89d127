"""Dropping pads in the tiny world: the command, stage C and generation on what it keeps."""

import sys

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_world import make_data, make_llm, write_config

from torchtune_speech import config
from torchtune_speech.cli import main
from torchtune_speech.data import KeptPositions
from torchtune_speech.features import FeatureStore
from torchtune_speech.files import read_json
from torchtune_speech.models import load_embedding_table
from torchtune_speech.modules import nearest_tokens


@pytest.fixture(scope="module")
def run(recipe_module):
    """A function that runs a recipe in this process; gives its exit code."""

    def run(name, *words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, words)])
            try:
                recipe_module(name).recipe_main()
            except SystemExit as exit_:
                return exit_.code or 0
        return 0

    return run


def keep(world, *words):
    """Exit code of `torchtune-speech keep`; words come after the usual ones, and win."""
    usual = ["--checkpoint", world / "M", "--features", world / "data" / "features"]
    try:
        return main(["keep", *map(str, usual), "--output", str(world / "kept.parquet"), *words])
    except SystemExit as exit_:
        return exit_.code


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, run):
    """Stage 1, until it finds words and pads, and the file of what it keeps."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    file = write_config(folder, "speechmapper", output_dir=str(folder / "M"), eval_dataset=None)
    cfg = yaml.safe_load(file.read_text())
    cfg["dataset"] |= {"on_too_long": "skip", "ctc": None}
    cfg["loss"]["ctc"] = 0.0
    cfg["projector"] |= {"embed_dim": 32}
    file.write_text(yaml.safe_dump(cfg))
    words = ["max_steps=250", "learning_rate.projector.lr=1e-2", "pad_weight=1"]
    words += ["learning_rate.projector.warmup_steps=10"]
    assert run("speechmapper", "--config", file, *words) == 0
    assert keep(folder) == 0
    return folder


def later_config(world, recipe, **changes):
    """Config of a later recipe with the projector of stage 1, on what is kept."""
    file = write_config(world, recipe, **changes)
    cfg = yaml.safe_load(file.read_text())
    cfg["projector"]["embed_dim"] = 32
    for name in ("dataset", "eval_dataset"):
        if cfg.get(name):
            cfg[name]["kept"] = str(world / "kept.parquet")
    file.write_text(yaml.safe_dump(cfg))
    return file


def test_the_command_keeps_what_a_plain_loop_keeps(mapped, capsys):
    capsys.readouterr()
    assert keep(mapped) == 0
    told = capsys.readouterr().out
    stage = read_json(mapped / "M" / "step_250" / "stage.json")
    projector = config.instantiate(OmegaConf.create(stage["config"]["projector"])).eval()
    projector.load_state_dict(load_file(mapped / "M" / "step_250" / "projector.safetensors"))
    table = load_embedding_table(mapped / "llm")
    kept = KeptPositions(mapped / "kept.parquet")
    store = FeatureStore(mapped / "data" / "features")
    pad, total = kept.fingerprint["pad_token"], 0
    for key in store:
        with torch.no_grad():
            vectors = projector(store[key].float(), torch.tensor([store.num_frames(key)]))
        nearest = nearest_tokens(vectors, table)
        positions = (nearest != pad).nonzero()[:, 0]
        if not len(positions):
            likeness = torch.cosine_similarity(vectors, table[[pad]], dim=-1)
            positions = likeness.argmin()[None]
        assert kept.positions(key, len(vectors)).tolist() == positions.tolist(), key
        total += len(positions)
    frames = sum(map(store.num_frames, store))
    assert 0 < total < 0.8 * frames
    assert f"8 utterances; the LLM reads {total} of {frames} speech vectors" in told
