"""Prompt templates: how a sample becomes chat messages."""

import os
import zlib
from collections.abc import Mapping

from torchtune.data import Message

from torchtune_speech.data._choices import MAX_CHOICES, choice_letter, find_choice
from torchtune_speech.data._sample import SPEECH_TASKS, TEXT_TWIN_TASKS, Sample
from torchtune_speech.data._templates import (
    CHOICE_FIELDS,
    Parts,
    check_text,
    check_texts,
    cut_pool,
    cut_template,
    insert_instruction,
    join_parts,
    mapping_of,
    read_template_file,
)
from torchtune_speech.errors import InputError

_QUESTION_TASKS = ("sqa", "qa")


class PromptTemplates:
    """Wrapping and instructions that turn samples into chat messages.

    The instruction is in the sample's target language; which one of a pool is a function of the
    sample's id alone, so it is the same in every epoch and process, and for a text twin. A row's
    own column ``instruction`` takes the place of the pool, and is all that is said: what options
    it has stand in it. Those of other multiple-choice rows go where ``{choices}`` stands, else to
    the end of the instruction, as lines ``A. ...``, ``B. ...``.

    What samples bring is put in as text in a single pass: braces and ``{speech}`` inside it are
    only text.

    Args:
        wrapping: the user turn of speech samples (``"speech"``, with ``{speech}`` and
            ``{instruction}``) and of text samples (``"text"``, with ``{source_text}`` and
            ``{instruction}``).
        instructions: task -> target language -> one template or a pool of them.
        unanswerable: language -> answer to a question that the content does not answer.
        generic_questions: language -> questions that next to no content answers.
        choice_answer: how the answer to a multiple-choice question reads, with ``{letter}`` and
            ``{option}``; the target then names an option by its text, its letter or both, or is
            the ``unanswerable`` of its language. Default None: the target as it is.
        origin: name of the template file, for error messages.

    Raises:
        InputError: for a template that lacks its field or has an unknown one.

    Example:
        >>> prompts = PromptTemplates.from_yaml("mcif_fixed")
        >>> sample = Sample("1", "asr", "hello", (AudioCut("a.wav"),))
        >>> [message.role for message in prompts.messages(sample)]
        ['user', 'assistant']
    """

    def __init__(
        self,
        wrapping: Mapping[str, str],
        instructions: Mapping[str, Mapping[str, str | list[str]]],
        unanswerable: Mapping[str, str] | None = None,
        generic_questions: Mapping[str, list[str]] | None = None,
        choice_answer: str | None = None,
        origin: str = "templates",
    ) -> None:
        self.origin = origin
        self._wrapping: dict[str, Parts] = {}
        for kind in mapping_of(wrapping, origin, "wrapping"):
            if kind not in ("speech", "text"):
                raise InputError(f"{origin}: unknown key wrapping.{kind}; use speech and text")
            self._wrapping[kind] = cut_template(wrapping[kind], f"{origin}: wrapping.{kind}")
        self._pools: dict[str, dict[str, list[Parts]]] = {}
        for task, languages in mapping_of(instructions, origin, "instructions").items():
            name = f"instructions.{task}"
            self._pools[task] = {
                language: cut_pool(pool, f"{origin}: {name}.{language}")
                for language, pool in mapping_of(languages, origin, name).items()
            }
        self._unanswerable = dict(mapping_of(unanswerable or {}, origin, "unanswerable"))
        for language, text in self._unanswerable.items():
            check_text(text, f"{origin}: unanswerable.{language}")
        self._generic = dict(mapping_of(generic_questions or {}, origin, "generic_questions"))
        for language, questions in self._generic.items():
            check_texts(questions, f"{origin}: generic_questions.{language}")
        where = f"{origin}: choice_answer"
        self._choice_answer: Parts | None = None
        if choice_answer is not None:
            self._choice_answer = cut_template(choice_answer, where, CHOICE_FIELDS)
            if len(self._choice_answer) == 1:
                raise InputError(f"{where} lacks {{letter}} and {{option}}; write one of them")
        self._check_fields()

    @classmethod
    def from_yaml(cls, name_or_path: str | os.PathLike[str]) -> "PromptTemplates":
        """Read a template file.

        Args:
            name_or_path: a YAML file with ``wrapping``, ``instructions``, ``unanswerable``,
                ``generic_questions`` and ``choice_answer``, and optionally ``extends``, the name or
                path of a set whose entries it replaces or adds to; or the name of a packaged set:
                ``mcif_fixed``, ``mcif_mixed``, ``nle_2026``. An existing file wins over a packaged
                name.

        Returns:
            The templates.

        Raises:
            InputError: for a file that is absent, is not YAML or has templates that do not work.
        """
        content = read_template_file(name_or_path)
        return cls(
            content.get("wrapping", {}),
            content.get("instructions", {}),
            content.get("unanswerable", {}),
            content.get("generic_questions", {}),
            content.get("choice_answer"),
            origin=str(name_or_path),
        )

    @property
    def tasks(self) -> dict[str, list[str]]:
        """The tasks and the target languages of each."""
        return {task: list(languages) for task, languages in self._pools.items()}

    def pool(self, task: str, language: str) -> list[str]:
        """Give the instructions that a task has in a language.

        Args:
            task: name of the task.
            language: target language.

        Returns:
            The templates, with their fields in braces.

        Raises:
            InputError: for a task or language without a prompt.
        """
        return [join_parts(parts) for parts in self._find_pool(task, language, self.origin)]

    def unanswerable(self, lang: str) -> str:
        """Give the answer to a question that the content does not answer.

        Args:
            lang: language of the answer.

        Returns:
            The text.

        Raises:
            InputError: for a language without one.
        """
        if lang not in self._unanswerable:
            raise InputError(
                f"{self.origin}: no unanswerable.{lang}; add it to a template file of your own"
            )
        return self._unanswerable[lang]

    def generic_questions(self, lang: str) -> list[str]:
        """Give questions that next to no content answers.

        Args:
            lang: language of the questions.

        Returns:
            The questions.

        Raises:
            InputError: for a language without any.
        """
        if lang not in self._generic:
            raise InputError(
                f"{self.origin}: no generic_questions.{lang}; add them to a template file of your "
                "own, or do without (dataset.unanswerable.generic=0)"
            )
        return list(self._generic[lang])

    def messages(self, sample: Sample, with_target: bool = True) -> list[Message]:
        """Turn a sample into chat messages.

        Args:
            sample: the sample.
            with_target: whether the answer is there, as in training; for generation it is not.

        Returns:
            Messages whose content is a list of ``{"type": "text", "content": str}`` and
            ``{"type": "speech", "content": AudioCut.key}``. Assistant turns are supervised
            (``masked=False``), others are not.

        Raises:
            InputError: for a sample that lacks what its prompt needs, or whose target is none of
                its choices where the templates have a ``choice_answer``.
        """
        if with_target and not sample.target and not _ends_with_assistant(sample):
            raise InputError(f"sample {sample.id!r}: no target to learn; add it to the manifest")
        if sample.messages:
            messages = _multi_turn(sample, with_target)
        else:
            messages = [Message("user", self._user_content(sample), masked=True)]
        if with_target and not _ends_with_assistant(sample):
            messages.append(Message("assistant", [_text(self._answer(sample))], masked=False))
        return messages

    def _answer(self, sample: Sample) -> str:
        if self._choice_answer is None or not sample.choices or sample.messages:
            return sample.target
        if sample.target == self._unanswerable.get(sample.target_lang):
            return sample.target
        index = find_choice(sample.target, sample.choices)
        if index is None:
            raise InputError(
                f"sample {sample.id!r}: target {sample.target!r} is none of its choices, or "
                f"several; write the text or the letter of one ({self.origin} has a choice_answer)"
            )
        values = {"letter": choice_letter(index), "option": sample.choices[index]}
        parts = self._choice_answer
        return "".join(values[part] if place % 2 else part for place, part in enumerate(parts))

    def _user_content(self, sample: Sample) -> list[dict[str, str]]:
        kind, needed = ("speech", "speech") if sample.is_speech else ("text", "source_text")
        if kind not in self._wrapping:
            raise InputError(
                f"{self.origin}: no wrapping.{kind}, which sample {sample.id!r} needs; add it"
            )
        instruction = self._instruction(sample)
        parts = insert_instruction(self._wrapping[kind], instruction)
        if needed not in parts[1::2]:
            raise InputError(
                f"{self.origin}: the prompt of sample {sample.id!r} (task {sample.task!r}) has no "
                f"{{{needed}}}; add it to wrapping.{kind}"
            )
        return self._fill(parts, sample)

    def _instruction(self, sample: Sample) -> Parts:
        own = sample.extra.get("instruction")
        if own is not None:
            if not isinstance(own, str) or not own.strip():
                raise InputError(
                    f"sample {sample.id!r}: its instruction is not a non-empty string; write the "
                    "text, or leave the column out"
                )
            return [own]
        where = f"{self.origin}: sample {sample.id!r}"
        pool = self._find_pool(sample.task, sample.target_lang, where)
        parts = pool[zlib.crc32(sample.id.encode()) % len(pool)]
        if sample.choices and "choices" not in parts[1::2]:
            parts = [*parts[:-1], parts[-1] + "\n", "choices", ""]
        return parts

    def _find_pool(self, task: str, language: str, where: str) -> list[Parts]:
        if task not in self._pools:
            raise InputError(
                f"{where}: no prompt for task {task!r}, only for {', '.join(self._pools)}; add "
                f"instructions.{task} to a template file of your own, or give the row its own "
                "'instruction'"
            )
        if language not in self._pools[task]:
            raise InputError(
                f"{where}: no prompt for task {task!r} in {language!r}, only in "
                f"{', '.join(self._pools[task])}; correct target_lang, or add "
                f"instructions.{task}.{language} to a template file of your own"
            )
        return self._pools[task][language]

    def _fill(self, parts: Parts, sample: Sample) -> list[dict[str, str]]:
        content: list[dict[str, str]] = []
        for place, part in enumerate(parts):
            if place % 2 == 0:
                _add_text(content, part)
            elif part == "speech" and sample.audio:
                content += [_speech(cut.key) for cut in sample.audio]
            elif part == "choices" and sample.choices:
                _add_text(content, _lettered(sample))
            elif part in ("source_text", "question") and getattr(sample, part):
                _add_text(content, getattr(sample, part))
            else:
                column = "audio" if part == "speech" else part
                raise InputError(
                    f"sample {sample.id!r}: its prompt ({self.origin}, task {sample.task!r}) has "
                    f"{{{part}}}, but the row has no {column!r}; add it to the manifest"
                )
        return content

    def _check_fields(self) -> None:
        """Refuse sets that would fail only at some sample, hours later."""
        for kind, parts in self._wrapping.items():
            if "instruction" not in parts[1::2]:
                raise InputError(
                    f"{self.origin}: wrapping.{kind} lacks {{instruction}}; put it where the "
                    "instruction goes"
                )
        for task, languages in self._pools.items():
            for language, pool in languages.items():
                for number, parts in enumerate(pool):
                    where = f"{self.origin}: instructions.{task}.{language}[{number}]"
                    self._check_instruction(task, parts, where)

    def _check_instruction(self, task: str, parts: Parts, where: str) -> None:
        fields = parts[1::2]
        if "instruction" in fields:
            raise InputError(f"{where} holds {{instruction}} itself; remove it")
        if task in _QUESTION_TASKS and "question" not in fields:
            raise InputError(f"{where} lacks {{question}}; put it where the question goes")
        if task in SPEECH_TASKS:
            kind, needed = "speech", "speech"
        elif task in TEXT_TWIN_TASKS.values():
            kind, needed = "text", "source_text"
        else:
            return  # a task of the user's own may have speech, text or both
        if kind not in self._wrapping:
            raise InputError(
                f"{self.origin}: no wrapping.{kind}, which task {task!r} needs; add it"
            )
        count = insert_instruction(self._wrapping[kind], parts)[1::2].count(needed)
        if count != 1:
            what = "lacks" if count == 0 else "repeats"
            raise InputError(
                f"{self.origin}: wrapping.{kind} {what} {{{needed}}} (with instructions.{task}); "
                "it must be there once"
            )


