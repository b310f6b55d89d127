"""The builder that configs name: manifests and a feature store to a data set."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchtune.models.llama3 import Llama3Tokenizer

from torchtune_speech.config import signature_problem
from torchtune_speech.data import (
    ChatFormat,
    KeptPositions,
    PromptTemplates,
    Sample,
    SpeechDataset,
    TranscriptDataset,
    TranscriptTargets,
    chat_format,
    ctc_labels,
    load_manifest,
    resolve_token,
    text_twin,
    unanswerable_samples,
)
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore


def speech_dataset(
    manifest: str | Sequence[str],
    *,
    tokenizer: Llama3Tokenizer | ChatFormat,
    max_seq_len: int,
    features: str | None = None,
    frame_average: int | None = None,
    templates: str = "mcif_fixed",
    tasks: Sequence[str] | None = None,
    where: Mapping[str, Any] | None = None,
    speeds: Sequence[float] = (1.0,),
    output_length: Callable[[int], int] = int,
    kept: str | None = None,
    ctc: str | None = None,
    pad_token: str | int | None = None,
    normalize: Callable[[str, str], str] = lambda text, lang: text,
    unanswerable: Mapping[str, Any] | None = None,
    text_twins: bool = False,
    on_bad_sample: str = "fail",
    on_too_long: str = "fail",
    require_target: bool = True,
    with_answers: bool = True,
) -> SpeechDataset:
    """Samples of one or several manifests, speech or text.

    Args:
        manifest: file or files.
        tokenizer: of the LLM, torchtune's for Llama 3 or a chat format with its own.
        max_seq_len: longest allowed sample, in tokens.
        features: folder of the feature store; None when all samples are text.
        frame_average: frames averaged at reading, when the store holds them one by one.
        templates: packaged prompt set, or a YAML file.
        tasks: keep these tasks only.
        where: keep rows whose columns have these values, e.g. ``{"split": "train"}``.
        speeds: copies of each speech sample at these speeds; the store must hold them.
        output_length: frames to speech vectors, ``projector.output_length``.
        kept: file of ``torchtune-speech keep``: the LLM reads the speech vectors that it names,
            those that are no pads. Default None: it reads all.
        ctc: label set of the auxiliary CTC loss: ``characters``, ``tokens`` or None.
        pad_token: id, name or text of the token that fills up a transcript: each speech vector
            then has a token whose embedding it is to be (:class:`TranscriptTargets`). None for no
            such targets.
        normalize: ``(text, language) -> text``, put over each transcript for these targets and for
            the CTC labels. Default all of it.
        unanswerable: settings of :func:`torchtune_speech.data.unanswerable_samples` (``share``,
            ``generic``, ``max_overlap``, ``seed``), which are then added. Default None: none.
        text_twins: take the samples' text twins instead, and the text samples as they are.
        on_bad_sample: ``fail`` or ``skip`` bad rows.
        on_too_long: ``fail`` or ``skip`` samples longer than ``max_seq_len``, and with
            ``pad_token`` transcripts with more tokens than speech vectors.
        require_target: refuse rows without a target; False for inference.
        with_answers: whether a sample's answer counts in its length; False for inference.

    Returns:
        The data set.

    Raises:
        InputError: if a file is missing, a row is bad, or a setting is wrong.
    """
    check_speeds(speeds)
    samples = _load(manifest, tasks, where, on_bad_sample, require_target)
    prompts = PromptTemplates.from_yaml(templates)
    if unanswerable is not None:
        samples += _unanswerable(samples, prompts, unanswerable)
    if text_twins:
        samples = _twins(samples)
    chat = chat_format(tokenizer)
    targets = None
    if pad_token is not None:
        pad_id = resolve_token(pad_token, chat)
        targets = TranscriptTargets(chat, pad_token=pad_id, normalize=normalize)
    return SpeechDataset(
        [copy for sample in samples for copy in at_speeds(sample, speeds)],
        chat=chat,
        templates=prompts,
        store=FeatureStore(features, frame_average) if features else None,
        output_length=output_length,
        kept=KeptPositions(kept) if kept else None,
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
        with_answers=with_answers,
        ctc=ctc_labels(ctc, chat),
        normalize=normalize,
        targets=targets,
    )


def transcript_dataset(
    manifest: str | Sequence[str],
    *,
    tokenizer: Llama3Tokenizer | ChatFormat,
    features: str,
    pad_token: str | int,
    output_length: Callable[[int], int],
    normalize: Callable[[str, str], str],
    max_frames: int,
    frame_average: int | None = None,
    tasks: Sequence[str] | None = ("asr",),
    where: Mapping[str, Any] | None = None,
    speeds: Sequence[float] = (1.0,),
    ctc: str | None = None,
    on_bad_sample: str = "fail",
    on_too_long: str = "fail",
) -> TranscriptDataset:
    """Utterances of one or several manifests with their transcripts as tokens.

    Args:
        manifest: file or files.
        tokenizer: of the LLM.
        features: folder of the feature store.
        pad_token: id, name or text of the token that fills up a transcript.
        output_length: frames to speech vectors, ``projector.output_length``.
        normalize: ``(text, language) -> text``, put over each transcript.
        max_frames: longest allowed utterance, in frames.
        frame_average: frames averaged at reading, when the store holds them one by one.
        tasks: keep these tasks only; rows of others may serve too, if they have ``source_text``.
            Default asr.
        where: keep rows whose columns have these values.
        speeds: copies of each utterance at these speeds; the store must hold them.
        ctc: label set of the auxiliary CTC loss: ``characters``, ``tokens`` or None.
        on_bad_sample: ``fail`` or ``skip`` bad rows.
        on_too_long: ``fail`` or ``skip`` utterances longer than ``max_frames``, and transcripts
            with more tokens than speech vectors.

    Returns:
        The data set.

    Raises:
        InputError: if a file is missing, or a row is bad.
    """
    check_speeds(speeds)
    chat = chat_format(tokenizer)
    samples = _load(manifest, tasks, where, on_bad_sample, require_target=True)
    return TranscriptDataset(
        [copy for sample in samples for copy in at_speeds(sample, speeds)],
        chat=chat,
        store=FeatureStore(features, frame_average),
        output_length=output_length,
        pad_token=resolve_token(pad_token, chat),
        normalize=normalize,
        max_frames=max_frames,
        on_too_long=on_too_long,
        ctc=ctc_labels(ctc, chat),
    )


def _load(
    manifest: str | Sequence[str],
    tasks: Sequence[str] | None,
    where: Mapping[str, Any] | None,
    on_bad_sample: str,
    require_target: bool,
) -> list[Sample]:
    """The rows of one or several manifests."""
    return [
        sample
        for path in ([manifest] if isinstance(manifest, str) else list(manifest))
        for sample in load_manifest(
            path,
            tasks=tasks,
            where=where,
            on_bad_sample=on_bad_sample,
            check_audio=False,  # training reads the feature store, not the audio
            require_target=require_target,
            skip_key="dataset.on_bad_sample",
        )
    ]


def _twins(samples: Sequence[Sample]) -> list[Sample]:
    """The text twins of speech samples, and text samples as they are."""
    twins = [twin for s in samples if (twin := text_twin(s) if s.is_speech else s)]
    if not twins:
        raise InputError(
            "dataset.text_twins: no sample has a text twin; st and sqa rows have one when they "
            "have source_text"
        )
    return twins


def _unanswerable(
    samples: Sequence[Sample], prompts: PromptTemplates, settings: Any
) -> list[Sample]:
    """Samples made as the settings of a config say."""
    if not isinstance(settings, Mapping):
        raise InputError(
            f"dataset.unanswerable: {settings!r}; write settings as in {{share: 0.1}}, or null"
        )
    problem = signature_problem(unanswerable_samples, (samples, prompts), settings)
    if problem:
        raise InputError(f"dataset.unanswerable: {problem}")
    return unanswerable_samples(samples, prompts, **settings)


def check_speeds(speeds: Any, key: str = "dataset.speeds") -> None:
    """Refuse what is no list of speeds.

    Args:
        speeds: see :func:`at_speeds`.
        key: where it stands in the config.

    Raises:
        InputError: saying what to give.
    """
    is_list = isinstance(speeds, Sequence) and not isinstance(speeds, str) and len(speeds) > 0
    if not is_list or not all(isinstance(s, (int, float)) and 0.25 <= s <= 4 for s in speeds):
        raise InputError(f"{key}: {speeds!r}; give a list of factors from 0.25 to 4")


def at_speeds(sample: Sample, speeds: Sequence[float]) -> list[Sample]:
    """Speed-perturbed copies of a sample.

    Args:
        sample: any sample; a text sample, and one whose row names a speed, come once as they are.
        speeds: factors; 1.0 is the sample itself.

    Returns:
        One sample a speed, with ids ``id``, ``id~0.9``.
    """
    if not sample.audio or any(cut.speed != 1.0 for cut in sample.audio):
        return [sample]
    return [
        sample
        if speed == 1.0
        else dataclasses.replace(
            sample,
            id=f"{sample.id}~{speed:g}",
            audio=tuple(dataclasses.replace(cut, speed=speed) for cut in sample.audio),
        )
        for speed in speeds
    ]
