"""A small study of fake recipes."""

import json
import sys
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def tree():
    """Content of a study's file: two lengths of C after one A, three seeds."""
    return {
        "title": "How long?",
        "varied": "steps of C",
        "seeds": [0, 1, 2],
        "families": {"tiny": {"a": 5}, "large": {"a": 50, "without": ["20"]}},
        "variants": {10: {"steps": 10}, 20: {"steps": 20}},
        "pipeline": {
            "A": {
                "recipe": "projector",
                "config": "fake.yaml",
                "set": {"max_steps": "${family.a}", "seed": 0},
            },
            "C": {
                "recipe": "multimodal_fuse",
                "config": "fake.yaml",
                "set": {
                    "projector_checkpoint": "${step.A}",
                    "max_steps": "${variant.steps}",
                    "seed": "${seed}",
                },
            },
            "predict": {
                "recipe": "speech_generate",
                "config": "fake.yaml",
                "set": {"checkpoint": "${step.C}"},
            },
            "score": {
                "recipe": "speech_eval",
                "config": "fake.yaml",
                "set": {"predictions": "${step.predict}"},
            },
        },
        "scores": {"WER": "score.asr.wer", "BLEU": "score.st.*.bleu"},
    }


@pytest.fixture
def write_study(tmp_path, monkeypatch):
    """A function that writes `how_long.yaml`, in an empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    Path("fake.yaml").write_text("max_steps: 1\n")

    def write(tree):
        Path("how_long.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return "how_long.yaml"

    return write


@pytest.fixture
def launcher():
    """What stands in for `tune run`."""
    return [sys.executable, str(Path(__file__).with_name("fake_tune.py"))]


@pytest.fixture
def calls(tmp_path):
    """A function that gives the calls of fake recipes since the last time."""

    def read():
        file = tmp_path / "calls.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return read
