"""Batched decoding with KV caches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from torchtune_speech.generation._beam import decode_beams
from torchtune_speech.generation._cycles import TokenKinds
from torchtune_speech.generation._session import DecodingSession
from torchtune_speech.generation._settings import Answer, Decoding, Prompt
from torchtune_speech.generation._tokenwise import decode_tokenwise
from torchtune_speech.models import SpeechLLM


@torch.no_grad()
def generate(
    model: SpeechLLM,
    prompts: Sequence[Prompt],
    settings: Decoding | None = None,
    *,
    stop_ids: Sequence[int],
    placeholder_id: int,
    forbidden_ids: Sequence[int] = (),
    kinds: TokenKinds | None = None,
    cache_dtype: torch.dtype = torch.float32,
) -> list[Answer]:
    """Decode the answers to a batch of prompts.

    The prompts are read once, side by side and without padding; each row then goes on by itself, so
    that the batch does not change the text. Rows that are done leave the batch. With weights
    sharded over processes all must be given the same batch, and all take the tokens that the first
    of them chooses.

    Args:
        model: the model; it is put into evaluation mode for the call.
        prompts: the batch.
        settings: see :class:`Decoding`; greedy decoding of 200 tokens by default.
        stop_ids: tokens that end an answer.
        placeholder_id: id that stands for a speech vector.
        forbidden_ids: ids never to be generated (the placeholder is always forbidden).
        kinds: of the tokens, by which loops are measured. Default: each is a word.
        cache_dtype: dtype of the keys and values, the one attention computes in.

    Returns:
        One answer a prompt, in order.

    Raises:
        InputError: if prompt and answer do not fit the positions the LLM knows.

    Example:
        >>> answers = generate(model, [Prompt(tokens, [frames])], Decoding(num_beams=4),
        ...                    stop_ids=chat.stop_ids, placeholder_id=chat.placeholder_id)
        >>> chat.decode(answers[0].tokens)
    """
    settings = settings or Decoding()
    if not prompts:
        return []
    with _evaluation_mode(model):
        session = DecodingSession(
            model,
            prompts,
            new_len=max(map(settings.limit, prompts)),
            placeholder_id=placeholder_id,
            forbidden_ids=[i for i in forbidden_ids if i not in stop_ids],
            cache_dtype=cache_dtype,
        )
        decode = decode_beams if settings.num_beams > 1 else decode_tokenwise
        return decode(session, session.read(prompts), prompts, settings, stop_ids, kinds)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
