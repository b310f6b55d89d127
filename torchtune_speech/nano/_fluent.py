"""The manifests of a world with fluent answers: a sentence in place of the phrase."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.files import read_jsonl, write_jsonl
from torchtune_speech.nano._grammar import fluent_answer, parse_sentence

_MANIFESTS = ("train", "dev", "test", "text")


def write_fluent(data_dir: str | os.PathLike[str]) -> dict[str, int]:
    """Writes `train_fluent.jsonl`, and so on, beside the manifests of a world.

    They stay in the same folder, so that their audio paths, which are keys of the feature store
    too, mean the same.

    Args:
        data_dir: The folder of the world.

    Returns:
        Name of each manifest to the number of answers that changed.

    Raises:
        InputError: When a manifest is not there or not of a nano world.

    Example:
        >>> write_fluent("runs/nano/data")["train_fluent.jsonl"]
        4000
    """
    changed = {}
    for split in _MANIFESTS:
        path = Path(data_dir) / f"{split}.jsonl"
        if not path.is_file():
            raise InputError(f"{path}: not found; make the world first (nano world --out FOLDER)")
        rows = read_jsonl(path)
        try:
            fluent = [fluent_row(row) for row in rows]
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: {error}; give the folder of a nano world") from None
        write_jsonl(path.with_stem(f"{split}_fluent"), fluent)
        pairs = zip(rows, fluent, strict=True)
        changed[f"{split}_fluent.jsonl"] = sum(old != new for old, new in pairs)
    return changed


def fluent_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a row of a manifest its fluent answer.

    Args:
        row: A row of any task.

    Returns:
        The row; with a sentence for its target where it is an answerable question.

    Raises:
        ValueError: When its text is no sentence of the nano world.
    """
    if not row.get("answerable"):  # refusals stay, and other tasks have no such column
        return dict(row)
    sentence = parse_sentence(row["source_text"])
    return {**row, "target": fluent_answer(sentence, row["question_kind"], row["target_lang"])}
