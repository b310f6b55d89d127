"""Stands in for `tune run`: writes what the recipes write, in a moment.

A line of calls.jsonl for each call. FAKE_FAIL and FAKE_HANG name a recipe: one fails, the other
writes a first checkpoint, opens the pipe `hanging`, and waits for SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path

recipe, _, config, *words = sys.argv[1:]
settings = dict(word.split("=", 1) for word in words if not word.startswith("~"))
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([recipe, *words]) + "\n")


def save(step, max_steps):
    out = Path(settings["output_dir"])
    checkpoint = out / f"step_{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    wer = int(settings["max_steps"]) + int(settings["seed"])
    stage = {"step": step, "config": {"max_steps": max_steps}, "metrics": {"asr": {"wer": wer}}}
    (checkpoint / "stage.json").write_text(json.dumps(stage))
    rows = ({"step": i + 1, "tokens": 100, "seconds": 0.5} for i in range(step))
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if os.environ.get("FAKE_FAIL") == recipe:
    print("loss 1.2\nerror: train.jsonl:7: no 'target'; add it")
    sys.exit(1)
if os.environ.get("FAKE_HANG") == recipe:
    save(1, int(settings["max_steps"]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    open("hanging", "w").close()
    signal.sigwait([signal.SIGTERM])
    save(2, int(settings["max_steps"]))
    sys.exit(143)
if recipe == "speech_generate":
    stage = max(Path(settings["checkpoint"]).glob("step_*/stage.json"))
    output = Path(settings["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(json.loads(stage.read_text())["metrics"]) + "\n")
elif recipe == "speech_eval":
    scores = json.loads(Path(settings["predictions"]).read_text())
    st = {"de": {"bleu": 20.0, "comet": None, "n": 3}, "it": {"bleu": 40.0, "n": 3}}
    output = Path(settings["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(scores | {"st": st}))
else:
    save(int(settings["max_steps"]), int(settings["max_steps"]))
