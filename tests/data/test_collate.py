"""Rows of samples as tensors."""

import pytest
import torch

from torchtune_speech.data import IGNORE_INDEX, collate_rows

PAD, SPEECH = 0, 2


def item(name, tokens, labels, *frames, ctc=()):
    return {
        "id": name,
        "tokens": tokens,
        "labels": labels,
        "frames": list(frames),
        "ctc": [list(ctc)] * len(frames),
    }


A = item("a", [5, 6, 7], [IGNORE_INDEX, 7, IGNORE_INDEX])
B = item("b", [8, 9], [9, IGNORE_INDEX])


def test_rows_hold_samples_one_after_the_other_then_padding():
    batch = collate_rows([[A, B], [B]], pad_id=PAD, placeholder_id=SPEECH, seq_len=6, num_rows=3)
    assert batch["tokens"].tolist() == [[5, 6, 7, 8, 9, 0], [8, 9, 0, 0, 0, 0], [0] * 6]
    no = IGNORE_INDEX
    assert batch["labels"].tolist() == [[no, 7, no, 9, no, no], [9, *[no] * 5], [no] * 6]
    assert batch["input_pos"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch["document_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0], [0] * 6]
    assert batch["select"].tolist() == [1, 3, 6]
    assert batch["ids"] == ["a", "b", "b"]
    assert batch["frames"] is None and batch["speech_index"] is None


def test_rows_are_as_long_as_the_longest_by_default():
    batch = collate_rows([[A], [A, B], []], pad_id=PAD, placeholder_id=SPEECH)
    assert batch["tokens"].shape == (3, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_frames_keep_their_order_and_the_dtype_of_the_store(dtype):
    one, two = torch.randn(2, 4).to(dtype), torch.randn(1, 4).to(dtype)
    first = item("1", [5, SPEECH, SPEECH], [IGNORE_INDEX] * 3, one, ctc=[3, 1])
    second = item("2", [SPEECH, 5], [IGNORE_INDEX] * 2, two)
    batch = collate_rows([[first], [A, second]], pad_id=PAD, placeholder_id=SPEECH, seq_len=5)
    assert batch["frames"].dtype == dtype
    assert torch.equal(batch["frames"], torch.cat([one, two]))
    assert batch["frame_lengths"].tolist() == [2, 1]
    assert batch["speech_index"].tolist() == [1, 2, 8]
    assert batch["ctc_targets"].tolist() == [3, 1]
    assert batch["ctc_target_lengths"].tolist() == [2, 0]


def test_a_speech_step_without_utterances_has_empty_speech_tensors():
    batch = collate_rows([[A]], pad_id=PAD, placeholder_id=SPEECH, frame_dim=4)
    assert batch["frames"].shape == (0, 4)
    assert batch["frame_lengths"].numel() == batch["speech_index"].numel() == 0


def test_tensors_are_whole_numbers_of_64_bits():
    batch = collate_rows([[A]], pad_id=PAD, placeholder_id=SPEECH, frame_dim=4)
    for name in ("tokens", "labels", "select", "input_pos", "document_ids", "speech_index"):
        assert batch[name].dtype == torch.long
