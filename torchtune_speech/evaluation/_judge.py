"""Answers judged by an LLM: right or not, given the reference."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from torchtune_speech.errors import InputError, did_you_mean

Conversation = list[dict[str, str]]
# Conversations -> the reply to each, in order.
Ask = Callable[[Sequence[Conversation]], Sequence[str]]

_PROMPTS = Path(__file__).parent / "judge_prompts"
_FIELDS = {"question": "question", "reference": "target", "answer": "prediction"}
# The first word, whatever punctuation or markup is around it.
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_YES_OR_NO = re.compile(r"[\W_]*(yes|no)(?![^\W_])", re.IGNORECASE)
# "yes or no", "yes/no": the choice is repeated, not made.
_BOTH = re.compile(r"[\W_]*(yes|no)(\W*[/|]\W*|\W+or\W+)(yes|no)(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one answer.

    Args:
        id: id of the row.
        correct: whether the answer is right.
        reply: the judge's own words.
        prompt: name and version of the prompt.
    """

    id: Any
    correct: bool
    reply: str
    prompt: str


def judge(rows: Sequence[Mapping[str, Any]], ask: Ask, prompt: str = "sqa_v1") -> list[Verdict]:
    """Has an LLM judge whether answers to questions are right, given the references.

    A reply whose first word is neither yes nor no is asked for again, once, with a reminder. An
    answer without a verdict is never counted as wrong: there is an error.

    Args:
        rows: rows of a predictions file, with ``id``, ``question``, ``target`` (the reference) and
            ``prediction``.
        ask: conversations (lists of ``{"role": ..., "content": ...}``) to the replies in the same
            order; :func:`ask_endpoint` and :func:`ask_local` make one.
        prompt: name of a packaged prompt. Verdicts of different prompts, or judges, cannot be
            compared.

    Returns:
        A verdict a row, in order; the accuracy is the mean of ``correct``.

    Raises:
        InputError: if a row lacks a field, the prompt is unknown, or a reply is not to be
            understood the second time either.

    Source: https://arxiv.org/abs/2306.05685

    Example:
        >>> row = {"id": "1", "question": "Where?", "target": "Rome", "prediction": "In Rome."}
        >>> [verdict.correct for verdict in judge([row], lambda asked: ["Yes."] * len(asked))]
        [True]
    """
    template = _read_prompt(prompt)
    asked = [_conversation(row, index, template) for index, row in enumerate(rows)]
    replies = _ask(ask, asked)
    unclear = [index for index, reply in enumerate(replies) if parse_verdict(reply) is None]
    reminder = {"role": "user", "content": template["reminder"]}
    again = [[*asked[i], {"role": "assistant", "content": replies[i]}, reminder] for i in unclear]
    for index, reply in zip(unclear, _ask(ask, again), strict=True):
        replies[index] = reply
    verdicts = []
    for row, reply in zip(rows, replies, strict=True):
        correct = parse_verdict(reply)
        if correct is None:
            raise InputError(
                f"judge: row {row['id']!r}: the reply {reply[:200]!r} is neither yes nor no, nor "
                "was the first; use a judge that keeps to the format"
            )
        verdicts.append(Verdict(row["id"], correct, reply, prompt))
    return verdicts


def parse_verdict(reply: str) -> bool | None:
    """Finds the verdict in a judge's reply.

    Args:
        reply: the judge's words.

    Returns:
        True if the first word is "yes", False if it is "no", in upper or lower case and with any
        punctuation or markup around it; None for anything else. Thoughts in a leading
        ``<think>...</think>`` are passed over.

    Example:
        >>> [parse_verdict(reply) for reply in ("**Yes**, it is.", "no", "Not quite", "yes or no")]
        [True, False, None, None]
    """
    reply = _THOUGHTS.sub("", reply)
    found = _YES_OR_NO.match(reply)
    if found is None or _BOTH.match(reply):
        return None
    return found[1].lower() == "yes"


def _read_prompt(name: str) -> dict[str, str]:
    names = sorted(path.stem for path in _PROMPTS.glob("*.yaml"))
    if name not in names:
        hint = did_you_mean(name, names) or f"; choose from {', '.join(names)}"
        raise InputError(f"prompt: unknown {name!r}{hint}")
    return yaml.safe_load((_PROMPTS / f"{name}.yaml").read_text(encoding="utf-8"))


def _conversation(row: Mapping[str, Any], index: int, template: Mapping[str, str]) -> Conversation:
    for field in ("id", *_FIELDS.values()):
        if field not in row or (field != "id" and not isinstance(row[field], str)):
            where = f"row {row['id']!r}" if "id" in row else f"row {index}"
            raise InputError(
                f"judge: {where} has no {field!r}; every row needs id, question, target and "
                "prediction"
            )
    # One pass: braces in the texts are only text.
    texts = {name: row[field].strip() for name, field in _FIELDS.items()}
    return [
        {"role": "system", "content": template["system"]},
        {"role": "user", "content": template["user"].format_map(texts)},
    ]


def _ask(ask: Ask, conversations: list[Conversation]) -> list[str]:
    replies = list(ask(conversations)) if conversations else []
    if len(replies) != len(conversations):
        raise InputError(
            f"judge: {len(replies)} replies to {len(conversations)} questions; `ask` has to reply "
            "to each"
        )
    return replies
