"""Which task an instruction asks for: the official source files do not say."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from torchtune_speech.data._prompts import PromptTemplates
from torchtune_speech.data._templates import cut_template

_TEMPLATES = ("mcif_fixed", "mcif_mixed")
_TASKS = ("asr", "st", "sqa")
_FINAL = r"\s*[.!?:…。！？：]*\s*"
_ANY_FINAL = re.compile(rf"{_FINAL}\Z")

# Pattern of a prompt, its task and its language.
_Known = tuple[re.Pattern[str], str, str]


def mcif_task(
    instruction: str, templates_names: Sequence[str] = _TEMPLATES
) -> tuple[str, str] | None:
    """Tell the task of an instruction by the prompts that are known.

    Case, the amount of whitespace and the punctuation at the end do not matter.

    Args:
        instruction: what is asked, in any language.
        templates_names: prompt sets to look into: packaged names, or paths of YAML files.

    Returns:
        Task (asr, st, sqa) and language of the prompt; None for an instruction that no set has.

    Raises:
        InputError: for a prompt set that does not exist.

    Example:
        >>> mcif_task("traduci il contenuto inglese in italiano")
        ('st', 'it')
    """
    found = _match(instruction, templates_names)
    return found and found[:2]


def mcif_question(instruction: str, templates_names: Sequence[str] = _TEMPLATES) -> str | None:
    """Take the question out of an instruction.

    Args:
        instruction: what is asked.
        templates_names: prompt sets to look into: packaged names, or paths of YAML files.

    Returns:
        The question as it is written; None unless the instruction is a known one that asks one.

    Raises:
        InputError: for a prompt set that does not exist.

    Example:
        >>> mcif_question("Consider the content and answer: Who speaks?")
        'Who speaks?'
    """
    found = _match(instruction, templates_names)
    return found and found[2]


def _match(instruction: str, names: Sequence[str]) -> tuple[str, str, str | None] | None:
    text = unicodedata.normalize("NFC", instruction).strip()
    for pattern, task, language in _known_prompts(tuple(names)):
        match = pattern.fullmatch(text)
        if match:
            return task, language, match.groupdict().get("question")
    return None


@lru_cache(maxsize=8)
def _known_prompts(names: tuple[str, ...]) -> list[_Known]:
    """All prompts, those with the most text of their own first: they say the most."""
    found: dict[str, tuple[str, str]] = {}
    for templates in map(PromptTemplates.from_yaml, names):
        for task in _TASKS:
            for language in templates.tasks.get(task, ()):
                for prompt in templates.pool(task, language):
                    found.setdefault(prompt, (task, language))
    ordered = sorted(found, key=lambda prompt: -len(prompt))
    return [(_pattern(prompt), *found[prompt]) for prompt in ordered]


def _pattern(prompt: str) -> re.Pattern[str]:
    parts = cut_template(unicodedata.normalize("NFC", prompt).strip(), "prompt")
    parts[-1] = _ANY_FINAL.sub("", parts[-1])
    pattern = ""
    for place, part in enumerate(parts):
        if place % 2 and part in parts[1:place:2]:
            pattern += rf"\s*(?P={part})\s*"
        elif place % 2:
            pattern += rf"\s*(?P<{part}>\S.*?)\s*"
        else:
            pattern += r"\s+".join(map(re.escape, part.split()))
    # A question at the end keeps its question mark.
    end = _FINAL if parts[-1] else ""
    return re.compile(pattern + end, re.IGNORECASE | re.DOTALL)
