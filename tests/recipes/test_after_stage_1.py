"""What the stages behind stage 1 of SpeechMapper take over from it, and refuse to change."""

import pytest
import yaml
from tiny_world import make_data, make_llm, write_config

from torchtune_speech.cli import main
from torchtune_speech.data import KeptPositions
from torchtune_speech.files import read_json, read_jsonl

PAD, OTHER_PAD = "<|reserved_special_token_1|>", "<|reserved_special_token_2|>"
STAGE_2 = ["sigma=0.5", f"pad_token={PAD}", "normalizer=basic", "dataset.on_too_long=skip"]


def keep(world, name):
    """The file of what a stage 1 keeps."""
    file = world / f"{name}.parquet"
    words = ["--checkpoint", world / name, "--features", world / "data" / "features"]
    assert main(["keep", *map(str, words), "--output", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory, run):
    """One step of stage 1, of another one, and of stages 2 and C behind it with all vectors."""
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    usual = {"max_steps": 1, "eval_dataset": None}
    mapper = write_config(folder, "speechmapper", normalizer="basic", pad_token=PAD, **usual)
    for name in ("M", "M2"):
        words = [f"output_dir={folder / name}", f"seed={len(name) - 1}"]
        assert run("speechmapper", "--config", mapper, *words) == 0
        keep(folder, name)
    usual["projector_checkpoint"] = str(folder / "M")
    for recipe in ("projector", "multimodal_fuse", "speech_generate"):
        changes = usual | {"adapter_checkpoint": None}
        file = write_config(folder, recipe, **changes)
        cfg = yaml.safe_load(file.read_text())
        cfg["dataset"] |= {"kept": None, "on_too_long": "fail"}
        if recipe == "speech_generate":
            cfg = {k: v for k, v in cfg.items() if k not in ("max_steps", "eval_dataset")}
        file.write_text(yaml.safe_dump(cfg))
    for recipe, words in (("projector", STAGE_2), ("multimodal_fuse", ["normalizer=basic"])):
        words = ["--config", folder / f"{recipe}.yaml", f"output_dir={folder / recipe}", *words]
        assert run(recipe, *words) == 0
    return folder


@pytest.fixture
def error(world, run, capsys):
    """A function that runs a recipe that refuses; gives its line."""

    def error(recipe, *words):
        capsys.readouterr()
        out = world / "X"
        words = [*words, f"{'output' if recipe == 'speech_generate' else 'output_dir'}={out}"]
        assert run(recipe, "--config", world / f"{recipe}.yaml", *words) == 1
        assert not out.exists()
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return line

    return error


REFUSED = [
    ("projector", [*STAGE_2, f"pad_token={OTHER_PAD}"], "pad_token: '<|reserved_special_token_2"),
    ("projector", [*STAGE_2, "normalizer=none"], "normalizer: none, but stage 1 of"),
    ("projector", ["sigma=0", "normalizer=whisper"], "normalizer: whisper, but stage 1 of"),
    ("projector", [], "normalizer: null, but stage 1 of"),  # CTC would learn other words
    ("projector", [*STAGE_2, "pad_token=' king'"], "pad_token: ' king' is a token of text"),
    ("multimodal_fuse", [], "normalizer: null, but stage 1 of"),
    ("multimodal_fuse", ["normalizer=none", "ctc_weight=0"], "normalizer: none, but stage 1 of"),
    ("multimodal_fuse", ["normalizer=bsic"], "normalizer: unknown name 'bsic'"),
]


@pytest.mark.parametrize(("recipe", "words", "what"), REFUSED)
@pytest.mark.parametrize("dry", [False, True])
def test_another_pad_or_normaliser_than_that_of_stage_1_is_refused(error, recipe, words, what, dry):
    assert f"error: {what}" in error(recipe, *words, f"dry_run={dry}")


def test_of_no_transcript_learnt_no_normaliser_is_needed(world, run):
    words = ["--config", world / "multimodal_fuse.yaml", "ctc_weight=0"]
    assert run("multimodal_fuse", *words, f"output_dir={world / 'C0'}") == 0


def test_ctc_hears_the_normalised_transcript_at_sigma_0_too(world, run):
    """From one projector and the same first step, so that only the labels tell runs apart."""
    for recipe in ("projector", "multimodal_fuse"):
        found = {}
        for normalizer in ("basic", "none", "null"):
            out = world / f"{recipe}-{normalizer}"
            words = [f"output_dir={out}", f"normalizer={normalizer}", "projector_checkpoint=null"]
            assert run(recipe, "--config", world / f"{recipe}.yaml", *words) == 0
            (row,) = read_jsonl(out / "metrics.jsonl")
            found[normalizer] = row["ctc_loss"], row["samples"]
        assert found["null"] == found["none"] != found["basic"]
        assert found["none"][1] == found["basic"][1]


@pytest.mark.parametrize("change", [f"pad_token={OTHER_PAD}", "normalizer=none"])
def test_no_run_goes_on_with_another_pad_or_normaliser(world, run, capsys, change):
    for recipe, name, words in (
        ("speechmapper", "M", []),
        ("projector", "projector", STAGE_2),
        ("multimodal_fuse", "multimodal_fuse", ["normalizer=basic"]),
    ):
        if recipe == "multimodal_fuse" and "pad" in change:
            continue
        words = [*words, change, f"output_dir={world / name}", "resume=true", "max_steps=2"]
        capsys.readouterr()
        assert run(recipe, "--config", world / f"{recipe}.yaml", *words) == 1
        key = change.split("=")[0]
        assert f"resume=true, but {key} was " in capsys.readouterr().err
        assert [p.name for p in (world / name).glob("step_*")] == ["step_1"]


def test_checkpoints_remember_their_stage_1(world):
    origins = [
        read_json(world / name / "step_1" / "stage.json")["fingerprints"]["stage_1"]
        for name in ("projector", "multimodal_fuse")
    ]
    kept = KeptPositions(world / "M.parquet").fingerprint
    assert origins[0] == origins[1]
    assert origins[0]["normalizer"] == "basic"
    assert {k: origins[0][k] for k in ("projector", "pad_token")} == {
        k: kept[k] for k in ("projector", "pad_token")
    }


def test_what_another_stage_1_keeps_is_refused_all_the_way(world, error):
    """Also behind stages 2 and C, which have met all vectors."""
    for checkpoint in ("projector", "multimodal_fuse"):
        for recipe, more in (
            ("projector", STAGE_2),
            ("multimodal_fuse", ["normalizer=basic"]),
            ("multimodal_fuse", ["normalizer=basic", "dry_run=true"]),
            ("speech_generate", []),
        ):
            words = [f"projector_checkpoint={world / checkpoint}", *more]
            line = error(recipe, *words, f"dataset.kept={world / 'M2.parquet'}")
            assert f"dataset.kept: made with another projector than {world / checkpoint}" in line


def test_what_its_own_stage_1_keeps_may_be_dropped_later(world, run):
    words = [f"projector_checkpoint={world / 'projector'}", f"dataset.kept={world / 'M.parquet'}"]
    words += [f"output={world / 'p.jsonl'}"]
    assert run("speech_generate", "--config", world / "speech_generate.yaml", *words) == 0


def test_the_pad_is_that_of_what_is_kept(world, error):
    """Where stage 1 is not asked: from a fresh projector."""
    words = [*STAGE_2, f"pad_token={OTHER_PAD}", "projector_checkpoint=null"]
    for more in ([], ["dry_run=true"]):
        line = error("projector", *words, f"dataset.kept={world / 'M.parquet'}", *more)
        assert "but dataset.kept was made with" in line


_COMPRESS = ["~projector.embed_dim", "projector.block_dims=[16,16]", "projector.ffn_dims=16"]
_COMPRESS += ["projector._component_=torchtune_speech.models.speechmapper_projector"]
_COMPRESS += ["projector.strides=1", "projector.ctc_compress=true", "projector_checkpoint=null"]


@pytest.mark.parametrize("recipe", ["projector", "multimodal_fuse"])
def test_a_head_that_would_go_deaf_is_refused(error, recipe):
    for more in ([], ["dry_run=true"]):
        line = error(recipe, *_COMPRESS, "ctc_weight=0", *more)
        assert "ctc_weight: 0, but projector.ctc_compress needs a head that hears" in line


def test_settings_for_speech_are_refused_where_there_is_none(world, error):
    texts = ["projector=null", "projector_checkpoint=null", "dataset.text_twins=true"]
    line = error("speech_generate", *texts, "nearest_tokens=true")
    assert "nearest_tokens: true, but there is no speech to round" in line
    line = error("speech_generate", *texts, f"dataset.kept={world / 'M.parquet'}")
    assert "dataset.kept: " in line and "no sample has speech" in line
    write_config(world, "lora_finetune_text")
    line = error("lora_finetune_text", f"dataset.kept={world / 'M.parquet'}")
    assert "dataset.kept: " in line and "no sample has speech" in line
