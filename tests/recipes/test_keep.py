"""Dropping pads in the tiny world: the command, stage C and generation on what it keeps."""

import shutil

import pytest
import soundfile
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_world import FRAME_DIM, make_chat, make_data, make_llm, write_config

from torchtune_speech import config
from torchtune_speech.cli import main
from torchtune_speech.data import KeptPositions
from torchtune_speech.features import FeatureStore, FeatureWriter, finalize_store
from torchtune_speech.files import read_json, read_jsonl
from torchtune_speech.models import load_embedding_table
from torchtune_speech.modules import nearest_tokens
from torchtune_speech.training import keep_non_pads


def keep(world, *words):
    """Exit code of `torchtune-speech keep`; words come after the usual ones, and win."""
    usual = ["--checkpoint", world / "M", "--features", world / "data" / "features"]
    try:
        return main(["keep", *map(str, usual), "--output", str(world / "kept.parquet"), *words])
    except SystemExit as exit_:
        return exit_.code


def map_speech(run, world, name, *words, frame_average=None):
    """Stage 1, until it finds words and pads, as run ``name``."""
    file = write_config(world, "speechmapper", output_dir=str(world / name), eval_dataset=None)
    cfg = yaml.safe_load(file.read_text())
    cfg["dataset"] |= {"on_too_long": "skip", "ctc": None, "frame_average": frame_average}
    cfg["loss"]["ctc"] = 0.0
    cfg["projector"] |= {"embed_dim": 32}
    file.write_text(yaml.safe_dump(cfg))
    usual = ["max_steps=250", "learning_rate.projector.lr=1e-2", "pad_weight=1"]
    usual += ["learning_rate.projector.warmup_steps=10"]
    assert run("speechmapper", "--config", file, *usual, *words) == 0


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, run):
    """Stage 1, and the file of what it keeps."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    map_speech(run, folder, "M")
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


def assert_keeps_what_a_plain_loop_keeps(world, checkpoint, file, frame_average=None):
    """Compare a file with the projector run on one utterance at a time; gives vectors and kept."""
    stage = read_json(checkpoint / "stage.json")
    projector = config.instantiate(OmegaConf.create(stage["config"]["projector"])).eval()
    projector.load_state_dict(load_file(checkpoint / "projector.safetensors"))
    table = load_embedding_table(world / "llm")
    texts = [i for i, text in enumerate(make_chat(world / "llm").token_texts) if text]
    kept = KeptPositions(file)
    store = FeatureStore(world / "data" / "features", frame_average)
    pad, vectors_of_all, total = kept.fingerprint["pad_token"], 0, 0
    for key in store:
        with torch.no_grad():
            vectors = projector(store[key].float(), torch.tensor([store.num_frames(key)]))
        nearest = nearest_tokens(vectors, table)
        positions = torch.isin(nearest, torch.tensor(texts)).nonzero()[:, 0]
        if not len(positions):
            likeness = torch.cosine_similarity(vectors, table[[pad]], dim=-1)
            positions = likeness.argmin()[None]
        assert kept.positions(key, len(vectors)).tolist() == positions.tolist(), key
        vectors_of_all, total = vectors_of_all + len(vectors), total + len(positions)
    return vectors_of_all, total


def test_the_command_keeps_what_a_plain_loop_keeps(mapped, capsys):
    capsys.readouterr()
    assert keep(mapped) == 0
    told = capsys.readouterr().out
    vectors, total = assert_keeps_what_a_plain_loop_keeps(
        mapped, mapped / "M" / "step_250", mapped / "kept.parquet"
    )
    assert 0 < total < 0.8 * vectors
    assert f"8 utterances; the LLM reads {total} of {vectors} speech vectors" in told


@pytest.fixture(scope="module")
def other_kept(mapped, run):
    """What another stage 1 keeps, which had dropout and averaged frames."""
    words = ["max_steps=60", "projector.dropout=0.5"]
    map_speech(run, mapped, "M2", *words, frame_average=2)
    file = mapped / "kept2.parquet"
    assert keep(mapped, "--checkpoint", str(mapped / "M2"), "--output", str(file)) == 0
    return file


def test_utterances_are_read_in_batches(mapped, tmp_path):
    words = {"features": mapped / "data" / "features", "output": tmp_path / "kept.parquet"}
    report = keep_non_pads(mapped / "M", **words, max_frames=20)
    few, usual = (
        KeptPositions(tmp_path / "kept.parquet"),
        KeptPositions(mapped / "kept.parquet"),
    )
    store = FeatureStore(mapped / "data" / "features")
    assert report.utterances == len(store) > 3
    for key in store:
        vectors = store.num_frames(key)
        assert few.positions(key, vectors).tolist() == usual.positions(key, vectors).tolist()


def test_the_llm_may_have_moved(mapped, tmp_path):
    moved = (mapped / "llm").rename(tmp_path / "elsewhere")
    try:
        assert keep(mapped) == 1
        output = str(tmp_path / "kept.parquet")
        assert keep(mapped, "--llm", str(moved), "--output", output) == 0
    finally:
        moved.rename(mapped / "llm")
    assert (tmp_path / "kept.parquet").read_bytes() == (mapped / "kept.parquet").read_bytes()


def test_the_command_averages_as_stage_1_did_and_drops_nothing_out(mapped, other_kept):
    checkpoint = mapped / "M2" / "step_60"
    vectors, total = assert_keeps_what_a_plain_loop_keeps(mapped, checkpoint, other_kept, 2)
    assert 0 < total < vectors


def test_what_another_projector_keeps_is_refused(mapped, run, capsys):
    """Another run of stage 1, on the same frames and with the same settings."""
    shutil.copytree(mapped / "M", mapped / "M3")
    file = mapped / "M3" / "step_250" / "projector.safetensors"
    save_file({name: w * 1.01 for name, w in load_file(file).items()}, file)
    words = ["--checkpoint", str(mapped / "M3"), "--output", str(mapped / "kept3.parquet")]
    assert keep(mapped, *words) == 0
    stages = {"projector_checkpoint": str(mapped / "M"), "adapter_checkpoint": None}
    outs = {"multimodal_fuse": "output_dir", "speech_generate": "output", "projector": "output_dir"}
    for recipe, out in outs.items():
        config_file = later_config(mapped, recipe, **stages, **{out: str(mapped / f"{recipe}-X")})
        kept = [f"dataset.kept={mapped / 'kept3.parquet'}"]
        if recipe != "speech_generate":
            kept += ["eval_dataset=null", "max_steps=1"]
        capsys.readouterr()
        assert run(recipe, "--config", config_file, *kept) == 1
        assert "dataset.kept: made with another projector than that of" in capsys.readouterr().err
        words = [*kept, f"projector_checkpoint={mapped / 'M3'}"]
        assert run(recipe, "--config", config_file, *words) == 0


@pytest.fixture(scope="module")
def fused(mapped, run):
    """Two steps of stage C on what is kept."""
    words = {"projector_checkpoint": str(mapped / "M"), "adapter_checkpoint": None}
    words |= {"output_dir": str(mapped / "C"), "max_steps": 2, "ctc_weight": 0.0}
    assert run("multimodal_fuse", "--config", later_config(mapped, "multimodal_fuse", **words)) == 0
    return mapped


def generate(world, run, name, *words, **changes):
    """Predictions of the model of stage C."""
    output = world / f"{name}.jsonl"
    changes |= {"checkpoint": str(world / "C"), "output": str(output)}
    changes |= {"projector_checkpoint": None, "adapter_checkpoint": None}
    file = later_config(world, "speech_generate", **changes)
    assert run("speech_generate", "--config", file, *words) == 0
    return read_jsonl(output)


def test_stage_c_reads_fewer_tokens(fused, run):
    stage = read_json(fused / "C" / "step_2" / "stage.json")
    kept = KeptPositions(fused / "kept.parquet")
    assert stage["fingerprints"]["kept"] == kept.fingerprint
    words = ["--config", fused / "multimodal_fuse.yaml", "dataset.kept=null"]
    words += ["eval_dataset.kept=null", f"output_dir={fused / 'all'}"]
    assert run("multimodal_fuse", *words) == 0
    few, many = (read_jsonl(fused / name / "metrics.jsonl") for name in ("C", "all"))
    assert sum(r["tokens"] for r in few) < sum(r["tokens"] for r in many)
    assert [r["loss"] for r in few] != [r["loss"] for r in many]


def test_a_resumed_run_goes_on_as_if_it_had_not_been_stopped(fused, run, capsys):
    words = ["--config", fused / "multimodal_fuse.yaml", f"output_dir={fused / 'C4'}"]
    assert run("multimodal_fuse", *words, "max_steps=4", "save_every_n_steps=2") == 0
    whole = [r["loss"] for r in read_jsonl(fused / "C4" / "metrics.jsonl")]
    shutil.rmtree(fused / "C4" / "step_4")
    capsys.readouterr()
    resume = [*words, "max_steps=4", "resume=true"]
    assert run("multimodal_fuse", *resume, "dataset.kept=null", "eval_dataset.kept=null") == 1
    assert "dataset.kept was another file or null" in capsys.readouterr().err
    assert run("multimodal_fuse", *resume) == 0
    assert [r["loss"] for r in read_jsonl(fused / "C4" / "metrics.jsonl")] == whole


def test_answers_do_not_depend_on_the_batch(fused, run):
    rows = [generate(fused, run, f"batch-{n}", batch_size=n) for n in (1, 5)]
    texts = [{r["id"]: r["prediction"] for r in of_run} for of_run in rows]
    assert texts[0] == texts[1] and len(set(texts[0].values())) > 1


def other_store(world):
    """The same utterances with frames of another width."""
    fingerprint = {"encoder": "other", "dim": FRAME_DIM, "frames_per_second": 50.0}
    with FeatureWriter(world / "other", fingerprint, dtype=torch.float32) as writer:
        for i in range(8):
            writer.add(f"{i}.wav", torch.randn(5 + 3 * i, FRAME_DIM), seconds=1.0 + i)
    finalize_store(world / "other")
    return world / "other"


def test_wrong_input_is_one_line(fused, run, capsys):
    def error():
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    capsys.readouterr()
    assert keep(fused, "--checkpoint", str(fused / "C")) == 1
    assert "written by recipe multimodal_fuse" in error()
    assert keep(fused, "--checkpoint", str(fused / "nowhere")) == 1
    assert "nowhere: no checkpoint there" in error()
    assert keep(fused, "--features", str(other_store(fused))) == 1
    assert "encoder is 'other' where 'noise' is needed" in error()
    other = make_llm(fused / "other-llm", seed=1)
    assert keep(fused, "--llm", str(other)) == 1
    assert "this run uses 'other-llm'" in error()

    words = ["--config", fused / "multimodal_fuse.yaml", f"output_dir={fused / 'X'}"]
    for changes, what in {
        ("dataset.kept=nowhere",): "nowhere: no such file; run torchtune-speech keep",
        ("eval_dataset.kept=null",): "eval_dataset.kept: drops pads in another way",
        ("projector.stack=2",): "made for a projector with 5 speech vectors of '0.wav', this one",
        (f"dataset.features={fused / 'other'}",): "kept.parquet: fingerprint does not fit: encoder",
        (
            f"projector_checkpoint={fused / 'C'}",
            "dataset.kept=null",
            "eval_dataset.kept=null",
        ): "was trained with pads dropped, and this run gives the LLM all speech vectors",
    }.items():
        assert run("multimodal_fuse", *words, *changes) == 1
        assert what in error()
        assert not (fused / "X").exists()

    soundfile.write(fused / "a.wav", torch.randn(16000).numpy() * 0.1, 16000)
    changes = {"checkpoint": str(fused / "C"), "projector_checkpoint": None}
    file = later_config(fused, "speech_generate", adapter_checkpoint=None, **changes)
    assert run("speech_generate", "--config", file, "dataset.kept=null") == 1
    assert "this run gives the LLM all speech vectors" in error()
    words = ["dataset=null", f"audio={fused / 'a.wav'}", "instruction=Transcribe."]
    assert run("speech_generate", "--config", file, *words, "projector.in_dim=160") == 1
    assert "was trained with pads dropped; give the stage-1 run that decided" in error()
    words = [*words, "projector.in_dim=160", f"keep_checkpoint={fused / 'M'}"]
    assert run("speech_generate", "--config", file, *words) == 1  # of noise, not of a filter bank
    assert "fingerprint does not fit: encoder" in error()
    assert run("speech_generate", "--config", file, f"keep_checkpoint={fused / 'M'}") == 1
    assert "keep_checkpoint: drops the pads of audio=...; for a data set" in error()
