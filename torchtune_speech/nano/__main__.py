"""`python -m torchtune_speech.nano`: builds the nano world and its small LLM."""

import argparse
import inspect
import sys
from collections.abc import Sequence

from torchtune_speech.errors import InputError
from torchtune_speech.nano._world import build_world

_DESCRIPTION = """\
Builds the small world of the quickstart. Two steps, each done once and skipped when it is there:

  python -m torchtune_speech.nano world --out runs/nano/data
      speech (16 kHz FLAC) with the manifests train, dev, test and text (about a minute)
  python -m torchtune_speech.nano llm --data runs/nano/data --out runs/nano/llm
      a tokenizer and a small Llama-3.1, pretrained on text, as a Hugging Face folder (minutes)
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="world|llm")
    world = commands.add_parser(
        "world",
        help="speech, manifests and text",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    world.add_argument("--out", required=True, help="folder to make")
    default = {name: p.default for name, p in inspect.signature(build_world).parameters.items()}
    for name, help_text in {
        "num_train": "spoken training sentences: a row each for asr, st de/it/zh and sqa",
        "num_dev": "spoken dev sentences, in voices of their own",
        "num_test": "spoken test sentences, in voices of their own",
        "num_text": "sentences of text.jsonl: a row each for mt and qa",
        "num_lm": "rows of the LLM's pretraining text",
        "seed": "seed of all chance",
        "num_workers": "processes that speak (None: one a core, at most two)",
    }.items():
        flag = "--" + name.replace("_", "-")
        world.add_argument(flag, type=int, default=default[name], metavar="N", help=help_text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The words after the program's name; None takes those of the command line.

    Returns:
        Exit status: 1 after an error the user can mend.
    """
    options = vars(_parser().parse_args(arguments))
    try:
        options.pop("command")
        world = build_world(options.pop("out"), **options)
        print(world)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
