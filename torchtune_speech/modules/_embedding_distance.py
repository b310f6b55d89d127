"""A target for speech vectors that needs the LLM's embedding table only."""

from torch import Tensor


def embedding_distance_sum(
    vectors_nd: Tensor,
    ctc_logits_nv: Tensor,
    embeddings_vd: Tensor,
    *,
    blank_token: int | None = None,
) -> Tensor:
    """How far speech vectors are from the embeddings of the tokens that CTC hears.

    The target of a vector is its expected embedding: the embeddings of the LLM's tokens, weighted
    by the posterior of the CTC head, with zero, or a token of its own, for the blank. A projector
    that is near it writes what it hears in the LLM's own alphabet before it has met the LLM. No
    gradient reaches the CTC head or the embeddings.

    Args:
        vectors_nd: speech vectors, ``[n, d]``.
        ctc_logits_nv: CTC logits over the blank and the LLM's tokens, ``[n, 1 + v]``.
        embeddings_vd: the LLM's embedding table, ``[>= v, d]``.
        blank_token: the token that stands for the blank. Default None: zero does, which an LLM
            that normalises its input has never seen; a token that it reads as a pause is kinder.

    Returns:
        Squared distances, summed over the vectors, relative to the mean squared norm of the
        embeddings (float32, no dimension).

    Example:
        >>> embedding_distance_sum(torch.zeros(3, 8), logits, embeddings)  # all blank: 0
    """
    table = embeddings_vd.detach().float()
    posterior = ctc_logits_nv.detach().float().softmax(-1)
    expected = posterior[:, 1:] @ table[: posterior.shape[1] - 1]
    if blank_token is not None:
        expected = expected + posterior[:, :1] * table[blank_token]
    distance = (vectors_nd.float() - expected).square().sum()
    return distance / table.square().sum(-1).mean()
