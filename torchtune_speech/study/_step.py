"""A step of a study: its command, whether it is done, and running it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchtune_speech.errors import InputError
from torchtune_speech.files import read_json, write_json

# Recipes that do not train: the key that says where to write, and the file that is there when all
# is done. Of the first the product is the folder, of the others the file itself.
_WRITES = {
    "extract_features": ("output_dir", "index.parquet"),
    "speech_generate": ("output", "predictions.jsonl"),
    "speech_eval": ("output", "report.json"),
}


def output_key(recipe: str) -> str:
    """The key of a recipe's config that says where it writes.

    Args:
        recipe: its name.

    Returns:
        `output_dir` for training recipes.
    """
    return _WRITES.get(recipe, ("output_dir", ""))[0]


@dataclass(frozen=True, slots=True)
class StudyStep:
    """One command of a study.

    Beside the folder are `STEP.log`, what the command printed, and `STEP.json`, how it was run.

    Attributes:
        name: of the step.
        recipe: as `tune run` takes it.
        config: packaged name or path.
        words: `key=value` and `~key` of the command line.
        folder: what the recipe writes into.
        digest: what it does; steps of one digest have one result.
    """

    name: str
    recipe: str
    config: str
    words: tuple[str, ...]
    folder: Path
    digest: str

    @property
    def is_training(self) -> bool:
        """Whether it writes checkpoints."""
        return self.recipe not in _WRITES

    @property
    def product(self) -> Path:
        """What later steps get: a folder of checkpoints or features, or the file written."""
        if output_key(self.recipe) == "output_dir":
            return self.folder
        return self.folder / _WRITES[self.recipe][1]

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def record(self) -> Path:
        """JSON: digest, command, seconds."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def command(self, processes: int = 1) -> list[str]:
        """The words after `tune run`.

        Args:
            processes: how many to start on this machine; scores are always computed by one.
        """
        many = processes > 1 and self.recipe != "speech_eval"
        return [
            *(["--nproc_per_node", str(processes)] if many else []),
            self.recipe,
            "--config",
            self.config,
            f"{output_key(self.recipe)}={self.product}",
            *(["resume=true"] if self.is_training else []),
            *self.words,
        ]


def setting_words(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as words of the command line.

    Args:
        settings: key to value; mappings are written as dotted keys.
        prefix: goes before the keys.

    Returns:
        `key=value` words, such as `dataset.frame_average=2`.
    """
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            words += setting_words(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={_yaml_word(value)}")
    return words


def _yaml_word(value: Any) -> str:
    """A value such that a config reads the same from it: the text `1` in quotes, `a b` as it is."""
    if isinstance(value, str) and _read(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML


def _read(text: str) -> Any:
    """What a config reads from a text; None where that is an error."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=False)["x"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        return None


def is_done(step: StudyStep) -> bool:
    """Whether a step was run to its end as it is now.

    Args:
        step: the step.

    Returns:
        True if it is the same as in its record, and what it had to write is there.
    """
    record = read_json(step.record) if step.record.is_file() else {}
    if record.get("digest") != step.digest:
        return False
    if not step.is_training:
        return (step.folder / _WRITES[step.recipe][1]).is_file()
    stage = last_stage(step)
    if stage is None or stage.get("evaluation_due"):  # stopped at its last step
        return False
    max_steps = stage["config"].get("max_steps")
    # By epochs only the recipe knows how many steps there are.
    return record.get("ended", False) if max_steps is None else stage["step"] >= max_steps


def last_stage(step: StudyStep) -> dict[str, Any] | None:
    """What the newest checkpoint of a training step tells of itself.

    Args:
        step: the step.

    Returns:
        The content of its `stage.json`; None without a checkpoint.
    """
    files = step.folder.glob("step_*/stage.json")
    return max((read_json(file) for file in files), key=lambda stage: stage["step"], default=None)


def run_step(
    step: StudyStep, launcher: Sequence[str], *, processes: int = 1, keep_open: Sequence[int] = ()
) -> None:
    """Run a step from its beginning, or from where it was stopped.

    What another version of the step left behind is removed. A step that is interrupted is told to
    save and to leave.

    Args:
        step: the step.
        launcher: the words before the recipe, `tune run`.
        processes: how many to start on this machine.
        keep_open: file descriptors that the command is to hold open.

    Raises:
        InputError: if it fails, with its own last words, or its folder is not of a study.
    """
    record = read_json(step.record) if step.record.is_file() else None
    if record is None and step.folder.exists():
        raise InputError(
            f"{step.folder}: was written by something else than this study; remove it, or name "
            "another --out"
        )
    if record is not None and record["digest"] != step.digest:
        if step.folder.exists():
            shutil.rmtree(step.folder)
        step.log.unlink(missing_ok=True)
        record = None
    words = [*launcher, *step.command(processes)]
    record = (record or {"digest": step.digest, "seconds": 0.0}) | {"command": words}
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(step.record, record)
    began, logged = time.perf_counter(), step.log.stat().st_size if step.log.is_file() else 0
    try:
        code = _run_logged(words, step.log, keep_open)
    finally:
        record["seconds"] = round(record["seconds"] + time.perf_counter() - began, 1)
        write_json(step.record, record)
    if code == 0:
        write_json(step.record, record | {"ended": True})
    if code or not is_done(step):
        ending = f"exit code {code}" if code else f"it wrote no {step.product.name}"
        raise InputError(
            f"{step.folder}: {_last_words(step.log, logged) or ending}; see {step.log}"
        )


def _run_logged(words: Sequence[str], log: Path, keep_open: Sequence[int]) -> int:
    """Run a command; what it prints is added to a file."""
    # Progress bars fill a file quickly.
    env = {"TQDM_MININTERVAL": "30"} | os.environ
    with open(log, "a", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches the study alone, which then asks the step to save.
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            pass_fds=keep_open,
        )
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def _last_words(log: Path, begin: int) -> str:
    """The last error a recipe printed after the first `begin` bytes, or else the last line."""
    text = log.read_bytes()[begin:].decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def tune_run() -> list[str]:
    """`tune run` of the environment this Python belongs to."""
    return [str(Path(sys.executable).with_name("tune")), "run"]
