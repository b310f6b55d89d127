"""Kills runs at random moments, lets them go on, and compares with runs that were left alone.

`make faults` runs the long form; `test_campaign.py` a short one. Children are forked from a process
that has loaded the libraries and never used them (what a thread holds in the moment of a fork stays
held for ever in the child), so that a kill and its recovery take a second or two. Half of the
kills come after a random time, half at a random file operation (open, rename, mkdir, remove) below
the output folder, so that the moments within a checkpoint, a shard or a predictions file are hit,
too.
"""

import argparse
import faulthandler
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # as tests/conftest.py does for the tests
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # No thread may live in the parent of a fork: neither a pool's nor that of pyarrow's jemalloc.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"

import numpy as np
import soundfile
import torch
from tiny_world import make_data, make_llm, write_config
from tqdm import tqdm

from torchtune_speech.config import recipe_path
from torchtune_speech.features import FeatureStore, verify_store
from torchtune_speech.files import read_json, read_jsonl, write_json
from torchtune_speech.training import list_checkpoints

STEPS = 6
TRAINING = ("projector", "lora_finetune_text", "multimodal_fuse", "speechmapper")
RECIPES = (*TRAINING, "extract_features", "speech_generate")
HANGS = 1000
_TIMES = ("seconds", "tokens_per_second", "frames_per_second")
_IN_A_ROW = (1, 1, 2, 3, 20)
_LONGEST_S, _POLL_S = 60.0, 0.01
_FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


@dataclass(frozen=True, slots=True)
class Job:
    """Something that is killed.

    Attributes:
        name: for the report.
        recipe: name of the recipe.
        words: of its command line, but for the output.
        output: key of the output.
        is_same: whether two outputs hold the same results.
        on_resume: words that a second run needs.
        lost: what is wrong with the output of a killed run before it goes on; empty if nothing.
    """

    name: str
    recipe: str
    words: tuple[str, ...]
    output: str
    is_same: Callable[[Path, Path], bool]
    on_resume: tuple[str, ...] = ()
    lost: Callable[[Path], str] = lambda output: ""


def reference_output(world: Path, name: str) -> Path:
    """Where the run of a job that is left alone writes to."""
    return world / "runs" / name / "out"


