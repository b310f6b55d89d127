"""What is SpeechMapper's own; test_projectors.py holds what all projectors share."""

import pytest
import torch
from torch import nn

from torchtune_speech.errors import InputError
from torchtune_speech.models import speechmapper_projector


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(**kw):
    settings = {"block_dims": [16, 24], "num_layers": 1, "ffn_dims": 32, "num_heads": 2}
    return speechmapper_projector(8, 12, **settings | kw)


def count(projector):
    return sum(p.numel() for p in projector.parameters())


def layer_count(dim, ffn):
    return 4 * dim * dim + 2 * dim * ffn + (4 * dim + dim + ffn) + 4 * dim


def block_count(in_dim, dim, out_dim):
    conv = 6 * in_dim * dim + dim
    return conv + 6 * layer_count(dim, 2048) + 2 * dim + dim * out_dim + out_dim


def test_version_1_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        projector = speechmapper_projector()
        single = speechmapper_projector(num_out_layers=1)
    ends = 2 * 1024 + 2 * (4096 * 4096 + 4096) + 2 * 4096
    blocks = block_count(1024, 1024, 2048) + block_count(2048, 2048, 4096)
    assert count(projector) == blocks + ends
    assert count(projector) / 1e6 == pytest.approx(277.0, abs=0.05)
    assert count(single) / 1e6 == pytest.approx(260.3, abs=0.05)
    assert projector.output_length(8 * 25) == 50  # 25 frames a second, 6.25 vectors a second
    assert len(projector.layers) == 12 and projector.ctc_proj is None


def test_version_2_hears_at_the_full_rate_and_speaks_at_a_quarter():
    with torch.device("meta"):
        projector = speechmapper_projector(1024, 2560, strides=[1, 4])
        with_ctc = speechmapper_projector(1024, 2560, strides=[1, 4], ctc_vocab_size=33)
    assert count(projector) / 1e6 == pytest.approx(253.4, abs=0.05)
    assert (projector.ctc_length(101), projector.output_length(101)) == (101, 26)
    assert count(with_ctc) - count(projector) == 2 * 2048 + 33 * 2048 + 33


@pytest.mark.parametrize("lengths", [[1, 2, 3], [5, 1, 17], [40, 0, 7, 1, 1]])
@pytest.mark.parametrize("strides", [[2, 2], [1, 4]])
@pytest.mark.parametrize("ctc_compress", [False, True])
def test_utterances_shorter_than_the_kernel_equal_those_alone(lengths, strides, ctc_compress):
    projector = small(strides=strides, ctc_vocab_size=5, ctc_compress=ctc_compress).eval()
    frames = torch.randn(sum(lengths), 8)
    with torch.no_grad():
        together = projector(frames, torch.tensor(lengths), return_ctc=True)
        alone = [
            projector(part, torch.tensor([len(part)]), return_ctc=True)
            for part in frames.split(lengths)
        ]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_within_autocast(dtype):
    projector, lengths = small(ctc_vocab_size=5, strides=[1, 4]), torch.tensor([9, 0, 1, 30])
    frames = torch.randn(40, 8)
    full = projector(frames, lengths, return_ctc=True)
    with torch.autocast("cpu", dtype):
        outputs = projector(frames, lengths, return_ctc=True)
        empty = projector(frames[:0], lengths[:0], return_ctc=True)
    for found, expected in zip(outputs, full, strict=True):
        assert found.dtype == dtype
        assert (found - expected).norm() < 0.03 * expected.norm()
    (sum(o.float().sum() for o in outputs) + sum(o.float().sum() for o in empty)).backward()
    assert all(p.grad.isfinite().all() for p in projector.parameters())


def test_each_block_has_its_own_numbers():
    projector = small(
        block_dims=[16, 24, 32],
        kernel_sizes=[3, 4, 5],
        strides=[1, 2, 3],
        num_layers=[1, 2, 3],
        num_heads=[1, 2, 4],
        ffn_dims=[8, 16, 24],
    )
    assert [block.conv.kernel_size for block in projector.blocks] == [(3,), (4,), (5,)]
    assert [block.conv.stride for block in projector.blocks] == [(1,), (2,), (3,)]
    assert [layer.attn.num_heads for layer in projector.layers] == [1, 2, 2, 4, 4, 4]
    assert [layer.mlp.w1.out_features for layer in projector.layers] == [8, 16, 16, 24, 24, 24]
    frames, lengths = torch.randn(60, 8), torch.tensor([50, 10])
    assert projector(frames, lengths).shape == (11, 12)
    assert projector.output_length(lengths).tolist() == [9, 2]


