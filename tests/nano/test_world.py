import json
from collections import Counter
from dataclasses import replace

import pytest

from torchtune_speech.data import PromptTemplates, load_manifest, text_twin
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import contains_answer
from torchtune_speech.files import read_jsonl
from torchtune_speech.nano import TEST_VOICES, TRAIN_VOICES, build_world
from torchtune_speech.nano import _world as world_module
from torchtune_speech.nano.__main__ import main

pytest.importorskip("espeakng_loader")

SMALL = {"num_train": 6, "num_dev": 2, "num_test": 4, "num_text": 12, "num_lm": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("nano") / "data"
    build_world(out_dir, **SMALL)
    return out_dir


@pytest.fixture
def silent(monkeypatch):
    """Worlds without their audio, so that a large one takes a moment."""
    monkeypatch.setattr(world_module, "write_speech", lambda jobs, **_: 0.0)


def test_manifests_load_with_their_audio(folder):
    counts = {
        split: Counter(sample.task for sample in load_manifest(folder / f"{split}.jsonl"))
        for split in ("train", "dev", "test", "text")
    }
    assert counts == {
        "train": {"asr": 6, "st": 18, "sqa": 6},
        "dev": {"asr": 2, "st": 6, "sqa": 4},
        "test": {"asr": 4, "st": 12, "sqa": 8},
        "text": {"mt": 12, "qa": 12},
    }
    assert {path.suffix for path in (folder / "audio").iterdir()} == {".flac"}
    assert len(list((folder / "audio").iterdir())) == 12


def test_rows_of_one_utterance(folder):
    rows = load_manifest(folder / "train.jsonl")[:5]
    assert [row.id for row in rows] == [
        "train-00000-asr",
        "train-00000-st-de",
        "train-00000-st-it",
        "train-00000-st-zh",
        "train-00000-sqa-en",
    ]
    assert len({row.audio[0].key for row in rows}) == 1
    assert {row.source_text for row in rows} == {rows[0].target}
    assert {row.speaker for row in rows} <= set(TRAIN_VOICES)
    assert [text_twin(row) and text_twin(row).task for row in rows] == [
        None,
        "mt",
        "mt",
        "mt",
        "qa",
    ]


def test_prompts_take_every_row(folder):
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    for split in ("test", "text"):
        for sample in load_manifest(folder / f"{split}.jsonl"):
            assert len(prompts.messages(sample)) == 2
            if sample.extra.get("answerable") is False:
                assert sample.target == prompts.unanswerable(sample.target_lang)


def test_nothing_of_the_test_is_in_training(tmp_path, silent):
    build_world(tmp_path / "w", num_train=1500, num_dev=20, num_test=40, num_text=800, num_lm=600)
    rows = {
        split: read_jsonl(tmp_path / "w" / f"{split}.jsonl")
        for split in ("train", "dev", "test", "text", "lm_text")
    }
    said = {
        split: {row["source_text"] for row in rows[split]}
        for split in ("train", "dev", "test", "text")
    }
    assert len(said["test"]) == 40
    for split in ("train", "dev", "text"):
        assert not said["test"] & said[split]
    lm_text = "\n".join(text for row in rows["lm_text"] for turn in row["turns"] for text in turn)
    held_out = {row["target"] for split in ("dev", "test") for row in rows[split]}
    for text in held_out:
        # Answers are short and may stand anywhere; whole sentences may not. Chinese has no spaces.
        is_short = len(text) < 12 if "一" <= text[0] <= "鿿" else len(text.split()) < 6
        assert is_short or text not in lm_text
    for split in ("train", "text"):
        assert not said["dev"] & said[split]
    assert {row["speaker"] for row in rows["test"]} == set(TEST_VOICES)
    assert not set(TEST_VOICES) & {row["speaker"] for row in rows["train"]}
    words = {
        split: {word.strip(".").lower() for text in said[split] for word in text.split()}
        for split in ("train", "test")
    }
    assert len(words["train"]) >= 200
    assert words["test"] <= words["train"]


def test_questions_are_balanced(tmp_path, silent):
    build_world(tmp_path / "w", num_train=480, num_dev=0, num_test=200, num_text=480, num_lm=0)
    for split, every in (("train", 3), ("test", 5), ("text", 3)):
        rows = read_jsonl(tmp_path / "w" / f"{split}.jsonl")
        asked = [row for row in rows if row["task"] in ("sqa", "qa")]
        for lang in ("en", "de", "it", "zh"):
            mine = [row for row in asked if row["target_lang"] == lang]
            assert len(mine) == len(asked) / 4 >= 100
            assert sum(not row["answerable"] for row in mine) == len(mine) / every
            voices = Counter(row.get("speaker") for row in mine)
            assert split != "test" or min(voices.values()) >= 40


def test_same_seed_same_rows(tmp_path, silent):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_world(tmp_path / name, **SMALL, seed=seed)
    for file in ("train.jsonl", "test.jsonl", "text.jsonl", "lm_text.jsonl"):
        first, second, other = ((tmp_path / name / file).read_text() for name in "abc")
        assert first == second != other


def test_built_once(folder, monkeypatch):
    monkeypatch.setattr(world_module, "write_speech", lambda *_, **__: pytest.fail("spoke again"))
    assert build_world(folder, **SMALL) == json.loads((folder / "world.json").read_text())
    with pytest.raises(InputError, match="world.json: made with"):
        build_world(folder, **SMALL, seed=1)


def test_fluent_answers_beside_the_short_ones(folder, capsys):
    assert main(["fluent", "--data", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {
        f"{split}_fluent.jsonl" for split in ("train", "dev", "test", "text")
    }
    for split in ("train", "dev", "test", "text"):
        short = load_manifest(folder / f"{split}.jsonl")
        fluent = load_manifest(folder / f"{split}_fluent.jsonl")  # with the same audio
        for a, b in zip(short, fluent, strict=True):
            assert replace(a, target=b.target) == b
            changes = a.extra.get("answerable", False)
            assert (a.target != b.target) == changes
            assert contains_answer(a.target, b.target, a.target_lang)
    by_id = {sample.id: sample.target for sample in load_manifest(folder / "text_fluent.jsonl")}
    assert any(len(target.split()) > 3 for id_, target in by_id.items() if "-qa-en" in id_)


def test_fluent_answers_want_a_world(tmp_path, capsys):
    assert main(["fluent", "--data", str(tmp_path)]) == 1
    assert "make the world first" in capsys.readouterr().err
    row = {"source_text": "Hello.", "question_kind": "who", "target_lang": "en", "answerable": True}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["fluent", "--data", str(tmp_path)]) == 1
    assert "'Hello.'; give the folder of a nano world" in capsys.readouterr().err


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        build_world(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("no voice")

    monkeypatch.setattr(world_module, "write_speech", fail)
    with pytest.raises(InputError, match="no voice"):
        build_world(tmp_path / "w", **SMALL)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, silent, capsys):
    numbers = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["world", "--out", str(tmp_path / "w"), *numbers]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == SMALL | {"seed": 0}
    assert main(["world", "--out", str(tmp_path / "w")]) == 1
    assert "remove the folder" in capsys.readouterr().err
