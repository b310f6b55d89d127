"""Transcripts as a token for each speech vector."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_world import FRAME_DIM, SENTENCES, make_data, make_llm, make_tokenizer

from torchtune_speech.data import (
    AudioCut,
    Llama3ChatFormat,
    Plan,
    Sample,
    Source,
    TranscriptBatches,
    TranscriptDataset,
    collate_transcripts,
    ctc_labels,
)
from torchtune_speech.datasets import transcript_dataset
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore

PAD = "<|reserved_special_token_1|>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def tokenizer(world):
    return make_tokenizer(world / "llm")


def make_dataset(world, tokenizer, **changes):
    options = {
        "features": str(world / "data" / "features"),
        "pad_token": PAD,
        "output_length": lambda frames: 2 * frames,
        "normalize": lambda text, lang: text.lower().strip("."),
        "max_frames": 60,
        "ctc": "characters",
    }
    manifest = str(world / "data" / "manifest.jsonl")
    return transcript_dataset(manifest, tokenizer=tokenizer, **options | changes)


def test_items_hold_the_normalised_transcript(world, tokenizer):
    data = make_dataset(world, tokenizer)
    assert [s.id for s in data.samples] == [f"{i}-asr" for i in range(len(SENTENCES))]
    assert data.lengths.tolist() == [5 + 3 * i for i in range(len(SENTENCES))]
    for i, sentence in enumerate(SENTENCES):
        item = data.item(i)
        tokens = item["target_tokens"].tolist()
        assert data.text(i) == sentence.lower().strip(".")
        assert data.chat.decode(tokens[: item["num_words"]]) == data.text(i)
        assert tokens[item["num_words"] :] == [data.pad_token] * (
            2 * len(item["frames"][0]) - item["num_words"]
        )
        assert data.ctc.decode(item["ctc"]) == data.text(i)
        assert data.pad_token == tokenizer.special_tokens[PAD]


def test_a_batch_tells_words_first_pads_and_later_ones(world, tokenizer):
    data = make_dataset(world, tokenizer)
    items = [data.item(i) for i in (3, 0, 5)]
    batch = collate_transcripts(items, FRAME_DIM)
    at = 0
    for item, frames in zip(items, batch["frame_lengths"].tolist(), strict=True):
        kinds = []
        for token, is_pad, is_late in zip(
            *(batch[k][at : at + 2 * frames] for k in ("target_tokens", "is_pad", "is_late_pad")),
            strict=True,
        ):
            assert (token == data.pad_token) == is_pad
            kinds.append("late" if is_late else "pad" if is_pad else "word")
        words = item["num_words"]
        assert kinds == ["word"] * words + ["pad"] + ["late"] * (2 * frames - words - 1)
        at += 2 * frames
    assert at == len(batch["target_tokens"])
    assert torch.equal(batch["frames"], torch.cat([item["frames"][0] for item in items]))
    assert batch["ctc_target_lengths"].sum() == len(batch["ctc_targets"])
    assert batch["ids"] == ["3-asr", "0-asr", "5-asr"]


def test_an_empty_batch_has_empty_tensors():
    batch = collate_transcripts([], FRAME_DIM)
    assert batch["frames"].shape == (0, FRAME_DIM)
    assert batch["frame_lengths"].dtype == batch["target_tokens"].dtype == torch.long
    assert batch["is_pad"].dtype == torch.bool and batch["is_pad"].numel() == 0


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_processes_share_the_utterances_of_a_step(world, tokenizer, world_size):
    data = make_dataset(world, tokenizer)
    sources = [Source("all", 1.0, np.arange(len(data)))]
    plan = Plan(sources, data.lengths, max_seq_len=60, rows_per_step=3)
    step = next(plan)
    batches = [
        TranscriptBatches(data, rank=r, world_size=world_size, accumulation=2)[step]
        for r in range(world_size)
    ]
    assert len({len(of_rank) for of_rank in batches}) == 1
    ids = [i for of_rank in batches for batch in of_rank for i in batch["ids"]]
    assert sorted(ids) == sorted(data.samples[i].id for i in step.samples)


def test_frames_are_masked_alike_on_every_process(world, tokenizer):
    data = make_dataset(world, tokenizer)
    plan = Plan(
        [Source("all", 1.0, np.arange(len(data)))], data.lengths, max_seq_len=60, rows_per_step=9
    )
    step = next(plan)
    masks = {"time_masks": 1, "time_width": 4, "freq_masks": 1, "freq_width": 3}
    (alone,) = TranscriptBatches(data, augment=masks)[step]
    (other,) = TranscriptBatches(data, augment=masks, rank=1, world_size=2)[step]

    def by_id(batch):
        parts = batch["frames"].split(batch["frame_lengths"].tolist())
        return dict(zip(batch["ids"], parts, strict=True))

    masked = by_id(alone)
    assert any((f != data.store[f"{i[0]}.wav"]).any() for i, f in masked.items())
    assert other["ids"]
    assert all(torch.equal(f, masked[i]) for i, f in by_id(other).items())


def test_what_does_not_fit_is_refused_or_skipped(world, tokenizer, caplog):
    with pytest.raises(InputError, match=r"sample 6-asr: 23 frames, max_frames is 22; 2 of 8"):
        make_dataset(world, tokenizer, max_frames=22)
    assert len(make_dataset(world, tokenizer, max_frames=22, on_too_long="skip")) == 6
    short = {"output_length": lambda frames: 4 if frames == 8 else 2 * frames}
    with pytest.raises(InputError, match=r"sample 1-asr: \d+ tokens for fewer .*\(4\); 1 of 8 "):
        make_dataset(world, tokenizer, **short)
    kept = make_dataset(world, tokenizer, **short, on_too_long="skip")
    assert [s.id for s in kept.samples] == [f"{i}-asr" for i in (0, 2, 3, 4, 5, 6, 7)]
    assert kept.lengths.tolist() == [5, 11, 14, 17, 20, 23, 26]
    with pytest.raises(InputError, match="no sample that fits is left"):
        make_dataset(world, tokenizer, max_frames=1, on_too_long="skip")
    with pytest.raises(InputError, match="on_too_long: 'cut'"):
        make_dataset(world, tokenizer, on_too_long="cut")


def test_rows_without_one_audio_and_its_transcript_are_named(world, tokenizer):
    chat = Llama3ChatFormat(tokenizer)
    good = Sample(id="a", task="asr", target="yes", audio=(AudioCut("0.wav"),))
    options = {
        "chat": chat,
        "store": FeatureStore(world / "data" / "features"),
        "output_length": int,
        "pad_token": 1,
        "max_frames": 60,
        "ctc": ctc_labels(None, chat),
    }
    assert len(TranscriptDataset([good], **options)) == 1
    for changes, what in (
        ({"audio": ()}, "sample a: has 0 audios"),
        ({"audio": (AudioCut("0.wav"),) * 2}, "sample a: has 2 audios"),
        ({"task": "st"}, "sample a: has no transcript"),
        ({"audio": (AudioCut("9.wav"),)}, "audio 9.wav is not in the feature store"),
    ):
        with pytest.raises(InputError, match=what):
            TranscriptDataset([dataclasses.replace(good, **changes)], **options)
    with pytest.raises(InputError, match="no sample that fits"):
        TranscriptDataset([], **options)


def test_rows_of_other_tasks_serve_when_their_transcript_is_known(world, tokenizer):
    rows = [json.loads(line) for line in (world / "data" / "manifest.jsonl").open()]
    data = make_dataset(world, tokenizer, tasks=["st"])
    assert len(data) == sum(row["task"] == "st" for row in rows)
    assert data.text(0) == SENTENCES[0].lower().strip(".")