@pytest.mark.parametrize("ctc_block", [1, 2])
def test_ctc_head_sits_after_its_block(ctc_block):
    projector = small(ctc_vocab_size=5, ctc_block=ctc_block, strides=[2, 3])
    frames, lengths = torch.randn(40, 8), torch.tensor([29, 11])
    _, logits = projector(frames, lengths, return_ctc=True)
    assert len(logits) == projector.ctc_length(lengths).sum() == (21 if ctc_block == 1 else 7)
    logits.sum().backward()
    reached = [block.up_proj.weight.grad is not None for block in projector.blocks]
    assert reached == [True, ctc_block == 2]


def test_a_block_knows_where_in_the_utterance_a_vector_is():
    projector = small(strides=[1, 1], kernel_sizes=1).eval()
    vectors = projector(torch.ones(9, 8), torch.tensor([9]))  # all frames alike
    assert torch.cdist(vectors, vectors).fill_diagonal_(9).min() > 1e-3


def test_tokens_that_ctc_hears_fill_the_first_slots():
    projector = small(ctc_vocab_size=4, strides=[1, 2], ctc_compress=True)
    x = torch.randn(12, 24)
    heard = [0, 1, 1, 0, 0, 2, 0, 3]  # 3 tokens, then one in the next utterance
    logits = 40 * torch.eye(4)[[*heard, 0, 0, 0, 1]]
    slots = projector.blocks[1].conv(x, torch.tensor([8, 4]), logits)
    expected = torch.stack([x[1:3].mean(0), x[5], x[7], torch.zeros(24), x[11], torch.zeros(24)])
    torch.testing.assert_close(slots, expected, atol=1e-5, rtol=1e-5)


def test_what_the_slots_learn_leaves_ctc_alone():
    projector = small(ctc_vocab_size=4, strides=[1, 2], ctc_compress=True)
    frames, lengths = torch.randn(40, 8), torch.tensor([29, 11])
    projector(frames, lengths).sum().backward()
    assert projector.ctc_proj.weight.grad is None
    _, logits = projector(frames, lengths, return_ctc=True)
    logits.sum().backward()
    assert projector.ctc_proj.weight.grad is not None


def test_wrong_settings_are_named():
    for settings, message in [
        (
            {"strides": [1, 2, 4]},
            r"strides: \[1, 2, 4\]; give one number, or one for each of the 2",
        ),
        ({"strides": 0}, "strides: 0; give a whole number"),
        ({"kernel_sizes": 3, "strides": 4}, "strides: 4 is above the kernel of 3"),
        ({"num_layers": []}, "num_layers"),
        ({"block_dims": []}, "block_dims"),
        ({"num_heads": 5}, "num_heads: 5 does not divide embed_dim 16"),
        ({"num_heads": [16, 2]}, "num_heads: 16 heads of embed_dim 16 .*even width.*block_dims"),
        ({"ctc_block": 3}, "ctc_block: 3; give 1 to 2"),
        ({"ctc_vocab_size": 0}, "ctc_vocab_size: 0"),
        ({"num_out_layers": 0}, "num_out_layers: 0"),
        ({"ctc_compress": True}, "ctc_compress: needs a CTC head"),
        ({"ctc_compress": True, "ctc_vocab_size": 5, "ctc_block": 2}, "ctc_compress: needs"),
    ]:
        with pytest.raises(InputError, match=message):
            small(**settings)


def test_wrong_input_is_named():
    projector = small()
    with pytest.raises(InputError, match="10 wide, in_dim is 8"):
        projector(torch.zeros(4, 10), torch.tensor([4]))
    with pytest.raises(ValueError, match="5 frames, but lengths of 4"):
        projector(torch.zeros(5, 8), torch.tensor([4]))
    with pytest.raises(ValueError, match="ctc_vocab_size"):
        projector(torch.zeros(4, 8), torch.tensor([4]), return_ctc=True)


def test_output_scale_sets_the_size_of_the_first_vectors():
    frames, lengths = torch.randn(60, 8), torch.tensor([50, 10])
    for scale in (1.0, 0.02):
        projector = speechmapper_projector(
            8, 256, block_dims=[16, 24], num_layers=1, output_scale=scale
        )
        vectors = projector(frames, lengths)
        assert vectors.std().item() == pytest.approx(scale * 3**-0.5, rel=0.1)


def test_it_learns_what_only_neighbours_and_context_tell():
    """Each vector must carry the label on the first frame of its utterance."""
    projector = small(input_norm=False, strides=[1, 2])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=3e-3)
    lengths = torch.tensor([5, 9, 7, 12])
    first = lengths.cumsum(0) - lengths
    losses = []
    for _ in range(150):
        frames, labels = torch.randn(33, 8), torch.randint(2, (4,))
        frames[first, 0] = 8.0 * (2.0 * labels - 1)
        logits = projector(frames, lengths)[:, :2]
        targets = labels.repeat_interleave(projector.output_length(lengths))
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.1
