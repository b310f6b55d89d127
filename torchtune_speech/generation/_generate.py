"""Batched greedy decoding with KV caches."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtune.modules import local_kv_cache

from torchtune_speech.models import SpeechLLM, decode_mask, prefill_mask


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to answer.

    Args:
        tokens: prompt with placeholders, up to the opened assistant turn.
        frames: encoder frames of each utterance in it, ``[t, d]``.
    """

    tokens: Sequence[int]
    frames: Sequence[Tensor] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Args:
        tokens: generated ids, without the stop token.
        finish_reason: ``stop`` when the model ended its turn, ``length`` when it was cut.
    """

    tokens: list[int]
    finish_reason: str


@torch.no_grad()
def generate(
    model: SpeechLLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    placeholder_id: int,
    forbidden_ids: Sequence[int] = (),
    cache_dtype: torch.dtype = torch.float32,
) -> list[Answer]:
    """Greedy decoding of a batch.

    Prompts are padded on the right and read once; each new token then takes the next slot of the
    cache while its position counts from its own prompt's end, so that the batch does not change the
    text. With weights sharded over processes all must be given the same batch, and all take the
    tokens that the first of them chooses: a tie resolved in another way in one of them would leave
    the others waiting for it.

    Args:
        model: the model; it is put into evaluation mode for the call.
        prompts: the batch.
        max_new_tokens: longest answer, in tokens.
        stop_ids: tokens that end an answer.
        pad_id: id for padding.
        placeholder_id: id that stands for a speech vector.
        forbidden_ids: ids never to be generated (the placeholder is always forbidden).
        cache_dtype: dtype of the keys and values, the one attention computes in.

    Returns:
        One answer a prompt, in order.
    """
    was_training = model.training
    model.eval()
    device = model.decoder.tok_embeddings.weight.device
    lengths = torch.tensor([len(p.tokens) for p in prompts], device=device)
    prompt_len = int(lengths.max())
    cache_len = prompt_len + max_new_tokens
    cache = local_kv_cache(
        model.decoder,
        batch_size=len(prompts),
        device=device,
        dtype=cache_dtype,
        decoder_max_seq_len=cache_len,
    )
    try:
        with cache:
            choose = _chooser(
                [i for i in {*forbidden_ids, placeholder_id} if i not in stop_ids],
                device,
                together=any(isinstance(m, FSDPModule) for m in model.modules()),
            )
            logits = _prefill(
                model, prompts, lengths, prompt_len, cache_len, pad_id, placeholder_id
            )
            new = _decode(
                model, choose(logits), choose, lengths, prompt_len, cache_len, list(stop_ids)
            )
    finally:
        model.train(was_training)
    return [_answer(row, stop_ids) for row in new.tolist()]


def _prefill(
    model: SpeechLLM,
    prompts: Sequence[Prompt],
    lengths: Tensor,
    prompt_len: int,
    cache_len: int,
    pad_id: int,
    placeholder_id: int,
) -> Tensor:
    device = lengths.device
    tokens = torch.full((len(prompts), prompt_len), pad_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt.tokens)] = torch.tensor(prompt.tokens)
    tokens = tokens.to(device)
    frames = [f for p in prompts for f in p.frames]
    speech = {}
    if frames:
        speech = {
            "frames": torch.cat(frames).float().to(device),
            "frame_lengths": torch.tensor([len(f) for f in frames]),
            "speech_index": (tokens.flatten() == placeholder_id).nonzero().flatten(),
        }
    rows = torch.arange(len(prompts), device=device)
    return model(
        tokens,
        mask=prefill_mask(lengths, prompt_len, cache_len),
        input_pos=torch.arange(prompt_len, device=device).expand(len(prompts), -1),
        select=rows * prompt_len + lengths - 1,
        **speech,
    )


def _decode(
    model: SpeechLLM,
    token: Tensor,
    choose: Callable[[Tensor], Tensor],
    lengths: Tensor,
    prompt_len: int,
    cache_len: int,
    stop_ids: list[int],
) -> Tensor:
    """Tokens ``[b, n]``; a row's tokens after its stop token are meaningless."""
    stops = torch.tensor(stop_ids, device=token.device)
    done = torch.isin(token, stops)
    new = [token]
    while len(new) < cache_len - prompt_len and not bool(done.all()):
        step = len(new) - 1
        logits = model(
            token[:, None],
            mask=decode_mask(lengths, prompt_len, step, cache_len),
            input_pos=(lengths + step)[:, None],
        )
        token = choose(logits[:, -1])
        done |= torch.isin(token, stops)
        new.append(token)
    return torch.stack(new, dim=1)


def _chooser(
    forbidden: Sequence[int], device: torch.device, together: bool = False
) -> Callable[[Tensor], Tensor]:
    """Best allowed token of each row; ``together``: as the first process finds."""
    banned = torch.tensor(sorted(forbidden), dtype=torch.long, device=device)

    def choose(logits_bv: Tensor) -> Tensor:
        # torchtune numbers <|image|> outside the embedding table.
        inside = banned[banned < logits_bv.shape[1]]
        token = logits_bv.float().index_fill(1, inside, -torch.inf).argmax(dim=1)
        if together and dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(token, src=0)
        return token

    return choose


def _answer(tokens: list[int], stop_ids: Sequence[int]) -> Answer:
    for at, token in enumerate(tokens):
        if token in stop_ids:
            return Answer(tokens[:at], "stop")
    return Answer(tokens, "length")
