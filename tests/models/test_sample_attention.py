import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torchtune.models.llama3_1 import llama3_1

from torchtune_speech.models import (
    SpeechLLM,
    block_causal_mask,
    dense_causal_mask,
    sample_attention,
    speech_llama3_1,
)
from torchtune_speech.models._attention_mask import _block_mask

SHAPE = dict(
    vocab_size=97, num_layers=3, num_heads=4, num_kv_heads=2, embed_dim=32, max_seq_len=64,
    intermediate_dim=48,
)  # fmt: skip
# A full row, one with padding, an empty one, and one whose first number is the last of the row
# before it.
DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 0, 0, 0], [0] * 8, [0] * 8])


def test_equals_attention_under_the_dense_mask():
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 8, 6, requires_grad=True) for _ in range(3))
    dense = scaled_dot_product_attention(q, k, v, attn_mask=dense_causal_mask(DOCUMENTS)[:, None])
    wanted = torch.autograd.grad(dense.square().sum(), (q, k, v))
    ours = sample_attention(q, k, v, block_causal_mask(DOCUMENTS))
    found = torch.autograd.grad(ours.square().sum(), (q, k, v))
    # The third and fourth row are padding alone, which is one sample to us and to the mask.
    torch.testing.assert_close(ours[:3], dense[:3])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours[:2], theirs[:2])


def test_rows_do_not_see_each_other_even_where_padding_meets_padding():
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 8, 6) for _ in range(3))
    before = sample_attention(q, k, v, block_causal_mask(DOCUMENTS))
    k[0], v[0] = 0, 0
    after = sample_attention(q, k, v, block_causal_mask(DOCUMENTS))
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return speech_llama3_1(**SHAPE)


def test_parameters_and_logits_are_those_of_torchtunes_decoder(model):
    theirs = llama3_1(**SHAPE)
    assert list(theirs.state_dict()) == [
        n.removeprefix("decoder.") for n in model.state_dict() if n.startswith("decoder.")
    ]
    theirs.load_state_dict(model.decoder.state_dict())
    tokens, positions = torch.randint(97, (4, 8)), torch.arange(8).expand(4, 8)
    ours = model(tokens, mask=block_causal_mask(DOCUMENTS), input_pos=positions)
    expected = theirs(tokens, mask=dense_causal_mask(DOCUMENTS), input_pos=positions)
    torch.testing.assert_close(ours[DOCUMENTS > 0], expected[DOCUMENTS > 0])


def test_selected_positions_and_their_loss(model):
    tokens, select = torch.randint(97, (4, 8)), torch.tensor([1, 4, 9, 12])
    mask = block_causal_mask(DOCUMENTS)
    everything = model(tokens, mask=mask).flatten(0, 1)
    selected = model(tokens, mask=mask, select=select)
    torch.testing.assert_close(selected, everything[select])
    labels = torch.tensor([3, 1, 4, 1])
    loss = model(tokens, mask=mask, select=select, labels=labels)
    expected = torch.nn.functional.cross_entropy(selected, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_loss_with_tied_embeddings():
    torch.manual_seed(0)
    model = speech_llama3_1(**SHAPE, tie_embeddings=True)
    assert isinstance(model, SpeechLLM)
    tokens, select = torch.randint(97, (4, 8)), torch.tensor([2, 3])
    mask, labels = block_causal_mask(DOCUMENTS), torch.tensor([5, 6])
    logits = model(tokens, mask=mask, select=select)
    loss = model(tokens, mask=mask, select=select, labels=labels)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)


def packed_ids(*rows):
    """Numbers of samples in rows of as many tokens, from their lengths; the rest is padding."""
    ids = torch.zeros(len(rows), 700, dtype=torch.long)
    for row, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths, 1):
            ids[row, start : start + length] = number
            start += length
    return ids


@pytest.mark.parametrize("length", [700, 640, 100])
def test_blocks_of_flex_attention_hold_what_is_visible_and_little_else(length):
    ids = packed_ids([700], [128, 256, 200], [5, 123, 300, 1, 2], [])[:, :length]
    mask, dense = _block_mask(ids), dense_causal_mask(ids)
    expected = create_block_mask(mask.mask_mod, 4, None, length, length, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, length, 16) for _ in range(3))
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=dense[:, None])
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), wanted)
