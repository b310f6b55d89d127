"""Which speech vectors are pads, beside a plain computation."""

import pytest
import torch

from torchtune_speech.modules import non_pads


def plain(vectors, table, texts, pad):
    """Positions of one utterance that are kept, one vector after the other."""
    unit = [row / row.norm() for row in table.double()]
    cosines = [[float(v.double() @ u / v.double().norm()) for u in unit] for v in vectors]
    kept = [i for i, row in enumerate(cosines) if row.index(max(row)) in texts]
    if not kept and len(vectors):
        kept = [min(range(len(vectors)), key=lambda i: cosines[i][pad])]
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_kept_are_those_whose_nearest_row_is_text(seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(11, 6, generator=generator)
    lengths = [0, 7, 1, 20, 3]
    vectors = torch.randn(31, 6, generator=generator) * 0.7
    vectors[torch.rand(31, generator=generator) < 0.5] += 3 * table[4]
    vectors[8:28] += 10 * table[4]  # an utterance of pads alone
    texts = {0, 1, 2, 3, 5, 6, 8}  # 7 is another special token, 9 and 10 are none at all
    is_text = torch.tensor([i in texts for i in range(11)])
    keep, only_pads = non_pads(vectors, torch.tensor(lengths), table, 4, is_text)
    expected = [plain(part, table, texts, 4) for part in vectors.split(lengths)]
    assert [part.nonzero()[:, 0].tolist() for part in keep.split(lengths)] == expected
    assert only_pads[3] and len(expected[3]) == 1 and not only_pads[0]
    assert 0 < sum(map(len, expected)) < 31


def test_a_token_with_the_same_embedding_is_a_pad_too():
    table = torch.eye(4)[[0, 1, 1, 2]]
    is_text = torch.tensor([True, True, False, True])
    keep, only_pads = non_pads(table, torch.tensor([4]), table, 2, is_text)
    assert keep.tolist() == [True, False, False, True] and not only_pads.any()


def test_nothing_is_nothing():
    keep, only_pads = non_pads(
        torch.zeros(0, 3), torch.zeros(0).long(), torch.eye(3), 0, torch.ones(3).bool()
    )
    assert keep.shape == only_pads.shape == (0,)
