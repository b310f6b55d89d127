"""`python -m torchtune_speech.nano`: builds the nano world and its small LLM."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.nano._fluent import write_fluent
from torchtune_speech.nano._world import build_world

_DESCRIPTION = """\
Builds the small world of the quickstart. World and LLM are made once and kept when they are there:

  python -m torchtune_speech.nano world --out runs/nano/data
      speech (16 kHz FLAC) with the manifests train, dev, test and text (about a minute)
  python -m torchtune_speech.nano fluent --data runs/nano/data
      its manifests once more, with answers in sentences (a second)
  python -m torchtune_speech.nano llm --data runs/nano/data --out runs/nano/llm
      a tokenizer and a small Llama-3.1, pretrained on text, as a Hugging Face folder (minutes)
"""
_WORLD_NUMBERS = {
    "num_train": "spoken training sentences: a row each for asr, st to de, it, zh, and sqa",
    "num_dev": "spoken dev sentences, in voices of their own",
    "num_test": "spoken test sentences, in voices of their own",
    "num_text": "sentences of text.jsonl: a row each for mt and qa",
    "num_lm": "rows of the LLM's pretraining text",
    "seed": "seed of all chance",
    "num_workers": "processes that speak (default: one a core, at most two)",
}
_LLM_NUMBERS = {
    "steps": "optimizer steps",
    "batch_size": "rows a step",
    "learning_rate": "of Muon at its peak",
    "seed": "seed of weights and order",
}


def _build_llm(data: str, out: str, **settings: Any) -> dict[str, Any]:
    # torch and transformers take seconds to import; who builds the world need not wait for them.
    from torchtune_speech.nano._llm import pretrain_llm

    return pretrain_llm(data, out, **settings)


def _add_numbers(
    parser: argparse.ArgumentParser, numbers: dict[str, str], defaults: dict[str, Any]
) -> None:
    for name, help_text in numbers.items():
        default = defaults[name]
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=int if default is None else type(default),
            default=default,
            metavar="N",
            help=help_text + shown,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="world|fluent|llm")
    world = commands.add_parser("world", help="speech, manifests and text")
    world.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    parameters = inspect.signature(build_world).parameters
    _add_numbers(world, _WORLD_NUMBERS, {name: parameters[name].default for name in _WORLD_NUMBERS})
    world.set_defaults(build=lambda out, **settings: build_world(out, **settings))

    fluent = commands.add_parser("fluent", help="manifests with answers in sentences")
    fluent.add_argument("--data", required=True, metavar="FOLDER", help="folder that `world` made")
    fluent.set_defaults(build=lambda data: write_fluent(data))

    llm = commands.add_parser("llm", help="tokenizer and small LLM")
    llm.add_argument("--data", required=True, metavar="FOLDER", help="folder that `world` made")
    llm.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    defaults = {"steps": 1800, "batch_size": 24, "learning_rate": 0.01, "seed": 0}
    _add_numbers(llm, _LLM_NUMBERS, defaults)
    llm.set_defaults(build=_build_llm)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The words after the program's name; None takes those of the command line.

    Returns:
        Exit status: 1 after an error the user can mend.
    """
    options = vars(_parser().parse_args(arguments))
    options.pop("command")
    build: Callable[..., dict[str, Any]] = options.pop("build")
    try:
        print(json.dumps(build(**options), ensure_ascii=False))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
