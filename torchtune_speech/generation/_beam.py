"""Beam search: several hypotheses of each answer, the best of them at the end."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchtune_speech.generation._choose import forbid
from torchtune_speech.generation._cycles import Cycle, LoopDetector, TokenKinds
from torchtune_speech.generation._session import DecodingSession
from torchtune_speech.generation._settings import Answer, Decoding, Prompt
from torchtune_speech.generation._tokenwise import MAX_RETURNS


@dataclasses.dataclass(frozen=True, slots=True)
class _Hypothesis:
    """A beginning of an answer, or a finished one.

    Args:
        tokens: so far.
        scores: summed log-probability after each token.
        detector: has seen the tokens; None when loops are let run.
        cycle: the first loop in them.
        finish_reason: None while it is alive.
    """

    tokens: list[int]
    scores: list[float]
    detector: LoopDetector | None
    cycle: Cycle | None = None
    finish_reason: str | None = None

    @property
    def score(self) -> float:
        return self.scores[-1] if self.scores else 0.0

    def followed_by(self, token: int, score: float) -> "_Hypothesis":
        detector = self.detector and self.detector.copy()
        found = detector.add(token) if detector else None
        tokens, scores = [*self.tokens, token], [*self.scores, score]
        return _Hypothesis(tokens, scores, detector, self.cycle or found)

    def first_cycle_only(self) -> "_Hypothesis":
        length = self.cycle.start + len(self.cycle.unit)
        detector = self.detector.copy()
        detector.rewind(length)
        return _Hypothesis(self.tokens[:length], self.scores[:length], detector)


class _Search:
    """The hypotheses of one answer."""

    def __init__(
        self, number: int, prompt: Prompt, settings: Decoding, kinds: TokenKinds | None
    ) -> None:
        self.number, self.width = number, settings.num_beams
        self.limit, self.penalty = settings.limit(prompt), settings.length_penalty
        self.policy = settings.loops
        self.units: list[tuple[int, ...]] = []
        self.finished: list[tuple[float, _Hypothesis]] = []
        detector = None if self.policy == "none" else LoopDetector(kinds)
        self._begin(_Hypothesis([], [], detector))
        self.parents = list(range(self.width))

    def _begin(self, first: _Hypothesis) -> None:
        """Let only one hypothesis branch out: all others are worth nothing."""
        nothing = dataclasses.replace(first, scores=[*first.scores[:-1], -torch.inf])
        self.live = [first] + [nothing] * (self.width - 1)

    def banned(self, hypothesis: _Hypothesis) -> list[int]:
        """Tokens that would begin a forbidden cycle anew, right after it was said."""
        return [u[0] for u in self.units if hypothesis.detector.ends_with(u)]

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
            first = self.live[0]
            self.live.append(dataclasses.replace(first, scores=[*first.scores[:-1], -torch.inf]))
            self.parents.append(self.parents[0])
        if self.live and self.live[0].cycle is not None:
            self._leave_loop(self.live[0])

    def _leave_loop(self, looping: _Hypothesis) -> None:
        """Go back to the end of the first cycle: to end there, or to search on without it."""
        kept, unit = looping.first_cycle_only(), looping.cycle.unit
        self.units.append(unit)
        if self.policy == "cut" or len(self.units) > MAX_RETURNS:
            self.live, self.finished = [], []
            self._finish(kept, kept.score, "loop", len(kept.tokens))
            return
        # What was finished beyond this place has said the cycle again.
        length = len(kept.tokens)
        self.finished = [
            (value, h)
            for value, h in self.finished
            if len(h.tokens) <= length or h.tokens[:length] != kept.tokens
        ]
        self._begin(kept)
        self.parents = [self.parents[0]] * self.width

    def _finish(self, hypothesis: _Hypothesis, score: float, reason: str, length: int) -> None:
        ended = dataclasses.replace(hypothesis, finish_reason=reason)
        self.finished.append((score / max(length, 1) ** self.penalty, ended))
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
                self._finish(h, h.score, "length", length)
            self.live = []
            return True
        best = self.live[0].score / max(length, 1) ** self.penalty
        return len(self.finished) == self.width and best <= self.finished[-1][0]

    def answer(self) -> Answer:
        best = self.finished[0][1]
        loops = len(self.units)
        if best.cycle is not None:  # it looped while another hypothesis was ahead
            return Answer(best.first_cycle_only().tokens, "loop", loops + 1)
        return Answer(best.tokens, best.finish_reason, loops)


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
    at its present length. When its best hypothesis runs into a loop, it ends with the first cycle
    of that (policy ``cut``) or goes back to there and searches on without the cycle (``forbid``).

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
    hypotheses = [(search, h) for search in searches for h in search.live]
    scores = torch.tensor([h.score for _, h in hypotheses], device=logits.device)
    log_probabilities = forbid(
        torch.log_softmax(logits, dim=1), [search.banned(h) for search, h in hypotheses]
    )
    totals = (log_probabilities + scores[:, None]).view(len(searches), -1)
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
    alive = [search for search in searches if not done[search.number]]
    for row, h in enumerate(h for search in alive for h in search.live):
        # All but the last token stay: fewer than there are after a return from a loop.
        session.cache.rewind(row, len(h.tokens) - 1)
    return alive
