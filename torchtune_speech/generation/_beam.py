"""Beam search: several hypotheses of each answer, the best of them at the end."""

import dataclasses
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from torchtune_speech.generation._cycles import LoopDetector
from torchtune_speech.generation._session import DecodingSession
from torchtune_speech.generation._settings import Answer, Decoding, Prompt


@dataclasses.dataclass(slots=True)
class _Hypothesis:
    tokens: list[int]
    score: float  # summed log-probability
    detector: LoopDetector | None


class _Search:
    """The hypotheses of one answer."""

    def __init__(
        self, number: int, prompt: Prompt, settings: Decoding, number_ids: Collection[int]
    ) -> None:
        self.number, self.width = number, settings.num_beams
        limit = prompt.max_new_tokens or settings.max_new_tokens
        self.limit = min(limit, settings.max_new_tokens)
        self.penalty, self.policy = settings.length_penalty, settings.loops
        detector = None if settings.loops == "none" else LoopDetector(number_ids)
        first = _Hypothesis([], 0.0, detector)
        # All begin alike: only the first may branch out.
        self.live = [first] + [_Hypothesis([], -torch.inf, detector)] * (self.width - 1)
        self.finished: list[tuple[float, Answer]] = []
        self.loops = 0

    def step(self, candidates: Sequence[tuple[float, int, int]], stop_ids: Sequence[int]) -> None:
        """Take the best continuations.

        Args:
            candidates: summed log-probability, hypothesis and token, best first; more than there
                are hypotheses, since some of them end.
            stop_ids: tokens that end an answer.
        """
        before, self.live, self.parents = self.live, [], []
        for rank, (score, parent, token) in enumerate(candidates):
            if len(self.live) == self.width or score == -torch.inf:
                break
            old = before[parent]
            if token in stop_ids:
                if rank < self.width:
                    self._finish(old.tokens, score, "stop", len(old.tokens) + 1)
                continue
            detector = old.detector and old.detector.copy()
            cycle = detector.add(token) if detector else None
            if cycle is not None:
                self.loops += 1
                if self.policy == "cut":
                    kept = old.tokens[: cycle.start + len(cycle.unit)]
                    self._finish(kept, score, "loop", len(old.tokens) + 1)
                continue
            self.live.append(_Hypothesis([*old.tokens, token], score, detector))
            self.parents.append(parent)
        if not self.live and not self.finished:  # everything ran into loops
            self._finish(before[0].tokens, before[0].score, "loop", len(before[0].tokens))
        # Keep the number of hypotheses where too few continuations were left.
        while self.live and len(self.live) < self.width:
            first = self.live[0]
            self.live.append(dataclasses.replace(first, score=-torch.inf))
            self.parents.append(self.parents[0])

    def _finish(self, tokens: list[int], score: float, reason: str, length: int) -> None:
        answer = Answer(list(tokens), reason, self.loops)
        self.finished.append((score / max(length, 1) ** self.penalty, answer))
        self.finished.sort(key=lambda pair: -pair[0])
        del self.finished[self.width :]

    def end(self) -> bool:
        """End the search if no living hypothesis can be expected to become the best.

        Returns:
            Whether it has ended.
        """
        if not self.live:
            return True
        length = len(self.live[0].tokens)
        if length >= self.limit:
            for h in self.live:
                self._finish(h.tokens, h.score, "length", length)
            self.live = []
            return True
        best = max(h.score for h in self.live) / length**self.penalty
        return len(self.finished) == self.width and best <= self.finished[-1][0]

    def answer(self) -> Answer:
        return dataclasses.replace(self.finished[0][1], loops=self.loops)


def decode_beams(
    session: DecodingSession,
    logits: Tensor,
    prompts: Sequence[Prompt],
    settings: Decoding,
    stop_ids: Sequence[int],
    number_ids: Collection[int] = (),
) -> list[Answer]:
    """Decode each prompt's answer by beam search.

    A search ends when it has ``num_beams`` finished hypotheses and none that is alive scores better
    at its present length. Hypotheses that run into a loop are dropped (policy ``forbid``) or count
    as finished after their first cycle (``cut``).

    Args:
        session: has read the prompts.
        logits: of the first tokens, ``[b, vocab]``.
        prompts: the batch.
        settings: number of beams, length penalty, loop policy.
        stop_ids: tokens that end an answer.
        number_ids: tokens that are numbers, see :class:`LoopDetector`.

    Returns:
        One answer a prompt, in order.
    """
    width = settings.num_beams
    searches = [_Search(i, prompt, settings, number_ids) for i, prompt in enumerate(prompts)]
    session.cache.select([row for row in range(len(prompts)) for _ in range(width)])
    logits = logits.repeat_interleave(width, dim=0)
    answers: dict[int, Answer] = {}
    while True:
        for search, candidates in zip(
            searches, _candidates(session, logits, searches, width, len(stop_ids)), strict=True
        ):
            search.step(candidates, stop_ids)
        done = {search.number: search.end() for search in searches}
        answers |= {search.number: search.answer() for search in searches if done[search.number]}
        if len(answers) == len(prompts):
            return [answers[number] for number in range(len(prompts))]
        _follow(session, searches, done, width)
        searches = [search for search in searches if not done[search.number]]
        logits = session.next([h.tokens[-1] for search in searches for h in search.live])


def _candidates(
    session: DecodingSession,
    logits: Tensor,
    searches: Sequence[_Search],
    width: int,
    num_stops: int,
) -> list[list[tuple[float, int, int]]]:
    """The best continuations of each search: score, hypothesis, token."""
    vocab = logits.shape[1]
    scores = [h.score for search in searches for h in search.live]
    totals = torch.log_softmax(logits, dim=1) + torch.tensor(scores, device=logits.device)[:, None]
    # Each hypothesis may give its stop tokens and a loop away.
    count = min(width * (2 + num_stops), width * vocab)
    best, place = totals.view(len(searches), -1).topk(count, dim=1)
    best, place = session.agree(best).tolist(), session.agree(place).tolist()
    return [
        [(score, at // vocab, at % vocab) for score, at in zip(row, places, strict=True)]
        for row, places in zip(best, place, strict=True)
    ]


def _follow(
    session: DecodingSession, searches: Sequence[_Search], done: dict[int, bool], width: int
) -> None:
    """Let the cache follow the hypotheses: each takes its parent's tokens."""
    rows, kept = [], []
    for number, search in enumerate(searches):
        same = range(number * width, (number + 1) * width)
        rows += same if done[search.number] else [number * width + p for p in search.parents]
        kept += [] if done[search.number] else same
    if rows != list(range(len(rows))):
        session.cache.reorder(rows)
    if len(kept) < len(rows):
        session.cache.select(kept)
