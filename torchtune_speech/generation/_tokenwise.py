"""Greedy decoding and sampling: every row takes its tokens by itself."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchtune_speech.generation._choose import forbid, sample
from torchtune_speech.generation._cycles import LoopDetector, TokenKinds
from torchtune_speech.generation._session import DecodingSession
from torchtune_speech.generation._settings import Answer, Decoding, Prompt

# An answer that still runs into loops after so many returns is cut.
MAX_RETURNS = 16


class _Row:
    """The answer to one prompt, as it grows."""

    def __init__(
        self, number: int, prompt: Prompt, settings: Decoding, kinds: TokenKinds | None
    ) -> None:
        self.number = number
        self.limit = settings.limit(prompt)
        self.policy = settings.loops
        self.random = np.random.default_rng([settings.seed, prompt.seed])
        self.detector = None if settings.loops == "none" else LoopDetector(kinds)
        self.tokens: list[int] = []
        self.cycles: list[tuple[int, ...]] = []
        self.finish_reason: str | None = None

    def banned(self) -> list[int]:
        """Tokens that would begin a forbidden cycle anew, right after it was said."""
        return [unit[0] for unit in self.cycles if self.detector.ends_with(unit)]

    def add(self, token: int, stop_ids: Sequence[int]) -> None:
        """Take a token; end, or return to the first cycle of a loop, if that is due."""
        if token in stop_ids:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        cycle = self.detector.add(token) if self.detector else None
        if cycle is not None:
            del self.tokens[cycle.start + len(cycle.unit) :]
            self.detector.rewind(len(self.tokens))
            self.cycles.append(cycle.unit)
            if self.policy == "cut" or len(self.cycles) > MAX_RETURNS:
                self.finish_reason = "loop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"

    def answer(self) -> Answer:
        return Answer(self.tokens, self.finish_reason, len(self.cycles))


def decode_tokenwise(
    session: DecodingSession,
    logits: Tensor,
    prompts: Sequence[Prompt],
    settings: Decoding,
    stop_ids: Sequence[int],
    kinds: TokenKinds | None = None,
) -> list[Answer]:
    """Decode each prompt's answer, until it ends or reaches its limit.

    Args:
        session: has read the prompts.
        logits: of the first tokens, ``[b, vocab]``.
        prompts: the batch.
        settings: greedy when the temperature is 0.
        stop_ids: tokens that end an answer.
        kinds: of the tokens, see :class:`LoopDetector`.

    Returns:
        One answer a prompt, in order.
    """
    rows = [_Row(i, prompt, settings, kinds) for i, prompt in enumerate(prompts)]
    answers: dict[int, Answer] = {}
    while True:
        logits = forbid(logits, [row.banned() for row in rows])
        for row, token in zip(rows, _choose(session, logits, rows, settings), strict=True):
            if row.finish_reason is None:
                row.add(token, stop_ids)
                if row.finish_reason is not None:
                    answers[row.number] = row.answer()
        if len(answers) == len(prompts):
            return [answers[number] for number in range(len(prompts))]
        rows = _without_finished(session, rows)
        for place, row in enumerate(rows):
            # All but the last token stay in the cache: fewer than it holds after a return from a
            # loop, and for finished rows, which wait to be dropped.
            session.cache.rewind(place, max(len(row.tokens) - 1, 0))
        logits = session.next([row.tokens[-1] if row.tokens else stop_ids[0] for row in rows])


def _choose(
    session: DecodingSession, logits: Tensor, rows: Sequence[_Row], settings: Decoding
) -> list[int]:
    if settings.temperature == 0:
        tokens = logits.argmax(dim=1)
    else:
        uniform = torch.tensor([row.random.random() for row in rows], dtype=torch.float64)
        tokens = sample(logits, uniform, settings.temperature, settings.top_p)
    return session.agree(tokens).tolist()


def _without_finished(session: DecodingSession, rows: list[_Row]) -> list[_Row]:
    """Drop finished rows from the cache, a few at a time: each time, the others are copied."""
    alive = [place for place, row in enumerate(rows) if row.finish_reason is None]
    if len(rows) - len(alive) <= len(rows) // 8:
        return rows
    session.cache.select(alive)
    return [rows[place] for place in alive]
