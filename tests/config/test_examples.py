"""The `tune run` commands of help, configs and documents have keys that exist."""

import argparse
import re
from pathlib import Path

import pytest

from torchtune_speech import cli, config

ROOT = Path(__file__).parents[2]
# Two spaces, a line's end or a backquote end a command.
_COMMAND = re.compile(r"tune run (?:--nproc_per_node \d+ )?(\w+)((?: [^\s`]+)*)")
_KEY = re.compile(r" (\w+)(?:\.[\w.]+)?=")


def commands(text):
    """Yields (command, recipe, config, its keys) for the commands in a text."""
    text = re.sub(r" *\\\n[# ]*", " ", text)
    text = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "QUOTED", text)
    for match in _COMMAND.finditer(text):
        name = re.search(r" --config (\S+)", match[2])
        yield match[0], match[1].removeprefix("my_"), name and name[1], _KEY.findall(match[2])


def problems(text, recipe_module):
    """Returns the commands in a text that would not start, and why, one line each."""
    found = []
    for command, recipe, name, keys in commands(text):
        known = recipe_module(recipe).KEYS if recipe in config.recipe_names() else {}
        found += [f"{command}: no recipe {recipe}"] * (not known)
        found += [f"{command}: no key {key}" for key in keys if key not in known]
        if name and not re.search(r"\.yaml$|^my/|[A-Z$]", name):
            found += [f"{command}: no config {name}"] * (name not in config.config_names())
    return found


def help_text():
    parser = cli._parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return "\n".join(p.format_help() for p in (parser, *subparsers.choices.values()))


def test_what_a_command_is():
    text = """
  tune run a --config my.yaml x=8       ... and a run, with=this
#   tune run --nproc_per_node 4 my_b --config c/d y.lr=1 \\
#     z="a t=1" ...
(`tune run e` is=it)"""
    assert [c[1:] for c in commands(text)] == [
        ("a", "my.yaml", ["x"]),
        ("b", "c/d", ["y", "z"]),
        ("e", None, []),
    ]


def test_problems_are_found(recipe_module):
    text = "tune run projector --config nano/projectr batch_size=8\ntune run projektor"
    assert [line.rpartition(": ")[2] for line in problems(text, recipe_module)] == [
        "no key batch_size",
        "no config nano/projectr",
        "no recipe projektor",
    ]


def test_help_of_the_command_line(recipe_module):
    assert len(list(commands(help_text()))) >= 5
    assert problems(help_text(), recipe_module) == []


def test_the_readme_lists_every_document():
    listed = re.findall(r"^- \[docs/(.*?)\]", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", config.config_names())
def test_header_of_a_config(name, recipe_module):
    assert problems(config.config_path(name).read_text(encoding="utf-8"), recipe_module) == []


@pytest.mark.parametrize(
    "path", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_document(path, recipe_module):
    assert problems((ROOT / path).read_text(encoding="utf-8"), recipe_module) == []
