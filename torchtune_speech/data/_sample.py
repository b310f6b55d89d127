"""A sample: what one row of a manifest says."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SPEECH_TASKS = frozenset({"asr", "st", "sqa"})
TEXT_TWIN_TASKS = {"st": "mt", "sqa": "qa"}


@dataclass(frozen=True, slots=True)
class AudioCut:
    """One stretch of one audio file.

    Attributes:
        path: the file, as written in the manifest: absolute, or relative to the manifest's folder.
        offset_s: where the stretch begins, in seconds of the recording.
        duration_s: its length in seconds of the recording (before any change of speed); ``None``
            means to the end of the file.
        speed: speed perturbation factor; 1.0 is as recorded, 1.1 plays faster and is shorter.
    """

    path: str
    offset_s: float = 0.0
    duration_s: float | None = None
    speed: float = 1.0

    @property
    def key(self) -> str:
        """Name of this stretch in a feature store.

        A whole file is its path; a cut adds ``@offset+duration`` in seconds to the millisecond, a
        changed speed ``~factor``: ``a.flac``, ``talk.wav@12.500+7.250``, ``talk.wav@12.500`` (to
        the end), ``a.flac~0.9``.
        """
        key = self.path
        if self.duration_s is not None:
            key += f"@{self.offset_s:.3f}+{self.duration_s:.3f}"
        elif self.offset_s:
            key += f"@{self.offset_s:.3f}"
        return key if self.speed == 1.0 else f"{key}~{self.speed:g}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One checked row of a manifest.

    Attributes:
        id: name of the row, unique in its manifest.
        task: asr, st, sqa, mt, qa, or any other name that the prompt templates know.
        target: the answer to be learnt; empty only where references are not required.
        audio: the stretches of audio, in the order in which the prompt takes them.
        source_lang: language of the audio or of ``source_text``.
        target_lang: language of the answer.
        source_text: transcript of the audio, or the text that stands in its place.
        question: question of sqa and qa rows.
        choices: options of a multiple-choice question.
        domain: corpus; a source of its own in weighted mixtures and in the scores.
        speaker: who speaks.
        messages: turns of a multi-turn sample, ``{"role": ..., "content": ...}``; ``{speech}`` in a
            content stands for the next audio.
        extra: columns of the row that are not in this list.
    """

    id: str
    task: str
    target: str
    audio: tuple[AudioCut, ...] = ()
    source_lang: str = "en"
    target_lang: str = "en"
    source_text: str | None = None
    question: str | None = None
    choices: tuple[str, ...] = ()
    domain: str = ""
    speaker: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transcript(self) -> str | None:
        """What is said in the audio, as far as the row tells: for asr the target says it."""
        return self.source_text or (self.target if self.task == "asr" else None)

    @property
    def is_speech(self) -> bool:
        """Whether the sample has audio."""
        return bool(self.audio)


def text_twin(sample: Sample) -> Sample | None:
    """Turn a speech sample into the text sample that asks for the same answer.

    Args:
        sample: any sample.

    Returns:
        st as mt and sqa as qa, with the same id and without audio; ``None`` for other tasks, for
        samples without ``source_text`` and for multi-turn samples.
    """
    task = TEXT_TWIN_TASKS.get(sample.task)
    if task is None or not sample.source_text or sample.messages:
        return None
    return dataclasses.replace(sample, task=task, audio=())


def data_fingerprint(samples: Sequence[Sample]) -> str:
    """Digest of everything in the samples that training sees, and of their order.

    Args:
        samples: the samples of a manifest.

    Returns:
        SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for s in samples:
        fields = (
            s.id, s.task, s.target, [cut.key for cut in s.audio], s.source_lang, s.target_lang,
            s.source_text, s.question, s.choices, s.domain, s.extra.get("instruction"),
            [(m["role"], m["content"]) for m in s.messages],
        )  # fmt: skip
        digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """Write a sample as the manifest row that reads back as the same sample.

    Args:
        sample: any sample.

    Returns:
        Columns that are not at their default, ``extra`` last.
    """
    row: dict[str, Any] = {"id": sample.id, "task": sample.task}
    cuts = sample.audio
    if len(cuts) == 1:
        row["audio"] = cuts[0].path
    elif cuts:
        row["audio"] = [cut.path for cut in cuts]
    for column, name, default in (
        ("offset", "offset_s", 0.0),
        ("duration", "duration_s", None),
        ("speed", "speed", 1.0),
    ):
        values = [getattr(cut, name) for cut in cuts]
        if any(value != default for value in values):
            row[column] = values[0] if len(cuts) == 1 else values
    row |= {"source_lang": sample.source_lang, "target_lang": sample.target_lang}
    for column in ("source_text", "question", "choices", "target", "domain", "speaker", "messages"):
        value = getattr(sample, column)
        if value:
            row[column] = list(value) if isinstance(value, tuple) else value
    return row | dict(sample.extra)
