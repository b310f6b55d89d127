"""The whole system in the nano world: `python -m torchtune_speech.nano.demo`.

Speaks the sentences, pretrains the small LLM, and runs the same recipes with `tune run` as for the
real models: features, stages A, B and C, predictions, scores. What is there already is kept, so
that a demo that was stopped goes on where it was.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torchtune_speech.config import one_line_errors
from torchtune_speech.files import read_json, read_jsonl, write_json
from torchtune_speech.nano.report import SYSTEMS, demo_report, format_demo_table

NORMALIZER = "whisper"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the demo.

    Args:
        arguments: words of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano.demo",
        description="Train and score a speech LLM of a few million parameters on a laptop's CPU.",
        epilog="Writes runs/nano/report.json; start again from nothing by removing runs/nano.",
    )
    parser.parse_args(arguments)
    with one_line_errors():
        run_demo(Path("runs/nano"))


def run_demo(out: Path) -> None:
    """Run what is not there yet, print the table and write the report.

    Args:
        out: folder of the demo, the one that configs/nano names.
    """
    seconds = _seconds_so_far(out)
    for name, product, words in _commands(out):
        if product.exists():
            continue
        print(f"\n== {name}: {' '.join(words)}", flush=True)
        began = time.perf_counter()
        done = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        seconds[name] = round(time.perf_counter() - began, 1)
        write_json(out / "seconds.json", seconds)
    predictions = {name: read_jsonl(out / f"predictions-{name}.jsonl") for name in SYSTEMS}
    report = demo_report(predictions, seconds=seconds, normalizer=NORMALIZER)
    write_json(out / "report.json", report)
    print("\n" + format_demo_table(report))
    print(f"\n{sum(seconds.values()) / 60:.1f} minutes in all; report: {out / 'report.json'}")
    print("Try it on one file:")
    print(
        "  tune run speech_generate --config nano/speech_generate checkpoint=runs/nano/C \\\n"
        f"    dataset=null audio={out}/data/audio/test-00000.flac \\\n"
        '    instruction="Transcribe the English content."'
    )


def _commands(out: Path) -> list[tuple[str, Path, list[str]]]:
    """Name, what shows that it was done, and command of each step, in order."""
    python = "python" if os.name != "nt" else "python.exe"
    steps = [
        (
            "world",
            out / "data" / "world.json",
            [python, "-m", "torchtune_speech.nano", "world", "--out", f"{out}/data"],
        ),
        (
            "llm",
            out / "llm" / "config.json",
            [
                python,
                "-m",
                "torchtune_speech.nano",
                "llm",
                "--data",
                f"{out}/data",
                "--out",
                f"{out}/llm",
            ],
        ),
        ("features", out / "features" / "index.parquet", _tune("extract_features")),
    ]
    for stage, recipe in (
        ("A", "projector"),
        ("B", "lora_finetune_text"),
        ("C", "multimodal_fuse"),
    ):
        steps.append((stage, out / stage, _tune(recipe)))
    for name, options in SYSTEMS.items():
        file = out / f"predictions-{name}.jsonl"
        steps.append(
            (f"predict {name}", file, _tune("speech_generate", f"output={file}", *options))
        )
    return steps


def _tune(recipe: str, *options: str) -> list[str]:
    return ["tune", "run", recipe, "--config", f"nano/{recipe}", *options]


def _seconds_so_far(out: Path) -> dict[str, float]:
    file = out / "seconds.json"
    return read_json(file) if file.is_file() else {}


if __name__ == "__main__":
    main()
