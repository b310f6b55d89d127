"""The benchmark of predicted memory, as a command at its smallest."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def test_predicted_is_measured(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARK), "--size", "nano", "--rows", "1", "--row", "128"]
    done = subprocess.run(
        [*command, "--dtype", "fp32", "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    section = json.loads(out.read_text())["memory"]
    assert section["setting"]["options"]["row"] == 128
    assert len(section["table"]) == 6
    for found in section["table"].values():
        assert sum(found["parts"].values()) == found["predicted"]
        assert 0.9 < found["predicted"] / found["measured"] < 1.1
    assert "multimodal_fuse, layers kept" in done.stdout
