"""Questions that the audio or text does not answer, made of the questions that are there."""

import dataclasses
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torchtune.utils import get_logger

from torchtune_speech.data._prompts import PromptTemplates
from torchtune_speech.data._sample import Sample
from torchtune_speech.errors import InputError

_log = get_logger("INFO")

_TASKS = ("sqa", "qa")
_TRIES = 100
# Shorter words are mostly "the", "of", "und": two texts on different matters share them as well.
_WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w{4,}")


def unanswerable_samples(
    samples: Sequence[Sample],
    templates: PromptTemplates,
    *,
    share: float,
    generic: float = 0.0,
    max_overlap: float = 0.1,
    seed: int = 0,
) -> list[Sample]:
    """Make samples whose right answer is that there is none.

    Each is a question sample of `samples` with its audio or text, but with another question: that
    of another recording in the same language, with its choices if it has some; or a generic one.
    The answer is the templates' ``unanswerable`` of the language, the id ``ID~unanswerable``. The
    result depends on the arguments alone, the order of the samples included.

    A question is not asked of a recording that it is asked of already, nor of one like its own:
    see :func:`word_overlap`. The similarity that the paper bounds by 0.1 is that of a sentence
    encoder; the overlap of words is a plain stand-in for it.

    Args:
        samples: of any tasks; sqa and qa samples with a question serve, but for those with
            ``messages`` or an ``instruction`` of their own.
        templates: where the answers and the generic questions come from.
        share: samples to make, as a share of those that serve, above 0 and at most 1.
        generic: share of them that ask a generic question. Default 0.
        max_overlap: largest overlap of the words of two transcripts, 0 to 1; of the two questions
            where a transcript is missing. Default 0.1.
        seed: of the choice. Default 0.

    Returns:
        The new samples. Fewer than wanted where questions find no recording; the log says so.

    Raises:
        InputError: if a number is out of range, none can be made, or the templates lack a language.

    Source: arXiv 2607.01960, which shuffles audio and question, and asks generic questions of
    random audio.
    """
    _check_numbers(share=share, generic=generic, max_overlap=max_overlap, seed=seed)
    rng = random.Random(seed)
    serving = [s for s in samples if _serves(s)]
    chosen = rng.sample(serving, round(share * len(serving)))
    num_generic = round(generic * len(chosen))
    made = []
    for sample in chosen[:num_generic]:
        pool = templates.generic_questions(sample.target_lang)
        made.append(_asked(sample, pool[rng.randrange(len(pool))], (), templates))
    find = _Partners(serving, max_overlap, rng)
    for sample in chosen[num_generic:]:
        if (other := find(sample)) is not None:
            made.append(_asked(sample, other.question, other.choices, templates))
    if not made:
        raise InputError(
            f"dataset.unanswerable: none could be made of {len(serving)} questions; give more sqa "
            "or qa rows on different recordings, raise share or generic, or set it to null"
        )
    if len(made) < len(chosen):
        _log.warning(
            "unanswerable: %d of %d questions left out, no recording unlike their own was found",
            len(chosen) - len(made),
            len(chosen),
        )
    return made


def word_overlap(one: str, two: str) -> float:
    """Share of the words of two texts that both have (Jaccard index).

    Args:
        one: a text.
        two: another.

    Returns:
        Words in both over words in either, 0 to 1, each word once. Words of fewer than four
        letters do not count, nor does case; Chinese and Japanese characters count as words.

    Source: https://en.wikipedia.org/wiki/Jaccard_index
    """
    first, second = (set(_WORD.findall(text.casefold())) for text in (one, two))
    return len(first & second) / max(1, len(first | second))


class _Partners:
    """Draws questions that may be asked of a sample's recording."""

    def __init__(self, samples: Sequence[Sample], max_overlap: float, rng: random.Random) -> None:
        self._max_overlap, self._rng = max_overlap, rng
        self._by_language: dict[str, list[Sample]] = defaultdict(list)
        self._asked: dict[str, set[str]] = defaultdict(set)  # recording -> questions on it
        for sample in samples:
            self._by_language[sample.target_lang].append(sample)
            for recording in _recordings(sample):
                self._asked[recording].add(sample.question)

    def __call__(self, sample: Sample) -> Sample | None:
        """A sample whose question may be asked; None if none of many draws may."""
        others = self._by_language[sample.target_lang]
        for _ in range(_TRIES):
            other = others[self._rng.randrange(len(others))]
            if self._is_foreign(sample, other):
                return other
        return None

    def _is_foreign(self, sample: Sample, other: Sample) -> bool:
        # A question on the same recording is among those, too.
        if any(other.question in self._asked[recording] for recording in _recordings(sample)):
            return False
        texts = sample.source_text, other.source_text
        if None in texts:
            texts = sample.question, other.question
        return word_overlap(*texts) <= self._max_overlap


def _serves(sample: Sample) -> bool:
    return (
        sample.task in _TASKS
        and bool(sample.question)
        and bool(sample.audio or sample.source_text)
        and not sample.messages
        and "instruction" not in sample.extra
    )


def _recordings(sample: Sample) -> set[str]:
    """What tells whether two samples are of the same recording: files, and the transcript."""
    files = {f"audio {cut.path}" for cut in sample.audio}
    return files | ({f"text {sample.source_text}"} if sample.source_text else set())


def _asked(
    sample: Sample, question: str, choices: tuple[str, ...], templates: PromptTemplates
) -> Sample:
    return dataclasses.replace(
        sample,
        id=f"{sample.id}~unanswerable",
        question=question,
        choices=choices,
        target=templates.unanswerable(sample.target_lang),
    )


def _check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        where = f"dataset.unanswerable.{name}: {number!r}"
        if name == "seed":
            if isinstance(number, bool) or not isinstance(number, int):
                raise InputError(f"{where}; give a whole number")
            continue
        low = "above 0" if name == "share" else "from 0"
        in_range = isinstance(number, int | float) and not isinstance(number, bool)
        in_range = in_range and 0 <= number <= 1 and not (name == "share" and number == 0)
        if not in_range:
            raise InputError(f"{where}; give a number {low} to 1")
