"""The benchmark of extraction, at a size of seconds."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_extraction_gives_the_frames_of_hugging_face(tmp_path):
    out = tmp_path / "cpu.json"
    command = [sys.executable, ROOT / "benchmarks" / "extract.py", "--size", "tiny"]
    command += ["--dtype", "fp32", "--repeats", "1", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    section = json.loads(out.read_text())["extract"]
    assert section["frames are equal"] and section["largest difference"] < 1e-4
    assert {
        "ratio_vs_hf",
        "ratio_vs_hf_batch1",
        "ratio_vs_hf_batch16",
        "times_real_time",
        "share of time in filter bank",
        "setting",
    } <= set(section)
    assert section["padding"] < 0.03
