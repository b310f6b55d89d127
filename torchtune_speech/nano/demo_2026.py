"""SpeechMapper beside the system of 2025: `python -m torchtune_speech.nano.demo_2026`.

Runs what is missing of the demo of 2025, whose data, LLM and stage B serve here, too. Then the
features, at three speeds, and both versions of SpeechMapper: stage 1 on transcribed speech without
the LLM, stage 2 through the frozen LLM, which knows the tasks from text (stage B), and for version
2 stage C; with all speech vectors, without pads where it says `kept`, and with the nearest tokens'
embeddings where it says `tokens`. What is there already is kept.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torchtune_speech.config import one_line_errors
from torchtune_speech.files import read_jsonl, write_json
from torchtune_speech.nano import demo
from torchtune_speech.nano._pipeline import (
    PipelineStep,
    command,
    run_pipeline,
    training_step,
    tune,
)
from torchtune_speech.nano.report_2026 import (
    SYSTEMS,
    format_cost_table,
    format_score_table,
    report_2026,
)

FAMILY = "nano-2026"
OUT = Path("runs/nano-2026")  # as in configs/nano-2026
V1 = ["~projector.ctc_vocab_size", "~projector.ctc_block", "~projector.ctc_compress"]
# At three speeds, as version 2, each utterance would return a third as often, and it underfits.
V1_STAGE_1 = ["dataset.ctc=null", "dataset.speeds=[1.0]", "learning_rate.projector.lr=1e-3"]
V1_LOSS = ["loss.squared_error=5", "loss.pad_squared_error=5", "loss.cosine=100"]
V1_LOSS += ["loss.absolute=0", "loss.contrast=0", "loss.ctc=0"]
ON_TEST = ["eval_every_n_steps=null", "eval_dataset.manifest=runs/nano/data/test.jsonl"]
ON_TEST += ["eval_samples=208"]  # all, once, at the end: nothing is chosen by it
ALL_TASKS = [
    "dataset.tasks=[asr,st,sqa]",
    "mixture={task: {asr: 0.25, st: 0.35, sqa: 0.4}}",
    "sigma=0",
]
NO_EVAL = ["eval_dataset=null"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the demo.

    Args:
        arguments: words of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano.demo_2026",
        description="Train and score both versions of SpeechMapper beside the system of 2025.",
        epilog=f"Writes {OUT}/report.json; start again by removing {OUT}.",
    )
    parser.parse_args(arguments)
    with one_line_errors():
        run_demo()


def run_demo() -> None:
    """Run what is not there yet, print the tables and write the report."""
    run_pipeline(demo.demo_steps(), demo.OUT / "seconds.json")
    seconds = run_pipeline(steps_2026(), OUT / "seconds.json")
    predictions = {name: read_jsonl(prediction_file(name)) for name in SYSTEMS}
    report = report_2026(
        predictions, folders=training_folders(), seconds=seconds, normalizer=demo.NORMALIZER
    )
    write_json(OUT / "report.json", report)
    print("\n" + format_score_table(report))
    print("\n" + format_cost_table(report))
    print(f"\n{sum(seconds.values()) / 60:.1f} minutes beside the demo; report: {OUT}/report.json")


def steps_2026() -> list[PipelineStep]:
    """The steps behind those of the demo, in order."""
    steps = [
        PipelineStep(
            "features 2026", OUT / "features" / "index.parquet", tune(FAMILY, "extract_features")
        ),
        _training("v1", "stage_1", "speechmapper", *V1, *V1_LOSS, *V1_STAGE_1, *ON_TEST),
        _training("v2", "stage_1", "speechmapper", *ON_TEST),
        PipelineStep("v2 keep", OUT / "v2" / "kept.parquet", _keep),
        _training("v1", "stage_2", "projector", *_v1_in_stage_2(), *NO_EVAL),
        _training("v1", "stage_2_tasks", "projector", *_v1_in_stage_2(), *ALL_TASKS, *NO_EVAL),
        _training("v2", "stage_2", "projector", *NO_EVAL),
        _training("v2", "stage_2_kept", "projector", *_kept(), *NO_EVAL),
        _training("v2", "stage_2_tasks", "projector", *_kept(), *ALL_TASKS, *NO_EVAL),
        _training("v2", "C", "multimodal_fuse", *NO_EVAL),
        _training("v2", "C_kept", "multimodal_fuse", *_kept(), *NO_EVAL),
    ]
    for name, options in system_options().items():
        file = prediction_file(name)
        run = tune(FAMILY, "speech_generate", f"output={file}", *options)
        steps.append(PipelineStep(f"predict {name}", file, run))
    return steps


def system_options() -> dict[str, list[str]]:
    """Name of each system of 2026 to options of `speech_generate`."""
    loras = "adapter_checkpoint=runs/nano/B"
    kept, tokens = _kept(), "nearest_tokens=true"
    v1, v2 = OUT / "v1", OUT / "v2"
    return {
        "v1 1+B": [*V1, f"projector_checkpoint={v1}/stage_1", loras],
        "v1 2+B": [*V1, f"projector_checkpoint={v1}/stage_2", loras],
        "v1 2+B tasks": [*V1, f"projector_checkpoint={v1}/stage_2_tasks", loras],
        "v2 1+B": [f"projector_checkpoint={v2}/stage_1", loras],
        "v2 1+B kept": [f"projector_checkpoint={v2}/stage_1", loras, *kept],
        "v2 1+B tokens": [f"projector_checkpoint={v2}/stage_1", loras, *kept, tokens],
        "v2 2+B": [f"projector_checkpoint={v2}/stage_2", loras],
        "v2 2+B kept": [f"projector_checkpoint={v2}/stage_2_kept", loras, *kept],
        "v2 2+B tokens": [f"projector_checkpoint={v2}/stage_2_kept", loras, *kept, tokens],
        "v2 2+B tasks": [f"projector_checkpoint={v2}/stage_2_tasks", loras, *kept],
        "v2 C": [f"checkpoint={v2}/C"],
        "v2 C kept": [f"checkpoint={v2}/C_kept", *kept],
    }


def prediction_file(name: str) -> Path:
    """Where the predictions of a system are."""
    year, _, system = name.partition(" ")
    folder = demo.OUT if year == "2025" else OUT / year
    return folder / f"predictions-{system.replace(' ', '-')}.jsonl"


def training_folders() -> dict[str, Path]:
    """Name of each training stage to its run, in the order of the table."""
    stages = {f"2025 {stage}": demo.OUT / stage for stage in ("A", "B", "C")}
    stages |= {f"v1 {s}": OUT / "v1" / s for s in ("stage_1", "stage_2", "stage_2_tasks")}
    names = ("stage_1", "stage_2", "stage_2_kept", "stage_2_tasks", "C", "C_kept")
    return stages | {f"v2 {s}": OUT / "v2" / s for s in names}


def _training(version: str, name: str, recipe: str, *options: str) -> PipelineStep:
    """A recipe with its config of this family, into a folder of its own."""
    folder = OUT / version / name
    return training_step(FAMILY, recipe, f"{version} {name}", *options, folder=folder)


def _keep() -> None:
    command(
        *("torchtune-speech", "keep", "--checkpoint", str(OUT / "v2" / "stage_1")),
        *("--features", str(OUT / "features"), "--output", str(OUT / "v2" / "kept.parquet")),
    )


def _v1_in_stage_2() -> list[str]:
    options = [f"projector_checkpoint={OUT}/v1/stage_1", "dataset.ctc=null", "ctc_weight=0"]
    return [*V1, *options]


def _kept() -> list[str]:
    return [f"dataset.kept={OUT}/v2/kept.parquet"]


if __name__ == "__main__":
    main()
