"""Template files: reading them, and cutting templates at their fields."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchtune_speech.errors import InputError, did_you_mean

FIELDS = ("speech", "instruction", "source_text", "question", "choices")
CHOICE_FIELDS = ("letter", "option")
_SECTIONS = ("wrapping", "instructions", "unanswerable", "generic_questions", "choice_answer")
_FIELD = re.compile(r"\{(\w+)\}")
_TEMPLATES = Path(__file__).parent / "templates"

# A template cut at its fields: literal text at even places, names of fields at odd places.
Parts = list[str]


def read_template_file(
    name_or_path: str | os.PathLike[str], seen: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a template file and what it extends as one mapping.

    Args:
        name_or_path: see :meth:`PromptTemplates.from_yaml`.
        seen: files on the way here, so that a circle of ``extends`` is noticed.

    Returns:
        ``wrapping``, ``instructions``, ``unanswerable``, ``generic_questions`` and
        ``choice_answer``, as far as they are there.

    Raises:
        InputError: for a file that is absent, is not YAML, or has unknown sections.
    """
    path = _find(name_or_path)
    if str(path) in seen:
        raise InputError(f"{path}: extends itself; remove the circle")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not readable as text"
        raise InputError(f"{path}{line}: not valid YAML ({reason}); correct the file") from error
    content = mapping_of(content, str(path), "the file")
    known = ("extends", *_SECTIONS)
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known) or f"; use {', '.join(known)}"
            raise InputError(f"{path}: unknown key {key!r}{hint}")
    if "extends" not in content:
        return content
    base_name = content.pop("extends")
    beside = path.parent / str(base_name)
    base = read_template_file(beside if beside.is_file() else str(base_name), [*seen, str(path)])
    return _merged(base, content, str(path))


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = sorted(file.stem for file in _TEMPLATES.glob("*.yaml"))
    if str(name_or_path) in names:
        return _TEMPLATES / f"{name_or_path}.yaml"
    raise InputError(
        f"{name_or_path}: no such template file and no packaged set of this name; use "
        f"{', '.join(names)}, or the path of a YAML file"
    )


def _merged(base: dict[str, Any], new: dict[str, Any], origin: str) -> dict[str, Any]:
    """Lay new entries over old ones: wrappings and answers by key, instructions by language."""
    result = dict(base)
    for section, entries in new.items():
        if section == "choice_answer":
            result[section] = entries
            continue
        merged = dict(result.get(section, {}))
        for key, value in mapping_of(entries, origin, section).items():
            if section == "instructions":
                value = merged.get(key, {}) | mapping_of(value, origin, f"{section}.{key}")
            merged[key] = value
        result[section] = merged
    return result


def mapping_of(value: Any, origin: str, name: str) -> dict[str, Any]:
    """A plain copy of a mapping from strings; refuses anything else, by name."""
    if not isinstance(value, Mapping):
        raise InputError(f"{origin}: {name} is not a mapping; write 'key: value' lines")
    for key in value:
        if not isinstance(key, str):  # YAML reads the language code no as False
            raise InputError(f"{origin}: key {key!r} in {name} is not a string; put it in quotes")
    return dict(value)


def check_text(text: Any, where: str) -> None:
    """Refuse what is no text."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} is not a non-empty string; write the text, in quotes if need be")


def check_texts(texts: Any, where: str) -> None:
    """Refuse what is no list of texts."""
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InputError(f"{where} is not a list of texts; write '- ...' lines")
    for number, text in enumerate(texts):
        check_text(text, f"{where}[{number}]")


def cut_pool(pool: Any, where: str) -> list[Parts]:
    """Cut a text, or each text of a list, at its fields."""
    if isinstance(pool, str):
        return [cut_template(pool, where)]
    if not isinstance(pool, (list, tuple)) or not pool:
        raise InputError(f"{where} is not a text or a list of texts; write '- ...' lines")
    return [cut_template(text, f"{where}[{number}]") for number, text in enumerate(pool)]


def cut_template(template: Any, where: str, fields: Sequence[str] = FIELDS) -> Parts:
    """Cut a text at its fields; refuses fields that are unknown."""
    check_text(template, where)
    parts = _FIELD.split(template)
    for name in parts[1::2]:
        if name not in fields:
            hint = did_you_mean(name, fields) or f"; the fields are {', '.join(fields)}"
            raise InputError(f"{where} has the unknown field {{{name}}}{hint}")
    return parts


def join_parts(parts: Parts) -> str:
    """The text that was cut."""
    return "".join(f"{{{part}}}" if place % 2 else part for place, part in enumerate(parts))


def insert_instruction(wrapping: Parts, instruction: Parts) -> Parts:
    """Put an instruction in the place of {instruction}; its first and last text join on."""
    parts = [wrapping[0]]
    for name, text in zip(wrapping[1::2], wrapping[2::2], strict=True):
        if name == "instruction":
            parts[-1] += instruction[0]
            parts += instruction[1:]
            parts[-1] += text
        else:
            parts += [name, text]
    return parts
