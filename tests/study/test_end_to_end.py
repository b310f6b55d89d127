"""One real study in a tiny world: stage C from nothing, answers, scores."""

import os
from pathlib import Path

import yaml
from tiny_world import make_data, make_llm, write_config

from torchtune_speech.cli import main
from torchtune_speech.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]


def test_a_study_of_the_joint_run(tmp_path, monkeypatch, capsys):
    make_llm(tmp_path / "llm")
    make_data(tmp_path / "data")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study_of_joint_training(tmp_path), sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "recipes")]))
    assert main(["study", "tiny.yaml"]) == 0
    out = Path("runs/studies/tiny/tiny")
    table = capsys.readouterr().out
    assert table.startswith((out / "table.md").read_text())
    (row,) = read_json(out / "study.json")["runs"]
    report = read_json(out / "joint/seed_3/score/report.json")
    assert row["scores"] == {
        "WER": report["asr"]["wer"],
        "BLEU": (report["st"]["de"]["bleu"] + report["st"]["it"]["bleu"]) / 2,
    }
    steps = read_jsonl(out / "joint/seed_3/C/metrics.jsonl")
    assert row["training_steps"] == len(steps) == 2
    assert row["training_tokens"] == sum(step["tokens"] for step in steps) > 0
    stage = read_json(out / "joint/seed_3/C/step_2/stage.json")
    assert stage["config"]["projector_checkpoint"] is None and stage["config"]["seed"] == 3
    weights = {path.name for path in (out / "joint/seed_3/C/step_2").glob("*.safetensors")}
    assert weights == {"projector.safetensors", "adapter_model.safetensors"}
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(["study", "tiny.yaml"]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def study_of_joint_training(world):
    """The study `decoupled_vs_joint`, its joint variant, as small as can be."""
    return {
        "title": "Can both be learnt at once?",
        "varied": "training",
        "seeds": [3],
        "families": {"tiny": None},
        "variants": {"joint": {"checkpoint": None}},
        "pipeline": {
            "C": {
                "recipe": "multimodal_fuse",
                "config": str(write_config(world, "multimodal_fuse")),
                "set": {
                    "projector_checkpoint": "${variant.checkpoint}",
                    "adapter_checkpoint": "${variant.checkpoint}",
                    "max_steps": 2,
                    "eval_dataset": None,
                    "seed": "${seed}",
                },
            },
            "predict": {
                "recipe": "speech_generate",
                "config": str(write_config(world, "speech_generate")),
                "set": {"checkpoint": "${step.C}", "dataset": {"tasks": ["asr", "st"]}},
            },
            "score": {
                "recipe": "speech_eval",
                "config": "nano/speech_eval",
                "set": {"predictions": "${step.predict}", "html": False},
            },
        },
        "scores": {"WER": "score.asr.wer", "BLEU": "score.st.*.bleu"},
    }
