"""How answers are decoded: what is asked, what comes out, and the settings in between."""

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from torchtune_speech.errors import InputError, did_you_mean

LOOP_POLICIES = ("none", "cut", "forbid")


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to answer.

    Args:
        tokens: prompt with placeholders, up to the opened assistant turn.
        frames: encoder frames of each utterance in it, ``[t, d]``.
        max_new_tokens: longest answer to this prompt, if shorter than that of the settings.
        seed: of this answer's random numbers, beside the seed of the settings.
        kept: which speech vectors of each utterance stand at the placeholders; None for all.
    """

    tokens: Sequence[int]
    frames: Sequence[Tensor] = ()
    max_new_tokens: int | None = None
    seed: int = 0
    kept: Sequence[Tensor] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Args:
        tokens: generated ids, without the stop token.
        finish_reason: ``stop`` when the model ended its turn, ``length`` when it was cut off by the
            limit, ``loop`` when it was cut because it repeated itself.
        loops: how often it was caught repeating itself.
    """

    tokens: list[int]
    finish_reason: str
    loops: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Decoding:
    """Settings of decoding.

    Args:
        max_new_tokens: longest answer, in tokens.
        num_beams: hypotheses kept; 1 for greedy decoding or sampling.
        length_penalty: beams are compared by log-probability / length ** this; above 0, larger
            values favour longer answers. Source: Wu et al. 2016, https://arxiv.org/abs/1609.08144,
            section 7, in the simplified form that Hugging Face uses.
        temperature: 0 takes the best token; above, tokens are drawn from the distribution whose
            logits were divided by this.
        top_p: draw from the most probable tokens that hold this share of the probability together.
            Source: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
        seed: of the draws.
        loops: what is done when an answer runs into a repetition loop: ``none`` lets it run,
            ``cut`` ends it after the first cycle, ``forbid`` goes back to there and decodes on
            without that cycle (with beams: the best hypothesis without a loop).

    Raises:
        InputError: for a value out of its range, or two that exclude each other.
    """

    max_new_tokens: int = 200
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    loops: str = "none"

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("num_beams", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name}: {value!r}; give a whole number of at least {least}")
        if not _is_number(self.length_penalty):
            raise InputError(f"length_penalty: {self.length_penalty!r}; give a number, such as 1.0")
        if not _is_number(self.temperature) or self.temperature < 0:
            raise InputError(f"temperature: {self.temperature!r}; give 0 (best token) or more")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p!r}; give a share above 0, up to 1 (all tokens)")
        if self.loops not in LOOP_POLICIES:
            near = did_you_mean(str(self.loops), LOOP_POLICIES)
            raise InputError(
                f"loops: unknown policy {self.loops!r}{near}; use {', '.join(LOOP_POLICIES)}"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise InputError("num_beams, temperature: beams do not sample; set one of the two back")
        if self.top_p < 1 and self.temperature == 0:
            raise InputError(
                "top_p: nothing is drawn at temperature 0; set temperature, or top_p=1"
            )

    def limit(self, prompt: Prompt) -> int:
        """Longest answer to a prompt, in tokens."""
        if prompt.max_new_tokens is None:
            return self.max_new_tokens
        return min(prompt.max_new_tokens, self.max_new_tokens)


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def speech_token_limit(seconds: float, tokens_per_second: float, extra: int = 16) -> int:
    """Longest sensible answer to a piece of speech.

    Args:
        seconds: of speech.
        tokens_per_second: tokens allowed for each second; English speech has 3 to 5 a second.
        extra: allowed beside those, so that a question about a short clip can be answered.

    Returns:
        Number of tokens.

    Raises:
        InputError: if the rate is no positive number.

    Example:
        >>> speech_token_limit(10.0, tokens_per_second=8)
        96
    """
    if not _is_number(tokens_per_second) or tokens_per_second <= 0:
        raise InputError(
            f"speech_tokens_per_second: {tokens_per_second!r}; give a number above 0, such as 8, "
            "or null for no limit"
        )
    return math.ceil(seconds * tokens_per_second) + extra
