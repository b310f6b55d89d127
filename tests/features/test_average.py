import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.features import average_frames, averaged_length


def test_remainder_is_a_last_shorter_average():
    frames_td = torch.arange(14.0).reshape(7, 2)
    averaged = average_frames(frames_td, 3)
    expected = torch.tensor([[2.0, 3.0], [8.0, 9.0], [12.0, 13.0]])
    torch.testing.assert_close(averaged, expected)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 149])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_length_matches(frames, k):
    averaged = average_frames(torch.randn(frames, 4), k)
    assert len(averaged) == averaged_length(frames, k)
    assert averaged_length(torch.tensor([frames]), k).tolist() == [len(averaged)]


def test_bf16_is_averaged_in_float32():
    frames_td = torch.tensor([[256.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
    averaged = average_frames(frames_td, 4)
    assert averaged.dtype == torch.bfloat16
    # 64.75 rounds to 64.5 or 65; sums in bf16 would lose the ones and give 64.
    assert averaged.item() in (64.5, 65.0)


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        average_frames(torch.randn(3, 2), 0)


@given(num_frames=st.integers(1, 60), k=st.integers(1, 9), dim=st.integers(1, 5))
def test_each_average_is_that_of_its_frames(num_frames, k, dim):
    frames_td = torch.randn(num_frames, dim, dtype=torch.float64)
    averaged = average_frames(frames_td, k)
    expected = [frames_td[start : start + k].mean(0) for start in range(0, num_frames, k)]
    torch.testing.assert_close(averaged, torch.stack(expected))
    assert averaged_length(num_frames, k) == len(expected)
