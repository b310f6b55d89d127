"""The benchmark of the loader runs; it stops by itself if batches depend on who prepares them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_loader_benchmark(tmp_path):
    out = tmp_path / "cpu.json"
    words = ["--utterances", 12, "--steps", 2, "--row", 1024, "--workers", 0, 1, "--repeats", 1]
    script = ROOT / "benchmarks" / "loader.py"
    subprocess.run([sys.executable, script, *map(str, words), "--out", out], check=True)
    section = json.loads(out.read_text())["loader"]
    assert set(section["tokens_per_s"]) == {"0", "1"}
    assert all(value > 0 for value in section["tokens_per_s"].values())
