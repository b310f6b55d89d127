"""From logits to the next token."""

import torch
from torch import Tensor


def forbid(logits_rv: Tensor, banned: list[list[int]]) -> Tensor:
    """Rule out tokens, row by row.

    Args:
        logits_rv: logits of each row, ``[r, vocab]``; changed in place.
        banned: tokens that a row must not take.

    Returns:
        The same tensor.
    """
    pairs = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if pairs:
        rows, tokens = torch.tensor(pairs, device=logits_rv.device).T
        logits_rv[rows, tokens] = -torch.inf
    return logits_rv


def sample(logits_rv: Tensor, uniform_r: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw a token for each row from the nucleus of its distribution.

    The random numbers are given, one a row, so that a row's draw does not depend on the others.

    Args:
        logits_rv: logits of each row, ``[r, vocab]``.
        uniform_r: numbers in [0, 1), ``[r]``.
        temperature: the logits are divided by this.
        top_p: share of the probability that the nucleus holds; at least the best token is in it.

    Returns:
        Tokens, ``[r]``.

    Source: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
    """
    probabilities = torch.softmax(logits_rv.double() / temperature, dim=1)
    ordered, tokens = probabilities.sort(dim=1, descending=True, stable=True)
    total = ordered.cumsum(dim=1)
    nucleus = ordered.masked_fill(total - ordered >= top_p, 0.0).cumsum(dim=1)
    wanted = uniform_r.to(nucleus)[:, None] * nucleus[:, -1:]
    # The first place whose running total passes the number; rounding may leave none.
    place = (nucleus <= wanted).sum(dim=1)
    last = ((total - ordered < top_p) & (ordered > 0)).sum(dim=1) - 1
    return tokens.gather(1, torch.minimum(place, last)[:, None])[:, 0]
