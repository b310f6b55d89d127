"""The short form of `make faults`, and that it would notice what it is there to notice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("campaign.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A campaign of ten kills; in a process of its own, since it forks."""
    out = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(CAMPAIGN), "--kills", "10", "--seed", "5", "--out", str(out)]
    environment = os.environ | {"TORCHTUNE_SPEECH_TRACEBACK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "kills 10, lost 0, different 0"
    return out


def test_ten_kills_lose_and_change_nothing(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["kills"] == 10 == sum(report["by_job"].values())
    assert report["lost"] == report["different"] == 0 and report["faults"] == []
    assert len(report["by_job"]) == 6


def test_comparisons_notice_a_single_bit(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(CAMPAIGN.parent))
    import campaign

    runs = folder / "work" / "world" / "runs"
    for name, file, is_same in (
        ("projector", f"step_{campaign.STEPS}/projector.safetensors", campaign.same_training),
        ("projector", f"step_{campaign.STEPS}/state/optimizer.safetensors", campaign.same_training),
        ("projector", f"step_{campaign.STEPS}/state/plan.json", campaign.same_training),
        ("projector", "metrics.jsonl", campaign.same_training),
        ("extract_features", "shard-00000-00001.safetensors", campaign.same_store),
    ):
        whole, changed = runs / name / "out", runs / name / "changed"
        shutil.copytree(whole, changed)
        assert is_same(whole, changed)
        content = bytearray((changed / file).read_bytes())
        text = {"metrics.jsonl": b'"loss": ', "plan.json": b'"drawn": '}.get(Path(file).name)
        content[content.rfind(text) + len(text) if text else -1] ^= 1
        (changed / file).write_bytes(content)
        assert not is_same(whole, changed), file
        shutil.rmtree(changed)


def test_a_step_that_was_logged_and_not_saved_is_lost(folder):
    sys.path.insert(0, str(CAMPAIGN.parent))
    import campaign

    run = folder / "work" / "world" / "runs" / "projector"
    shutil.copytree(run / "out", run / "cut")
    assert campaign.lost_steps(run / "cut") == ""
    for step in (run / "cut").glob("step_*"):
        if step.name != "step_4":
            shutil.rmtree(step)
    (run / "cut" / "step_5").mkdir()  # not whole
    assert "6 steps logged" in campaign.lost_steps(run / "cut")
    shutil.rmtree(run / "cut")
