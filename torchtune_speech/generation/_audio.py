"""From one waveform and an instruction to an answer."""

import torch
from torch import Tensor

from torchtune_speech.data import (
    AudioCut,
    InterleaveSpeech,
    Llama3ChatFormat,
    PromptTemplates,
    Sample,
)
from torchtune_speech.encoders import Encoder
from torchtune_speech.features import average_frames
from torchtune_speech.generation._generate import generate
from torchtune_speech.generation._settings import Decoding, Prompt
from torchtune_speech.models import SpeechLLM


def answer_audio(
    model: SpeechLLM,
    encoder: Encoder,
    waveform: Tensor,
    instruction: str,
    *,
    chat: Llama3ChatFormat,
    templates: PromptTemplates,
    frame_average: int = 1,
    settings: Decoding | None = None,
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
        frame_average: frames averaged into one, as in the feature store of the training.
        settings: of decoding.
        cache_dtype: dtype of the cached keys and values.

    Returns:
        The answer.
    """
    frames = average_frames(encoder([waveform])[0], frame_average)
    sample = Sample(
        id="audio",
        task="instruct",
        target="",
        audio=(AudioCut("audio"),),
        extra={"instruction": instruction},
    )
    prompt = InterleaveSpeech(chat)(
        {
            "messages": templates.messages(sample, with_target=False),
            "speech_lengths": [model.projector.output_length(len(frames))],
        },
        inference=True,
    )
    answer = generate(
        model,
        [Prompt(prompt["tokens"], [frames])],
        settings,
        stop_ids=chat.stop_ids,
        placeholder_id=chat.placeholder_id,
        forbidden_ids=sorted(chat.special_ids),
        cache_dtype=cache_dtype,
    )
    return chat.decode(answer[0].tokens)
