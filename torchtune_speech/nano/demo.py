"""The whole system in the nano world: `python -m torchtune_speech.nano.demo`.

Speaks the sentences, pretrains the small LLM, and runs the same recipes with `tune run` as for the
real models: features, stages A, B and C, predictions, scores. What is there already is kept, so
that a demo that was stopped goes on where it was.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torchtune_speech.config import one_line_errors
from torchtune_speech.files import read_jsonl, write_json
from torchtune_speech.nano._pipeline import (
    PipelineStep,
    command,
    run_pipeline,
    training_step,
    tune,
)
from torchtune_speech.nano.report import SYSTEMS, demo_report, format_demo_table

NORMALIZER = "whisper"
OUT = Path("runs/nano")  # as in configs/nano


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the demo.

    Args:
        arguments: words of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano.demo",
        description="Train and score a speech LLM of a few million parameters on a laptop's CPU.",
        epilog=f"Writes {OUT}/report.json; start again from nothing by removing {OUT}.",
    )
    parser.parse_args(arguments)
    with one_line_errors():
        run_demo()


def run_demo() -> None:
    """Run what is not there yet, print the table and write the report."""
    seconds = run_pipeline(demo_steps(), OUT / "seconds.json")
    predictions = {name: read_jsonl(OUT / f"predictions-{name}.jsonl") for name in SYSTEMS}
    report = demo_report(predictions, seconds=seconds, normalizer=NORMALIZER)
    write_json(OUT / "report.json", report)
    print("\n" + format_demo_table(report))
    print(f"\n{sum(seconds.values()) / 60:.1f} minutes in all; report: {OUT / 'report.json'}")
    # As they can be typed here, whether or not the environment is active.
    tools = os.path.relpath(Path(sys.executable).parent)
    print(
        "\nTry it on one file:\n"
        f"  {tools}/tune run speech_generate --config nano/speech_generate checkpoint={OUT}/C \\\n"
        f"    dataset=null audio={OUT}/data/audio/test-00000.flac \\\n"
        '    instruction="Transcribe the English content."\n'
        f"See what it got wrong, sample by sample, in {OUT}/scores.html:\n"
        f"  {tools}/tune run speech_eval --config nano/speech_eval \\\n"
        f"    predictions={OUT}/predictions-C.jsonl output={OUT}/scores.json\n"
        "Is fusing better than the projector alone, or is it chance?\n"
        f"  {tools}/torchtune-speech compare {OUT}/predictions-A.jsonl {OUT}/predictions-C.jsonl"
    )


def demo_steps() -> list[PipelineStep]:
    """The steps of the demo, in order."""
    data, llm = str(OUT / "data"), str(OUT / "llm")
    nano = ("python", "-m", "torchtune_speech.nano")
    steps = [
        PipelineStep(
            "world", OUT / "data" / "world.json", lambda: command(*nano, "world", "--out", data)
        ),
        PipelineStep(
            "fluent answers",  # for `torchtune-speech study answer_style`
            OUT / "data" / "text_fluent.jsonl",
            lambda: command(*nano, "fluent", "--data", data),
        ),
        PipelineStep(
            "llm",
            OUT / "llm" / "config.json",
            lambda: command(*nano, "llm", "--data", data, "--out", llm),
        ),
        PipelineStep(
            "features", OUT / "features" / "index.parquet", tune("nano", "extract_features")
        ),
        training_step("nano", "projector", "A"),
        training_step("nano", "lora_finetune_text", "B"),
        training_step("nano", "multimodal_fuse", "C"),
    ]
    for name, options in SYSTEMS.items():
        file = OUT / f"predictions-{name}.jsonl"
        run = tune("nano", "speech_generate", f"output={file}", *options)
        steps.append(PipelineStep(f"predict {name}", file, run))
    return steps


if __name__ == "__main__":
    main()