def build_world(world: Path) -> int:
    """Makes a tiny LLM, a store with rows, and audio, below an empty folder; returns 0."""
    make_llm(world / "llm")
    make_data(world / "data")
    rng = np.random.default_rng(0)
    rows = []
    (world / "audio").mkdir()
    for i in range(24):
        noise = rng.normal(size=4000 + 997 * i) * 0.1
        soundfile.write(world / "audio" / f"{i}.wav", noise, 16_000)
        rows.append({"id": str(i), "task": "asr", "audio": f"{i}.wav", "target": "The king."})
    (world / "audio" / "manifest.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return 0


def build_jobs(world: Path) -> list[Job]:
    """Writes the jobs' configs.

    Args:
        world: where `build_world` made it.

    Returns:
        Stages A, B and C, stage 1 of SpeechMapper, extraction and generation; C and generation
        start from A and B.
    """
    saving = {
        "max_steps": STEPS,
        "save_every_n_steps": 1,
        "keep_last": 2,
        "eval_every_n_steps": 3,
        "eval_samples": 2,
        "spec_augment": {"time_masks": 1, "time_width": 4},
    }
    before = {
        "projector_checkpoint": str(reference_output(world, "projector")),
        "adapter_checkpoint": str(reference_output(world, "lora_finetune_text")),
    }
    changes = {
        "projector": saving,
        "lora_finetune_text": {k: v for k, v in saving.items() if k != "spec_augment"},
        "multimodal_fuse": saving | before,
        "speechmapper": saving,
        "speech_generate": before | {"max_new_tokens": 6, "batch_size": 4},
    }
    files = {name: write_config(world, name, **values) for name, values in changes.items()}
    jobs = [
        Job(
            name,
            name,
            ("--config", str(files[name])),
            "output_dir",
            same_training,
            ("resume=true",),
            lost_steps,
        )
        for name in TRAINING
    ]
    extraction = ("--config", "nano/extract_features", "batch_seconds=1", "shard_mb=0.02")
    extraction += (f"manifest={world / 'audio' / 'manifest.jsonl'}",)
    jobs.append(Job("extract_features", "extract_features", extraction, "output_dir", same_store))
    generation = ("--config", str(files["speech_generate"]))
    jobs.append(Job("speech_generate", "speech_generate", generation, "output", same_rows))
    return jobs


def same_training(one: Path, two: Path) -> bool:
    """Whether two runs logged the same steps and scores, and ended in the same bits."""
    logs = [_rows(run / "metrics.jsonl") for run in (one, two)]
    scores = [
        [(row["step"], row["report"]) for row in read_jsonl(run / "evaluations.jsonl")]
        for run in (one, two)
    ]
    metrics = [read_json(run / f"step_{STEPS}" / "stage.json")["metrics"] for run in (one, two)]
    ends = [run / f"step_{STEPS}" for run in (one, two)]
    names = [sorted(str(f.relative_to(end)) for f in end.rglob("*") if f.is_file()) for end in ends]
    names_equal = names[0] == names[1] and "state/plan.json" in names[0]
    return (
        logs[0] == logs[1]
        and len(logs[0]) == STEPS
        and scores[0] == scores[1]
        and metrics[0] == metrics[1] == scores[0][-1][1]
        and names_equal
        and all(
            (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
            for name in names[0]
            if name not in ("stage.json", "adapter_config.json")  # which name the output folder
        )
    )


def lost_steps(output: Path) -> str:
    """Says if more than the step in hand is gone: each step is saved."""
    log = output / "metrics.jsonl"
    logged = log.read_bytes().count(b"\n") if log.is_file() else 0
    found = list_checkpoints(output) if output.is_dir() else []
    saved = int(found[-1].name.removeprefix("step_")) if found else 0
    return f"{logged} steps logged, {saved} saved" if saved < logged - 1 else ""


def same_store(one: Path, two: Path) -> bool:
    """Whether two feature stores are sound and hold the same frames, bit by bit."""
    if verify_store(one) or verify_store(two):
        return False
    a, b = FeatureStore(one), FeatureStore(two)
    return a.keys() == b.keys() and all(
        torch.equal(a[key].view(torch.int16), b[key].view(torch.int16)) for key in a.keys()
    )


def same_rows(one: Path, two: Path) -> bool:
    """Whether two files of JSON lines are the same, but for how long a row took."""
    return _rows(one) == _rows(two)


def _rows(file: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in _TIMES} for row in read_jsonl(file)]


def run_forked(
    job: Job,
    output: Path,
    log: Path,
    *,
    resume: bool = False,
    kill_after_s: float | None = None,
    kill_at_event: int | None = None,
    signal_number: int = signal.SIGKILL,
    count_into: Path | None = None,
) -> int:
    """Runs a job in a forked child.

    Args:
        job: what to run.
        output: where to.
        log: file for what the child prints; it is added to.
        resume: whether this is not the first run.
        kill_after_s: send the signal after so many seconds.
        kill_at_event: send it at this file operation below the output's folder, counted from 0.
        signal_number: which one.
        count_into: file for the number of file operations of a run that is left alone.

    Returns:
        Exit code; minus the number of the signal that ended it; ``HANGS`` if nothing did.
    """
    words = [*job.words, f"{job.output}={output}", *(job.on_resume if resume else ())]
    child = _fork(
        log,
        lambda: _run_recipe(job.recipe, words, output, kill_at_event, signal_number, count_into),
    )
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal_number)  # a child that has ended waits for us: its id is its own
    return _wait(child)


