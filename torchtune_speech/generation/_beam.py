"""Beam search: several hypotheses of each answer, the best of them at the end."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchtune_speech.generation._cycles import Cycle, LoopDetector, TokenKinds
from torchtune_speech.generation._session import DecodingSession
from torchtune_speech.generation._settings import Answer, Decoding, Prompt


@dataclasses.dataclass(frozen=True, slots=True)
class _Hypothesis:
    """A beginning of an answer, or a finished one.

    Args:
        tokens: so far.
        score: their summed log-probability.
        detector: has seen the tokens; None when loops are let run.
        cycle: the first loop in them.
        finish_reason: None while it is alive.
    """

    tokens: list[int]
    score: float
    detector: LoopDetector | None
    cycle: Cycle | None = None
    finish_reason: str | None = None

    def followed_by(self, token: int, score: float) -> "_Hypothesis":
        detector = self.detector and self.detector.copy()
        found = detector.add(token) if detector else None
        return _Hypothesis([*self.tokens, token], score, detector, self.cycle or found)

    def first_cycle_only(self) -> list[int]:
        return self.tokens[: self.cycle.start + len(self.cycle.unit)]


class _Search:
    """The hypotheses of one answer."""

    def __init__(
        self, number: int, prompt: Prompt, settings: Decoding, kinds: TokenKinds | None
    ) -> None:
        self.number, self.width = number, settings.num_beams
        self.limit, self.penalty = settings.limit(prompt), settings.length_penalty
        self.policy = settings.loops
        self.finished: list[tuple[float, _Hypothesis]] = []
        self.best_without_loop: tuple[float, _Hypothesis] | None = None
        detector = None if self.policy == "none" else LoopDetector(kinds)
        first = _Hypothesis([], 0.0, detector)
        # All begin alike: only the first may branch out, the others are worth nothing.
        self.live = [first] + [_Hypothesis([], -torch.inf, detector)] * (self.width - 1)
        self.parents = list(range(self.width))

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
            if token not in stop_ids:
                self.live.append(before[parent].followed_by(token, score))
                self.parents.append(parent)
            elif rank < self.width:
                self._finish(before[parent], score, "stop", len(before[parent].tokens) + 1)
        # Keep the number of hypotheses where too few continuations were left.
        while self.live and len(self.live) < self.width:
            self.live.append(dataclasses.replace(self.live[0], score=-torch.inf))
            self.parents.append(self.parents[0])

    def _finish(self, hypothesis: _Hypothesis, score: float, reason: str, length: int) -> None:
        ended = dataclasses.replace(hypothesis, finish_reason=reason)
        value = score / max(length, 1) ** self.penalty
        self.finished.append((value, ended))
        self.finished.sort(key=lambda pair: -pair[0])
        del self.finished[self.width :]
        if ended.cycle is None and value > (self.best_without_loop or (-torch.inf,))[0]:
            self.best_without_loop = value, ended

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
                self._finish(h, h.score, "length", length)
            self.live = []
            return True
        best = self.live[0].score / max(length, 1) ** self.penalty
        return len(self.finished) == self.width and best <= self.finished[-1][0]

    def answer(self) -> Answer:
        """The best hypothesis; if it loops, what the policy puts in its place."""
        best = self.finished[0][1]
        if best.cycle is None:
            return Answer(best.tokens, best.finish_reason)
        if self.policy == "forbid" and self.best_without_loop is not None:
            other = self.best_without_loop[1]
            return Answer(other.tokens, other.finish_reason, loops=1)
        return Answer(best.first_cycle_only(), "loop", loops=1)


def decode_beams(
    session: DecodingSession,
    logits: Tensor,
    prompts: Sequence[Prompt],
    settings: Decoding,
    stop_ids: Sequence[int],
    kinds: TokenKinds | None = None,
) -> list[Answer]:
    """Decode each prompt's answer by beam search.

    A search ends when it has ``num_beams`` finished hypotheses and none that is alive scores better
    at its present length. When the best hypothesis of all has a loop, the answer is its beginning
    up to the first cycle (policy ``cut``), or the best one without a loop, if one was finished
    (``forbid``). The search itself is the same under every policy: a hypothesis that loops need not
    be the best in the end.

    Args:
        session: has read the prompts.
        logits: of the first tokens, ``[b, vocab]``.
        prompts: the batch.
        settings: number of beams, length penalty, loop policy.
        stop_ids: tokens that end an answer.
        kinds: of the tokens, see :class:`LoopDetector`.

    Returns:
        One answer a prompt, in order.
    """
    width = settings.num_beams
    searches = [_Search(i, prompt, settings, kinds) for i, prompt in enumerate(prompts)]
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
        searches = _follow(session, searches, done, width)
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
    scores = torch.tensor(scores, device=logits.device)
    totals = (torch.log_softmax(logits, dim=1) + scores[:, None]).view(len(searches), -1)
    # Each hypothesis may give its stop tokens away.
    best, place = totals.topk(min(width * (1 + num_stops), width * vocab), dim=1)
    best, place = session.agree(best).tolist(), session.agree(place).tolist()
    return [
        [(score, at // vocab, at % vocab) for score, at in zip(row, places, strict=True)]
        for row, places in zip(best, place, strict=True)
    ]


def _follow(
    session: DecodingSession, searches: Sequence[_Search], done: dict[int, bool], width: int
) -> list[_Search]:
    """Let the cache follow the hypotheses, each in its parent's row; drop searches that are over.

    Returns:
        The searches that go on.
    """
    rows, kept = [], []
    for number, search in enumerate(searches):
        same = range(number * width, (number + 1) * width)
        rows += same if done[search.number] else [number * width + p for p in search.parents]
        kept += [] if done[search.number] else same
    if rows != list(range(len(rows))):
        session.cache.reorder(rows)
    if len(kept) < len(rows):
        session.cache.select(kept)
    return [search for search in searches if not done[search.number]]
