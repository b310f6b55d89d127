"""From one waveform and an instruction to an answer."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchtune_speech.data import (
    AudioCut,
    ChatFormat,
    InterleaveSpeech,
    PromptTemplates,
    Sample,
)
from torchtune_speech.encoders import Encoder
from torchtune_speech.errors import InputError
from torchtune_speech.features import average_frames
from torchtune_speech.generation._cycles import TokenKinds
from torchtune_speech.generation._generate import generate
from torchtune_speech.generation._join import join_texts
from torchtune_speech.generation._settings import Decoding, Prompt, speech_token_limit
from torchtune_speech.models import SpeechLLM


def answer_audio(
    model: SpeechLLM,
    encoder: Encoder,
    waveform: Tensor,
    instruction: str,
    *,
    chat: ChatFormat,
    templates: PromptTemplates,
    windows: Sequence[tuple[float, float]] = (),
    join: bool = True,
    overlap_s: float = 0.0,
    frame_average: int = 1,
    keep: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
    settings: Decoding | None = None,
    speech_tokens_per_second: float | None = None,
    max_seq_len: int | None = None,
    batch_size: int = 8,
    cache_dtype: torch.dtype = torch.float32,
) -> str:
    """Answer an instruction about a piece of audio.

    Args:
        model: the model, with its projector.
        encoder: the encoder that the projector was trained on.
        waveform: mono audio at the encoder's sampling rate, ``[samples]``.
        instruction: what to do, in words.
        chat: the LLM's chat format.
        templates: their wrapping goes around speech and instruction.
        windows: offset and duration of the windows that the encoder hears one by one, in seconds.
            Default: all of the audio at once.
        join: answer every window by itself and join the texts, as for a transcript; False gives
            one answer to all windows, which the LLM then hears one after the other.
        overlap_s: what two windows have in common, in seconds.
        frame_average: frames averaged into one, as in the feature store of the training.
        keep: frames of each window to the positions of the speech vectors that the LLM reads.
            Default None: it reads all.
        settings: of decoding.
        speech_tokens_per_second: the answer also has at most this many tokens for each second that
            it is about, see :func:`speech_token_limit`. Default None: the settings' limit alone.
        max_seq_len: longest prompt, in tokens. Default None: what the LLM can take.
        batch_size: windows encoded and answered together.
        cache_dtype: dtype of the cached keys and values.

    Returns:
        The answer.

    Raises:
        InputError: if the prompt is too long.
    """
    rate = encoder.sampling_rate
    pieces = [
        waveform[round(offset * rate) : round((offset + duration) * rate)]
        for offset, duration in windows
    ] or [waveform]
    frames = [
        average_frames(one, frame_average)
        for start in range(0, len(pieces), batch_size)
        for one in encoder(pieces[start : start + batch_size])
    ]
    kept = None if keep is None else keep(frames)
    # The pieces that are heard together, one or all.
    together = [slice(i, i + 1) for i in range(len(pieces))] if join else [slice(None)]
    prompts = [
        _limited(
            audio_prompt(
                frames[some],
                instruction,
                model=model,
                chat=chat,
                templates=templates,
                kept=None if kept is None else kept[some],
            ),
            seconds=sum(map(len, pieces[some])) / rate,
            seed=number,
            tokens_per_second=speech_tokens_per_second,
            max_seq_len=max_seq_len,
        )
        for number, some in enumerate(together)
    ]
    looks = settings is not None and settings.loops != "none"
    kinds = TokenKinds.from_texts(chat.token_texts) if looks else None
    answers = [
        answer
        for start in range(0, len(prompts), batch_size)
        for answer in generate(
            model,
            prompts[start : start + batch_size],
            settings,
            stop_ids=chat.stop_ids,
            placeholder_id=chat.placeholder_id,
            forbidden_ids=sorted(chat.special_ids),
            kinds=kinds,
            cache_dtype=cache_dtype,
        )
    ]
    return join_texts([chat.decode(answer.tokens) for answer in answers], overlap_s)


def _limited(
    prompt: Prompt,
    *,
    seconds: float,
    seed: int,
    tokens_per_second: float | None,
    max_seq_len: int | None,
) -> Prompt:
    """A prompt with its limit and its seed, unless it is too long itself."""
    if max_seq_len is not None and len(prompt.tokens) > max_seq_len:
        raise InputError(
            f"audio: {len(prompt.tokens)} tokens as a prompt, max_seq_len is {max_seq_len}; "
            "raise it, or let the windows be answered one by one (long_answer=join)"
        )
    limit = None
    if tokens_per_second is not None:
        limit = speech_token_limit(seconds, tokens_per_second)
    return dataclasses.replace(prompt, max_new_tokens=limit, seed=seed)


def audio_prompt(
    frames: Sequence[Tensor],
    instruction: str,
    *,
    model: SpeechLLM,
    chat: ChatFormat,
    templates: PromptTemplates,
    kept: Sequence[Tensor] | None = None,
) -> Prompt:
    """The prompt of an instruction about encoder frames.

    Args:
        frames: of each piece of audio, ``[t, d]``; the LLM hears them one after the other.
        instruction: what to do, in words.
        model: the model, whose projector says how many vectors the frames become.
        chat: the LLM's chat format.
        templates: their wrapping goes around speech and instruction.
        kept: positions of the speech vectors of each piece that it reads. Default None: all.

    Returns:
        The prompt.
    """
    sample = Sample(
        id="audio",
        task="instruct",
        target="",
        audio=tuple(AudioCut(str(number)) for number in range(len(frames))),
        extra={"instruction": instruction},
    )
    lengths = [model.projector.output_length(len(one)) for one in frames]
    if kept is not None:
        lengths = [len(positions) for positions in kept]
    messages = templates.messages(sample, with_target=False)
    encoded = InterleaveSpeech(chat)(
        {"messages": messages, "speech_lengths": lengths}, inference=True
    )
    return Prompt(encoded["tokens"], frames, kept=kept)
