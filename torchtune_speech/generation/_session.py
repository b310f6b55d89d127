"""A batch in the model: its prompts are read once, then a token of each row at a time."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from torchtune_speech.data import keep_index
from torchtune_speech.errors import InputError
from torchtune_speech.generation._settings import Prompt
from torchtune_speech.models import DecodingCache, SpeechLLM


class DecodingSession:
    """Reads a batch of prompts; gives the logits of what comes next.

    Args:
        model: the model, in evaluation mode.
        prompts: the batch.
        new_len: longest answer, in tokens.
        placeholder_id: id that stands for a speech vector; it is never generated.
        forbidden_ids: other ids that are never generated.
        cache_dtype: dtype of the cached keys and values.

    Raises:
        InputError: if prompt and answer do not fit the positions the LLM knows.
    """

    def __init__(
        self,
        model: SpeechLLM,
        prompts: Sequence[Prompt],
        *,
        new_len: int,
        placeholder_id: int,
        forbidden_ids: Sequence[int] = (),
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        table = model.decoder.tok_embeddings
        self._model, self._device = model, table.weight.device
        # torchtune numbers <|image|> outside the embedding table.
        inside = sorted(i for i in {*forbidden_ids, placeholder_id} if i < table.num_embeddings)
        self._forbidden = torch.tensor(inside, dtype=torch.long, device=self._device)
        sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        self._together = sharded and dist.is_initialized() and dist.get_world_size() > 1
        lengths = [len(p.tokens) for p in prompts]
        if max(lengths) + new_len > model.decoder.max_seq_len:
            raise InputError(
                f"max_new_tokens: {max(lengths)} tokens of a prompt and {new_len} new ones, but "
                f"the LLM has {model.decoder.max_seq_len} positions; lower it"
            )
        self._placeholder_id = placeholder_id
        self.cache = DecodingCache(
            model.decoder, lengths, new_len, dtype=cache_dtype, device=self._device
        )

    def read(self, prompts: Sequence[Prompt]) -> Tensor:
        """Read the prompts.

        Args:
            prompts: the batch.

        Returns:
            Logits of each answer's first token, ``[b, vocab]``, float32.
        """
        tokens = torch.tensor([t for p in prompts for t in p.tokens], device=self._device)
        frames = [f for p in prompts for f in p.frames]
        speech = {}
        placeholders = (tokens == self._placeholder_id).nonzero().flatten()
        if len(placeholders) and not frames:
            raise ValueError(f"{len(placeholders)} placeholders in prompts without frames")
        if frames:
            speech = {
                "frames": torch.cat(frames).float().to(self._device),
                "frame_lengths": torch.tensor([len(f) for f in frames]),
                "speech_index": placeholders,
                "keep_index": self._keep_index([p for p in prompts if p.frames]),
            }
        ends = torch.tensor(self.cache.lengths, device=self._device).cumsum(0) - 1
        logits = self._model(tokens[None], cache=self.cache, select=ends, **speech)
        return self._allowed(logits)

    def _keep_index(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Vectors of the prompts with speech that stand at placeholders; None for all."""
        if all(p.kept is None for p in prompts):
            return None
        count = self._model.projector.output_length
        vectors = [[count(len(f)) for f in p.frames] for p in prompts]
        kept = [
            torch.arange(n) if p.kept is None else p.kept[i]
            for p, counts in zip(prompts, vectors, strict=True)
            for i, n in enumerate(counts)
        ]
        return keep_index(kept, [n for counts in vectors for n in counts]).to(self._device)

    def next(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row.

        Args:
            tokens: one a row.

        Returns:
            Logits of what follows, ``[rows, vocab]``, float32.
        """
        column = torch.tensor(tokens, device=self._device)[:, None]
        return self._allowed(self._model(column, cache=self.cache))

    def agree(self, choice: Tensor) -> Tensor:
        """A choice as the first process makes it, where weights are sharded over processes.

        A tie resolved in another way in one of them would leave the others waiting for it.

        Args:
            choice: any tensor; it may be changed in place.

        Returns:
            The first process's tensor.
        """
        if self._together:
            choice = choice.contiguous()
            dist.broadcast(choice, src=0)
        return choice

    def _allowed(self, logits_rv: Tensor) -> Tensor:
        return logits_rv.float().index_fill(1, self._forbidden, -torch.inf)
