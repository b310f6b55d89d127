"""The benchmark of the feature store runs; it stops by itself if the two readers differ."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_store_benchmark(tmp_path):
    out = tmp_path / "cpu.json"
    words = ["--utterances", "6", "--rows", "50", "--repeats", "1", "--out", out]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "store.py", *map(str, words)], check=True)
    section = json.loads(out.read_text())["store"]
    for name in ("ratio_vs_safetensors", "ratio_vs_safetensors_2s", "reads_per_s", "gb_per_s"):
        assert section[name] > 0
    assert section["open"]["rows"] == 50
