"""One row of a manifest, checked column by column."""

import os
from collections.abc import Mapping
from typing import Any

from torchtune_speech.data._sample import SPEECH_TASKS, TEXT_TWIN_TASKS, AudioCut, Sample

MAX_DURATION_S = 24 * 3600.0
ROLES = ("system", "user", "assistant")

_COLUMNS = frozenset(
    "id task audio offset duration speed source_lang target_lang source_text question choices "
    "target domain speaker messages".split()
)


class Fault(Exception):
    """Why a row is refused: the kind of fault, what is wrong, what to do."""

    def __init__(self, reason: str, what: str, cure: str) -> None:
        super().__init__(reason)
        self.reason, self.what, self.cure = reason, what, cure


class RowChecker:
    """Turns a row into a Sample or raises Fault; remembers which audio files exist."""

    def __init__(self, folder: str, check_audio: bool, require_target: bool) -> None:
        self.folder = folder
        self.check_audio = check_audio
        self.require_target = require_target
        self.exists: dict[str, bool] = {}

    def __call__(self, row: Any) -> Sample:
        if not isinstance(row, Mapping):
            what = f"the row is {type(row).__name__}, not an object"
            raise Fault("not an object", what, "write one JSON object a line")
        sample_id = _text(row, "id", "give each row an id of its own")
        extra = {k: v for k, v in row.items() if k not in _COLUMNS and v is not None}
        _text(extra, "instruction", default="")
        messages = _messages(row)
        audio = _audio(row)
        task = _text(
            row,
            "task",
            "name the task: asr, st, sqa, mt, qa, or one of your own templates",
            default="instruct" if messages or "instruction" in extra else None,
        )
        _check_task(task, audio, messages)
        self._check_files(audio)
        return Sample(
            id=sample_id,
            task=task,
            target=self._target(row, messages),
            audio=audio,
            source_lang=_text(row, "source_lang", default="en"),
            target_lang=_text(row, "target_lang", default="en"),
            source_text=_text(row, "source_text", default="") or None,
            question=_text(row, "question", default="") or None,
            choices=_choices(row),
            domain=_text(row, "domain", default=""),
            speaker=_text(row, "speaker", default=""),
            messages=messages,
            extra=extra,
        )

    def _target(self, row: Mapping[str, Any], messages: tuple[Mapping[str, Any], ...]) -> str:
        final = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
        target = _text(row, "target", default=final)
        if not target.strip():
            if self.require_target:
                cure = "write the expected answer, or remove the row"
                raise Fault("empty target", "field 'target' is missing or empty", cure)
            return ""
        if final and target != final:
            what = "field 'target' differs from the last assistant turn of 'messages'"
            raise Fault("two targets", what, "leave one of them out")
        return target

    def _check_files(self, audio: tuple[AudioCut, ...]) -> None:
        if not self.check_audio:
            return
        for cut in audio:
            known = self.exists.get(cut.path)
            if known is None:
                known = os.path.isfile(os.path.join(self.folder, cut.path))
                self.exists[cut.path] = known
            if not known:
                what = f"audio file {cut.path!r} not found in {self.folder or '.'!r}"
                cure = "write paths relative to the manifest's folder, or absolute"
                raise Fault("missing audio file", what, cure)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _check_encodable(text: str, name: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            what = f"field {name!r} holds half of a surrogate pair"
            raise Fault("broken text", what, "write the text as valid Unicode") from None


def _text(row: Mapping[str, Any], name: str, cure: str = "", default: str | None = None) -> str:
    """Read a text field; without a default it must be there and not be blank."""
    value = row.get(name)
    if value is None:
        if default is not None:
            return default
        raise Fault(f"missing {name}", f"field {name!r} is missing", cure)
    if not isinstance(value, str):
        what = f"field {name!r} is {_kind(value)}, not a string"
        raise Fault(f"wrong type of {name}", what, "write it as a string")
    if default is None and not value.strip():
        raise Fault(f"missing {name}", f"field {name!r} is empty", cure)
    _check_encodable(value, name)
    return value


def _list(value: Any) -> list[Any] | None:
    return list(value) if isinstance(value, (list, tuple)) else None


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("choices")
    if value is None:
        return ()
    choices = _list(value)
    if choices is None or not all(isinstance(c, str) and c.strip() for c in choices):
        what = "field 'choices' is not a list of non-empty strings"
        raise Fault("wrong type of choices", what, "write it as a list of strings")
    for choice in choices:
        _check_encodable(choice, "choices")
    return tuple(choices)


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    value = row.get("messages")
    if value is None:
        return ()
    messages = _list(value)
    fault = "wrong type of messages"
    if messages is None or not all(isinstance(m, Mapping) for m in messages):
        cure = 'write [{"role": "user", "content": "..."}, ...]'
        raise Fault(fault, "field 'messages' is not a list of objects", cure)
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            what = f"field 'messages', turn {number}: unknown role {role!r}"
            raise Fault(fault, what, f"use one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            what = f"field 'messages', turn {number}: 'content' is not a non-empty string"
            raise Fault(fault, what, "write the text of the turn")
        _check_encodable(content, "messages")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _check_task(
    task: str, audio: tuple[AudioCut, ...], messages: tuple[Mapping[str, Any], ...]
) -> None:
    if audio and task in TEXT_TWIN_TASKS.values():
        speech = next(name for name, twin in TEXT_TWIN_TASKS.items() if twin == task)
        what = f"task {task!r} is a text task but the row has 'audio'"
        raise Fault("audio in a text task", what, f"use task {speech!r}, or leave the audio out")
    if task in SPEECH_TASKS and not audio:
        what = f"task {task!r} needs 'audio', which is missing"
        twin = TEXT_TWIN_TASKS.get(task)
        cure = f"add the audio file, or use task {twin!r}" if twin else "add the audio file"
        raise Fault("missing audio", what, cure)
    # What the assistant says is text to be learnt, whatever it looks like.
    marks = sum(m["content"].count("{speech}") for m in messages if m["role"] != "assistant")
    if messages and marks != len(audio):
        what = f"'messages' has {marks} {{speech}} marks but 'audio' has {len(audio)} files"
        raise Fault("speech marks", what, "write one {speech} for each audio, in order")


def _audio(row: Mapping[str, Any]) -> tuple[AudioCut, ...]:
    value = row.get("audio")
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        paths = [_audio_path(item) for item in value]
        offsets, durations, speeds = (
            _per_audio(row, name, len(paths)) for name in ("offset", "duration", "speed")
        )
        return tuple(map(_cut, paths, offsets, durations, speeds))
    cut = _cut(_audio_path(value), row.get("offset"), row.get("duration"), row.get("speed"))
    return (cut,)


def _audio_path(value: Any) -> str:
    if isinstance(value, Mapping):  # a Hugging Face audio column, not decoded
        if value.get("bytes") is not None and not os.path.isabs(str(value.get("path") or "")):
            what = "field 'audio' holds the sound itself, not a path"
            raise Fault("audio in the table", what, "save the audio as files and give their paths")
        value = value.get("path")
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        what = f"field 'audio' is {_kind(value)}, not the path of a file"
        raise Fault("wrong type of audio", what, "write a path or a list of paths")
    _check_encodable(value, "audio")
    return value


def _per_audio(row: Mapping[str, Any], name: str, count: int) -> list[Any]:
    value = row.get(name)
    if value is None:
        return [None] * count
    values = _list(value)
    if values is None and count == 1:
        return [value]
    if values is None or len(values) != count:
        what = f"field {name!r} is not a list of {count} numbers like 'audio'"
        raise Fault(f"wrong type of {name}", what, f"write one {name} for each audio file")
    return values


def _cut(path: str, offset: Any, duration: Any, speed: Any) -> AudioCut:
    if offset is None:
        offset = 0.0
    elif not _is_number(offset) or not 0 <= offset <= MAX_DURATION_S:
        what = f"field 'offset' is {_short(offset)}, not seconds from 0 to {MAX_DURATION_S:g}"
        raise Fault("bad offset", what, "write the start of the cut in seconds, or leave it out")
    if duration is not None:
        # At least 1 ms: keys are to the millisecond.
        if not _is_number(duration) or not 0.001 <= duration <= MAX_DURATION_S:
            what = f"field 'duration' is {_short(duration)}, not seconds up to {MAX_DURATION_S:g}"
            cure = "write the length of the cut in seconds, or leave it out for the whole file"
            raise Fault("bad duration", what, cure)
        duration = float(duration)
    if speed is None:
        speed = 1.0
    elif not _is_number(speed) or not 0.25 <= speed <= 4:
        what = f"field 'speed' is {_short(speed)}, not a factor from 0.25 to 4"
        raise Fault("bad speed", what, "write a factor such as 0.9, or leave it out")
    return AudioCut(path, float(offset), duration, float(speed))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
