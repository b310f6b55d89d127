"""How far speech vectors are from the embeddings of the words that were said.

They teach a projector without the LLM: its embedding table is enough. Each function returns sums
over positions in float32, never means: the caller divides by counts over processes and
accumulation. ``n`` is all speech vectors of a batch, packed; an empty batch gives 0, connected to
the graph.
"""

import torch
from torch import Tensor

from torchtune_speech.modules._linear_cross_entropy import linear_cross_entropy_sum

_SMALLEST_NORM = 1e-8


def word_and_pad_squared_error(
    vectors_nd: Tensor, targets_nd: Tensor, is_late_pad_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error at the words and the first pad, and at the later pads.

    The two parts of the loss of SpeechMapper's first stage, where the target of an utterance is
    its tokens' embeddings, filled up with the pad token's embedding:
    ``a * MSE(words, first pad) + (10 - a) * MSE(later pads) - g * cosine`` with a = 5, g = 100.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        targets_nd: embedding that each should equal, ``[n, d]``.
        is_late_pad_n: True at the second and later pads of an utterance, ``[n]``, boolean.

    Returns:
        Squared errors, averaged over ``d`` and summed over positions (float32 scalars): over the
        words and first pads, and over the later pads.

    Source: SpeechMapper, https://arxiv.org/abs/2601.20417, stage 1

    Example:
        >>> vectors, targets = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.zeros(2, 2)
        >>> word_and_pad_squared_error(vectors, targets, torch.tensor([False, True]))
        (tensor(5.), tensor(4.))
    """
    error_n = _squared_error(vectors_nd, targets_nd)
    is_late_pad_n = is_late_pad_n.bool()
    return error_n.masked_fill(is_late_pad_n, 0).sum(), error_n.masked_fill(~is_late_pad_n, 0).sum()


def squared_error_sum(vectors_nd: Tensor, targets_nd: Tensor) -> Tensor:
    """Squared error, averaged over the elements of a vector, all positions alike.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        targets_nd: embedding that each should equal, ``[n, d]``.

    Returns:
        Sum over positions, a float32 scalar.

    Source: the MSE of SpeechMapper's second stage, https://arxiv.org/abs/2601.20417
    """
    return _squared_error(vectors_nd, targets_nd).sum()


def absolute_error_sum(vectors_nd: Tensor, targets_nd: Tensor, weights_n: Tensor) -> Tensor:
    """Absolute error (L1), averaged over the elements of a vector.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        targets_nd: embedding that each should equal, ``[n, d]``.
        weights_n: what each position counts, ``[n]``.

    Returns:
        Weighted sum over positions, a float32 scalar.

    Source: the first stage of https://arxiv.org/abs/2607.01960
    """
    error_n = (vectors_nd.float() - targets_nd.float()).abs().mean(-1)
    return (weights_n.float() * error_n).sum()


def cosine_distance_sum(vectors_nd: Tensor, targets_nd: Tensor, weights_n: Tensor) -> Tensor:
    """One less the cosine between vector and target: their directions alone.

    Args:
        vectors_nd: speech vectors, ``[n, d]``. A zero vector has the cosine 0 to everything and a
            finite gradient towards its target.
        targets_nd: embedding whose direction each should have, ``[n, d]``.
        weights_n: what each position counts, ``[n]``.

    Returns:
        Weighted sum over positions, a float32 scalar.

    Source: the first stages of https://arxiv.org/abs/2601.20417 and
    https://arxiv.org/abs/2607.01960
    """
    cosine_n = (_unit(vectors_nd) * _unit(targets_nd)).sum(-1)
    return (weights_n.float() * (1 - cosine_n)).sum()


def vocabulary_contrast_sum(
    vectors_nd: Tensor,
    unit_table_vd: Tensor,
    labels_n: Tensor,
    weights_n: Tensor,
    temperature: float = 0.05,
    chunk_size: int | None = None,
) -> Tensor:
    """Cross-entropy of the right token among all, by the cosine with each one's embedding.

    A distance asks a vector to be near its token; this asks it to be nearer to it than to any
    other token of the vocabulary. Position by position it is
    ``weight * cross_entropy(cosines / temperature, label)``. The cosines of ``chunk_size``
    positions are held at a time, and the gradient is taken while they are there, so that
    ``[n, v]`` never exists.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        unit_table_vd: the LLM's embedding table with rows of length 1, ``[v, d]``: call
            :func:`unit_rows` once and keep what it returns. The products are in its dtype. It is
            a constant, without a gradient.
        labels_n: the right token of each position, ``[n]``.
        weights_n: what each position counts, ``[n]``; a constant, without a gradient. What counts
            nothing costs as much as the rest: select the positions before, where they are few.
        temperature: divides the cosines; the lower, the closer a rival must be to count. Default
            0.05: the right token at cosine 1 among 128,256 unrelated ones costs 0.0003 nats.
        chunk_size: see :func:`linear_cross_entropy_sum`.

    Returns:
        Weighted sum over positions in nats, a float32 scalar.

    Source: "vocabulary softmax contrast" of https://arxiv.org/abs/2607.01960

    Example:
        >>> table = unit_rows(embeddings)  # once
        >>> loss = vocabulary_contrast_sum(vectors, table, labels, weights) / weights.sum()
    """
    scaled_nd = _unit(vectors_nd) / temperature
    return linear_cross_entropy_sum(
        scaled_nd, unit_table_vd.detach(), labels_n, chunk_size, weights_n
    )


@torch.no_grad()
def unit_rows(table_vd: Tensor, chunk_size: int = 8192) -> Tensor:
    """An embedding table with every row scaled to length 1; zero rows stay zero.

    Args:
        table_vd: the table, ``[v, d]``.
        chunk_size: rows that are held in float32 at a time.

    Returns:
        A new table in the dtype of the old one, ``[v, d]``.
    """
    unit_vd = torch.empty_like(table_vd, requires_grad=False)
    for old, new in zip(table_vd.split(chunk_size), unit_vd.split(chunk_size), strict=True):
        new.copy_(_unit(old))
    return unit_vd


@torch.no_grad()
def nearest_tokens(vectors_nd: Tensor, table_vd: Tensor, chunk_size: int = 4096) -> Tensor:
    """The token whose embedding has the largest cosine with each vector.

    In float32 whatever the dtypes: in bfloat16 the cosines of near neighbours are equal.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        table_vd: embedding table, ``[v, d]``, rows of any length.
        chunk_size: rows of the table that all vectors are compared with at a time.

    Returns:
        Row of the table for each vector, ``[n]``, int64; the first of equals.
    """
    unit_nd = _unit(vectors_nd)
    best_n = unit_nd.new_full((len(unit_nd),), -torch.inf)
    token_n = torch.zeros_like(best_n, dtype=torch.long)
    if not len(unit_nd):
        return token_n
    with torch.autocast(unit_nd.device.type, enabled=False):
        for start in range(0, len(table_vd), chunk_size):
            cosine_nc = unit_nd @ _unit(table_vd[start : start + chunk_size]).T
            cosine_n, row_n = cosine_nc.max(-1)
            token_n = torch.where(cosine_n > best_n, start + row_n, token_n)
            best_n = torch.maximum(best_n, cosine_n)
    return token_n


def _squared_error(vectors_nd: Tensor, targets_nd: Tensor) -> Tensor:
    """Of each position, averaged over the elements of a vector, ``[n]``, float32."""
    return (vectors_nd.float() - targets_nd.float()).square().mean(-1)


def _unit(x_nd: Tensor) -> Tensor:
    """Vectors of length 1 in float32. What has no length stays as it is, its gradient finite."""
    x_nd = x_nd.float()
    norm_n1 = torch.linalg.vector_norm(x_nd, dim=-1, keepdim=True)
    return x_nd / norm_n1.where(norm_n1 > _SMALLEST_NORM, 1.0)
