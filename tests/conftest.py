"""What all tests share: no network, few threads, a throwaway recipe and `tune run`."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchtune_speech import config, training

# Before anything imports torch or Hugging Face libraries; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _library in ("HF_HUB", "HF_DATASETS", "TRANSFORMERS"):
    os.environ[f"{_library}_OFFLINE"] = "1"
for _name in ("TORCHTUNE_SPEECH_TRACEBACK", "WORLD_SIZE", "RANK"):
    os.environ.pop(_name, None)

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption(
        "--write-tables", action="store_true", help="write docs/wrong_input.md anew from the tests"
    )


GREET_RECIPE = '''"""Greets somebody.

Used by tests only.
"""

import sys

from torchtune_speech import config
from torchtune_speech.errors import InputError

KEYS = {"name": "whom to greet", "fail": "how to fail", "model": "a node"}


@config.parse
def recipe_main(cfg):
    """Greets."""
    config.check_keys(cfg, KEYS)
    match cfg.get("fail"):
        case "input":
            raise InputError("train.jsonl:7: no 'target';\\nadd it")
        case "file":
            open("nowhere/at_all.txt")
        case "config":
            cfg.model.nothing
        case "bug":
            raise ValueError("a bug")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
    print(f"hello {cfg.name!r}")


if __name__ == "__main__":
    sys.exit(recipe_main())
'''

GREET_CONFIG = """# Recipe: greet - says hello
# More words.
name: world
fail: null
model:
  a: 1
"""


@pytest.fixture(scope="session")
def greet_sources():
    """The files of the recipe `greet` and its config `small/greet`: path in the tree -> text."""
    return {"recipes/greet.py": GREET_RECIPE, "configs/small/greet.yaml": GREET_CONFIG}


@pytest.fixture
def world(tmp_path, monkeypatch, greet_sources):
    """A source tree with one recipe, `greet`, and one config, `small/greet`, in place of ours."""
    root = tmp_path / "tree"
    for path, text in greet_sources.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    monkeypatch.setattr("torchtune_speech.config._packaged._PACKAGE", root / "torchtune_speech")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return root


@pytest.fixture(scope="session")
def recipe_module():
    """A function that imports an installed recipe by name, without running it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, config.recipe_path(name))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_recipe(recipe_module, monkeypatch, capsys):
    """A function that runs a recipe in this process; returns (exit code, stdout, stderr)."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            recipe_module(name).recipe_main()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def run(recipe_module):
    """A function that runs a recipe in this process, as module fixtures can; gives its exit code.

    ``stop_after`` sends SIGTERM after that step, ``after_step`` is called after each.
    """

    def run(name, *words, stop_after=None, after_step=lambda number: None):
        def step(log, number, metrics):
            take_note(log, number, metrics)
            if number == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(number)

        take_note = training.TrainingLog.step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, words)])
            patch.setattr(training.TrainingLog, "step", step)
            try:
                recipe_module(name).recipe_main()
            except SystemExit as exit_:
                return exit_.code or 0
        return 0

    return run


@pytest.fixture(scope="session")
def tune_run():
    """A function that runs `tune run` with the given words and returns the finished process."""

    def run(*words, cwd, path=(ROOT, ROOT / "recipes"), timeout=120):
        tune = Path(sys.executable).with_name("tune")
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        return subprocess.run(
            [tune, "run", *map(str, words)],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
