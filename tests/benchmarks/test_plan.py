"""The benchmark of the plan runs, and what it counts on the way is as it must be."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_plan_counts_every_sample_once(tmp_path):
    out = tmp_path / "cpu.json"
    sizes = ["--samples", "6000", "--fill-samples", "3000", "--rows-per-step", "8"]
    subprocess.run(
        [sys.executable, BENCHMARKS / "plan.py", *sizes, "--out", out],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(out.read_text())["plan"]
    assert found["samples"] == 6000
    assert found["every_sample_once"]
    assert found["resumed_equals_whole"]
    assert {"seconds", "peak_gb", "restart_s", "steps"} <= set(found)
    assert set(found["fill"]) == {"512", "4096", "8192"}
    for figures in found["fill"]["512"].values():
        assert 0.97 < figures["speech"] <= 1
        assert 0 < figures["speech_static"] <= figures["speech"]
    for figures in found["twins"]:
        assert 0 < figures["text"] <= figures["both"] <= 1
