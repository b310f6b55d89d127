"""The benchmark runs as a command; what it claims to be equal is."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def test_ours_and_the_peer_are_equal_and_compared(tmp_path):
    words = ["--size", "nano", "--pairs", "1", "--peer-batch-sizes", "1", "4", "--dtype", "fp32"]
    files = ["--out", str(tmp_path / "out.json"), "--trace", str(tmp_path / "trace.json")]
    subprocess.run([sys.executable, BENCHMARK, *words, *files], check=True, timeout=280)
    found = json.loads((tmp_path / "out.json").read_text())["train_step_nano"]
    assert max(found["relative_difference"].values()) < 1e-3
    assert set(found["relative_difference"]) == {
        *("speech_loss", "text_loss", "projector_gradient"),
        *("speech_lora_gradient", "text_lora_gradient"),
    }
    ratios = {"ratio_vs_padded", "ratio_vs_grouped", "ratio_vs_one_by_one"}
    assert {*ratios, "text_ratio_vs_torchtune"} < set(found)
    table = found["table"]
    assert set(table) == {"ours", "stage A", "torchtune", "padded", "grouped", "one by one"}
    assert "text" not in table["stage A"] and "speech" not in table["torchtune"]
    assert table["one by one"]["fill"] == {"speech": 1, "text": 1} != table["padded"]["fill"]
    assert found["setting"]["versions"]["torch"]
    ours = table["ours"]
    assert 0.95 < ours["fill"]["speech"] <= 1
    assert ours["useful_flops"]["speech"] > 4 * 4 * 192 * (192 + 3 * 512)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