def _fork(log: Path, work: Callable[[], int]) -> int:
    """Forks a child that does some work, prints to `log`, and exits with the work's result."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"threads {', '.join(threads)}: their locks would be held in the child")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        faulthandler.dump_traceback_later(_LONGEST_S - 5, file=file)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    """Waits for a child: its exit code, or ``HANGS`` if it had to be killed."""
    end = time.monotonic() + _LONGEST_S
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


def _run_recipe(
    recipe: str,
    words: Sequence[str],
    output: Path,
    kill_at_event: int | None,
    signal_number: int,
    count_into: Path | None,
) -> int:
    """Runs a recipe in this process, which gets a signal at one of its file operations."""
    events = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal events
        if event not in _FILE_EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if not os.fspath(arguments[0]).startswith(str(output.parent)):
            return
        if events == kill_at_event:
            os.kill(os.getpid(), signal_number)
        events += 1

    sys.addaudithook(watch)
    sys.argv = [recipe, *words]
    spec = importlib.util.spec_from_file_location(recipe, recipe_path(recipe))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = 0
    try:
        module.recipe_main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    if count_into is not None:
        count_into.write_text(str(events))
    return code


@dataclass(frozen=True, slots=True)
class Reference:
    """A run that was left alone.

    Attributes:
        output: what it wrote.
        seconds: how long it took.
        events: its file operations below the output.
    """

    output: Path
    seconds: float
    events: int


def run_reference(job: Job, world: Path) -> Reference:
    """Runs a job to its end.

    Args:
        job: the job.
        world: folder of all outputs.

    Returns:
        What it gave.

    Raises:
        RuntimeError: if it fails.
    """
    output = reference_output(world, job.name)
    output.parent.mkdir(parents=True)
    log, count = world / f"{job.name}.log", world / f"{job.name}.events"
    began = time.perf_counter()
    if run_forked(job, output, log, count_into=count):
        raise RuntimeError(f"{job.name} fails when left alone:\n{_tail(log)}")
    return Reference(output, time.perf_counter() - began, int(count.read_text()))


def kill_and_go_on(
    job: Job, reference: Reference, folder: Path, rng: random.Random, kills: int
) -> tuple[int, list[str]]:
    """Kills a job, again and again while it goes on, lets it end, and compares.

    Args:
        job: the job.
        reference: the run to compare with.
        folder: for the output; must be empty.
        rng: source of the moments.
        kills: kills at the most; a run that ends before its moment is not killed.

    Returns:
        Number of kills, and what was lost or different, each starting with that word.
    """
    output = folder / reference.output.name
    log, faults, done = folder / "log", [], 0
    share = min(1.0, 4 / kills)  # of a whole run: a long series would be over before its last kill
    for attempt in range(kills):
        moment: dict[str, float | int] = (
            {"kill_after_s": rng.uniform(0, share * reference.seconds)}
            if rng.random() < 0.5
            else {"kill_at_event": rng.randrange(math.ceil(share * reference.events))}
        )
        # Only training answers to SIGTERM in a way of its own.
        number = signal.SIGTERM if job.on_resume and rng.random() < 0.2 else signal.SIGKILL
        code = run_forked(job, output, log, resume=attempt > 0, signal_number=number, **moment)
        if code == 0:
            break
        if code not in (-number, 128 + number):
            faults.append(f"lost: {job.name} ended with {code} at {moment}:\n{_tail(log)}")
        done += 1
        if problem := job.lost(output):
            faults.append(f"lost: {job.name} at {moment}: {problem}")
    code = run_forked(job, output, log, resume=True)
    if code:
        faults.append(f"lost: {job.name} could not go on ({code}):\n{_tail(log)}")
    elif _wait(_fork(log, lambda: int(not job.is_same(reference.output, output)))):
        faults.append(f"different: {output} from {reference.output}")
    return done, faults


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def run_campaign(
    folder: Path, *, kills: int, seed: int = 0, only: str | None = None, progress: bool = True
) -> dict:
    """Kills all jobs in turn, or one, until there were so many kills, or one hangs.

    Args:
        folder: to work in; it must be empty.
        kills: number of kills.
        seed: of the moments.
        only: name of the job that is killed. Default None: all.
        progress: show a bar.

    Returns:
        The report: `kills`, `lost`, `different`, `seconds`, `seed`, `by_job`,
        `most_in_a_row` (kills of one output), `faults`.
    """
    began = time.perf_counter()
    world = folder / "world"
    world.mkdir()
    if _wait(_fork(folder / "world.log", partial(build_world, world))):
        raise RuntimeError(f"no world:\n{_tail(folder / 'world.log')}")
    jobs = build_jobs(world)
    references = {job.name: run_reference(job, world) for job in jobs}
    if only is not None:
        jobs = [job for job in jobs if job.name == only]
    rng = random.Random(seed)
    by_job, in_a_row = dict.fromkeys(references, 0), dict.fromkeys(references, 0)
    faults: list[str] = []
    tqdm.monitor_interval = 0  # no thread of its own
    # Its default lock is shared with forked children: one killed while it has it would keep it.
    tqdm.set_lock(threading.RLock())
    bar = tqdm(total=kills, desc="faults", unit="kill", disable=not progress)
    number = 0
    while (total := sum(by_job.values())) < kills:
        job = jobs[number % len(jobs)]
        trial = folder / f"{number:04d}-{job.name}"
        trial.mkdir()
        most = min(rng.choice(_IN_A_ROW), kills - total)
        done, found = kill_and_go_on(job, references[job.name], trial, rng, most)
        by_job[job.name] += done
        in_a_row[job.name] = max(in_a_row[job.name], done)
        faults += found
        if any(f" {HANGS} " in fault or f"({HANGS})" in fault for fault in found):
            break  # each would take a minute
        if not found:
            shutil.rmtree(trial)
        bar.update(done)
        number += 1
    bar.close()
    return {
        "kills": sum(by_job.values()),
        "lost": sum(fault.startswith("lost") for fault in faults),
        "different": sum(fault.startswith("different") for fault in faults),
        "seconds": round(time.perf_counter() - began, 1),
        "seed": seed,
        "by_job": by_job,
        "most_in_a_row": in_a_row,
        "faults": faults,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: `python tests/reliability/campaign.py --kills 100`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="default: 100")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    parser.add_argument("--only", choices=RECIPES, help="kill this recipe alone; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="runs/faults")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    work = options.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    report = run_campaign(work.resolve(), kills=options.kills, seed=options.seed, only=options.only)
    write_json(options.out / "report.json", report)
    for fault in report["faults"]:
        print(fault)
    print("kills {kills}, lost {lost}, different {different}".format(**report))
    return int(bool(report["faults"]))


if __name__ == "__main__":
    sys.exit(main())
