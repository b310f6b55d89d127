"""Running a study: what is done is skipped, what was stopped goes on."""

import fcntl
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtune_speech.errors import InputError
from torchtune_speech.study._results import write_results
from torchtune_speech.study._step import StudyStep, is_done, run_step, tune_run
from torchtune_speech.study._study import Study, StudyRun, expand


def run_study(
    study: Study,
    out: Path,
    *,
    launcher: Sequence[str] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Run what is not done yet, and write table, plot and figures.

    Results are written after every run, so that a study can be looked at before its end.

    Args:
        study: the study.
        out: its folder.
        launcher: the words before a recipe's name; `tune run` of this environment by default.
        processes: how many a recipe is started with on this machine.

    Returns:
        What is in `study.json`; see :func:`collect`.

    Raises:
        InputError: for the step that failed, in one line with its log.
    """
    runs = expand(study, out)
    results: dict[str, Any] = {}
    done: set[str] = set()
    with _alone(out) as lock, _sigterm_exits():
        with tqdm(total=len(unique_steps(runs)), desc=study.name, unit="step") as bar:
            for run in runs:
                for step in run.steps.values():
                    if step.digest in done:
                        continue
                    if not is_done(step):
                        bar.set_postfix_str(str(step.folder.relative_to(out)))
                        run_step(
                            step, launcher or tune_run(), processes=processes, keep_open=[lock]
                        )
                    done.add(step.digest)
                    bar.update()
                results = write_results(study, runs, out)
    return results


def dry_run(study: Study, out: Path, *, processes: int = 1) -> str:
    """The commands of a study, in order.

    Args:
        study: the study.
        out: its folder.
        processes: how many a recipe is started with on this machine.

    Returns:
        A line a command; those that are done are marked.
    """
    runs = expand(study, out)
    steps = unique_steps(runs)
    finished = {step.digest for step in steps if is_done(step)}
    lines = [
        f"{'# done: ' if step.digest in finished else ''}"
        f"tune run {shlex.join(step.command(processes))}"
        for step in steps
    ]
    count = f"{len(runs)} runs, {len(steps)} steps, {len(finished)} of them done"
    return "\n".join([*lines, f"# {study.title}: {count}; results go to {out}"])


def unique_steps(runs: Sequence[StudyRun]) -> list[StudyStep]:
    """The steps of all runs, each once, in the order they are run.

    Args:
        runs: from :func:`expand`.

    Returns:
        The steps.
    """
    return list({step.digest: step for run in runs for step in run.steps.values()}.values())


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Holds the lock of a study's folder.

    Commands hold it open, too: one that outlives its study (which was killed) keeps others away.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{out}: a study, or a step that outlived one, is at work there; wait for it, or "
                "stop it"
            ) from None
        yield file.fileno()


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Lets SIGTERM end the study as Ctrl-C does: the step that runs is told to save."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