# ---- messages -----------------------------------------------------------------------------------


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _speech(key: str) -> dict[str, str]:
    return {"type": "speech", "content": key}


def _add_text(content: list[dict[str, str]], text: str) -> None:
    """Append text; neighbouring texts become one, so that they are tokenised as one."""
    if not text:
        return
    if content and content[-1]["type"] == "text":
        content[-1] = _text(content[-1]["content"] + text)
    else:
        content.append(_text(text))


def _lettered(sample: Sample) -> str:
    if len(sample.choices) > MAX_CHOICES:
        raise InputError(f"sample {sample.id!r}: more than {MAX_CHOICES} choices; give it fewer")
    return "\n".join(f"{choice_letter(i)}. {choice}" for i, choice in enumerate(sample.choices))


def _ends_with_assistant(sample: Sample) -> bool:
    return bool(sample.messages) and sample.messages[-1]["role"] == "assistant"


def _multi_turn(sample: Sample, with_target: bool) -> list[Message]:
    turns = list(sample.messages)
    if not with_target and _ends_with_assistant(sample):
        turns = turns[:-1]
    spoken = turns[1:] if turns and turns[0]["role"] == "system" else turns
    for number, turn in enumerate(spoken):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise InputError(
                f"sample {sample.id!r}: 'messages' has role {turn['role']!r} out of turn; write an "
                "optional system turn, then user and assistant in turn"
            )
    if not spoken:
        raise InputError(f"sample {sample.id!r}: 'messages' has no user turn; add one")
    cuts = list(sample.audio)
    messages = []
    for turn in turns:
        content: list[dict[str, str]] = []
        if turn["role"] == "assistant":
            content = [_text(turn["content"])]
        else:
            for place, text in enumerate(turn["content"].split("{speech}")):
                if place > 0 and not cuts:
                    raise _marks_error(sample)
                if place > 0:
                    content.append(_speech(cuts.pop(0).key))
                _add_text(content, text)
        messages.append(Message(turn["role"], content, masked=turn["role"] != "assistant"))
    if cuts:
        raise _marks_error(sample)
    return messages


def _marks_error(sample: Sample) -> InputError:
    return InputError(
        f"sample {sample.id!r}: 'messages' does not have as many {{speech}} marks as 'audio' has "
        f"files ({len(sample.audio)}); write one {{speech}} for each"
    )
