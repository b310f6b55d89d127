"""The benchmark of scaling runs, and its shares are what dealing and sharding must give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_scaling_counts_what_is_lost(tmp_path):
    out = tmp_path / "cpu.json"
    sizes = ["--max-ranks", "8", "--steps", "4", "--gpus", "16"]
    subprocess.run(
        [sys.executable, BENCHMARKS / "scaling.py", *sizes, "--out", out],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(out.read_text())["scaling"]
    assert [(f["ranks"], f["rows_per_rank"]) for f in found["idle"]] == [(8, 1), (8, 2)]
    for figures in found["idle"]:
        assert 0 < figures["both_dealt"] < figures["both"] < 1
        assert figures["static_waiting"] < figures["static_speech"] <= figures["static_both"]
        assert figures["speech"] <= figures["static_speech"] + 1e-9
    whole, node, none = found["traffic"]
    assert [way["gpus"] for way in found["traffic"]] == [16, 8, 1]
    assert whole["weights_gb"] * 16 == node["weights_gb"] * 8 == none["weights_gb"]
    assert none["gathered_gb"] == 0
    # Every parameter but the own share, in forward and in backward.
    assert whole["gathered_gb"] == pytest.approx(2 * whole["weights_gb"] * 15)
    assert found["planning"]["seconds_per_step"] > 0
