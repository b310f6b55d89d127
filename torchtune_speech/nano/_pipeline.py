"""Commands one after the other, each once: what the demos of this package run."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from torchtune_speech.config import config_path
from torchtune_speech.files import read_json, write_json


@dataclass(frozen=True, slots=True)
class PipelineStep:
    """A step of a demo.

    Attributes:
        name: shown before it runs, and the key of its time.
        product: what exists when it is done; then it is skipped.
        run: does it.
    """

    name: str
    product: Path
    run: Callable[[], object]

    @property
    def is_done(self) -> bool:
        """Whether its product is there; of a training recipe, the last evaluation, too."""
        if self.product.name == "stage.json" and self.product.is_file():
            return not read_json(self.product).get("evaluation_due")
        return self.product.exists()


def run_pipeline(steps: Sequence[PipelineStep], times: Path) -> dict[str, float]:
    """Run the steps that are not done yet.

    Args:
        steps: in order.
        times: JSON file that keeps the seconds of each step, of earlier runs too, and of one that
            was stopped, as "NAME (unfinished)".

    Returns:
        Name of the step to its wall-clock seconds.
    """
    seconds = read_json(times) if times.is_file() else {}
    for step in steps:
        if step.is_done:
            continue
        print(f"\n== {step.name}", flush=True)
        # A step that goes on after a stop took its earlier time, too.
        key = unfinished = f"{step.name} (unfinished)"
        spent = seconds.pop(unfinished, 0)
        began = time.perf_counter()
        try:
            step.run()
            key = step.name
        finally:
            seconds[key] = round(spent + time.perf_counter() - began, 1)
            write_json(times, seconds)
    return seconds


def command(*words: str) -> None:
    """Run a command of this environment, and leave with its exit code if it fails.

    Args:
        *words: the command; its program is taken from beside this Python.
    """
    print(" ".join(words), flush=True)
    done = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def tune(family: str, recipe: str, *options: str) -> Callable[[], None]:
    """`tune run` of a recipe with the packaged config of a family, to be called later.

    Args:
        family: folder in configs/.
        recipe: name of recipe and config.
        *options: `key=value`.

    Returns:
        A function without arguments.
    """
    return lambda: command("tune", "run", recipe, "--config", f"{family}/{recipe}", *options)


def training_step(
    family: str, recipe: str, name: str, *options: str, folder: Path | None = None
) -> PipelineStep:
    """A training recipe: done when its last checkpoint is there, else started or gone on with.

    Args:
        family: folder in configs/.
        recipe: name of recipe and config.
        name: of the step.
        *options: `key=value`; none of them changes the number of steps.
        folder: what the run writes; by default what the config says.

    Returns:
        The step.
    """
    cfg = yaml.safe_load(config_path(f"{family}/{recipe}").read_text(encoding="utf-8"))
    words = [*options, "resume=true"]
    if folder is not None:
        words = [f"output_dir={folder}", *words]
    folder = folder or Path(cfg["output_dir"])
    product = folder / f"step_{cfg['max_steps']}" / "stage.json"
    return PipelineStep(name, product, tune(family, recipe, *words))
