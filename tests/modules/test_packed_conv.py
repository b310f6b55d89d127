"""The packed convolution beside nn.Conv1d on each utterance alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchtune_speech.errors import InputError
from torchtune_speech.modules import PackedConv1d, packed_conv1d

KERNELS = [(1, 1), (3, 1), (6, 1), (2, 2), (5, 2), (6, 2), (6, 4), (7, 3), (4, 4)]


def alone(conv, part):
    """The convolution of one utterance, by torch, between the zeros it needs."""
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    count = -(-len(part) // stride)
    if not count:
        return torch.zeros(0, conv.out_channels)
    left = (kernel - stride) // 2
    right = (count - 1) * stride + kernel - left - len(part)
    assert right >= 0
    plain = nn.Conv1d(conv.in_channels, conv.out_channels, kernel, stride)
    plain.load_state_dict(conv.state_dict())
    return plain(F.pad(part.t(), (left, right))[None])[0].t()


@given(st.sampled_from(KERNELS), st.lists(st.integers(0, 17), max_size=7))
@settings(max_examples=100, deadline=None)
def test_packed_equals_each_utterance_by_itself(shape, lengths):
    torch.manual_seed(0)
    conv = PackedConv1d(3, 5, *shape)
    frames, lengths_u = torch.randn(sum(lengths), 3), torch.tensor(lengths, dtype=torch.long)
    with torch.no_grad():
        found = conv(frames, lengths_u)
        expected = [alone(conv, part) for part in frames.split(lengths)]
    assert [len(part) for part in expected] == conv.output_length(lengths_u).tolist()
    assert found.shape == (sum(conv.output_length(n) for n in lengths), 5)
    torch.testing.assert_close(found, torch.cat([found[:0], *expected]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", KERNELS)
def test_gradients_equal_those_of_each_utterance_by_itself(shape):
    torch.manual_seed(0)
    conv, lengths = PackedConv1d(3, 5, *shape), [4, 0, 1, 13, 2]
    frames = torch.randn(sum(lengths), 3, requires_grad=True)
    out = packed_conv1d(frames, torch.tensor(lengths), conv.weight, conv.bias, shape[1])
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), (frames, conv.weight, conv.bias))
    rows = []
    for part in frames.split(lengths):
        count = conv.output_length(len(part))
        left = (shape[0] - shape[1]) // 2
        right = (count - 1) * shape[1] + shape[0] - left - len(part)
        if count:
            row = F.conv1d(F.pad(part.t(), (left, right)), conv.weight, conv.bias, shape[1]).t()
            rows.append(row)
    expected = (torch.cat(rows) * weights).sum()
    wanted = torch.autograd.grad(expected, (frames, conv.weight, conv.bias))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", KERNELS)
def test_every_frame_is_seen_and_no_other_utterance(shape):
    """Of ones for weights, the sum of a vector's frames: utterance 1 has ones, its neighbours 0."""
    kernel, stride = shape
    for length in range(1, 20):
        frames = torch.zeros(length + 10, 1)
        frames[5 : 5 + length] = 1
        lengths = torch.tensor([5, length, 5])
        sums = packed_conv1d(frames, lengths, torch.ones(1, 1, kernel), None, stride)[:, 0]
        first, inner, last = sums.split([-(-n // stride) for n in (5, length, 5)])
        assert not first.any() and not last.any()
        assert (inner > 0).all() and inner.sum() >= length


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_frames_stay_in_the_graph(lengths):
    conv = PackedConv1d(3, 5, 6, 2)
    frames = torch.zeros(0, 3, requires_grad=True)
    out = conv(frames, torch.tensor(lengths, dtype=torch.long))
    assert out.shape == (0, 5)
    out.sum().backward()
    assert conv.weight.grad is not None and not conv.weight.grad.any()
    assert not conv.bias.grad.any() and frames.grad.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_within_autocast(dtype):
    torch.manual_seed(0)
    conv, lengths = PackedConv1d(3, 5, 6, 2), torch.tensor([9, 1, 4])
    frames = torch.randn(14, 3)
    with torch.autocast("cpu", dtype):
        out = conv(frames, lengths)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), conv(frames, lengths), atol=0.02, rtol=0.02)


def test_a_stride_that_drops_frames_is_refused():
    with pytest.raises(InputError, match="strides: 4 is above the kernel of 3"):
        PackedConv1d(3, 5, 3, 4)
