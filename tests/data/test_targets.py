"""What each speech vector is to be, and the samples of which that cannot be said."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_world import FAMILIES, SENTENCES, make_chat, make_data, make_llm, make_tokenizer

from torchtune_speech.data import (
    StepBatches,
    pad_targets,
    resolve_token,
    text_token_rows,
    write_kept,
)
from torchtune_speech.data._plan import Step
from torchtune_speech.datasets import speech_dataset, transcript_dataset
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore
from torchtune_speech.training import transcript_normalizer

PAD = "<|reserved_special_token_1|>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_llm(folder / "llm")
    make_data(folder / "data")
    return folder


def all_of_it(text, lang):
    return text


def lower(text, lang):
    return text.lower().strip(".")


def make_dataset(world, manifest=None, **changes):
    options = {
        "max_seq_len": 160,
        "features": str(world / "data" / "features"),
        "output_length": lambda frames: 2 * frames,
        "pad_token": PAD,
        "normalize": lower,
    }
    manifest = str(manifest or world / "data" / "manifest.jsonl")
    return speech_dataset(manifest, tokenizer=make_tokenizer(world / "llm"), **options | changes)


def make_transcripts(world, **changes):
    """The same rows for a projector without the LLM."""
    return transcript_dataset(
        str(world / "data" / "manifest.jsonl"),
        tokenizer=make_tokenizer(world / "llm"),
        features=str(world / "data" / "features"),
        pad_token=PAD,
        output_length=lambda frames: 2 * frames,
        max_frames=60,
        **changes,
    )


def test_targets_are_the_tokens_and_then_pads():
    assert pad_targets([7, 3], 4, 9).tolist() == [7, 3, 9, 9]
    assert pad_targets([7, 3], 2, 9).tolist() == [7, 3]
    assert pad_targets([], 0, 9).tolist() == []
    assert pad_targets([], 0, 9).dtype == np.int64
    with pytest.raises(ValueError, match="2 tokens for 1"):
        pad_targets([7, 3], 1, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pad_token_is_an_id_or_a_name_of_what_no_text_holds(world, tmp_path, family):
    chat = make_chat(make_llm(tmp_path / family, family=family))
    name, special = sorted(chat.special_tokens.items())[-1]
    assert resolve_token(special, chat) == resolve_token(name, chat) == special
    assert resolve_token(chat.vocab_size + 5, chat) == chat.vocab_size + 5  # the table may have it
    for wrong in (-1, "two words", "", None, True):
        with pytest.raises(InputError, match="pad_token: "):
            resolve_token(wrong, chat)
    first = chat.encode("k")[0]
    for word in (first, "k"):
        with pytest.raises(InputError, match=f"pad_token: {word!r} is a token of text, 'k'; give"):
            resolve_token(word, chat)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_text_are_those_that_texts_are_made_of(tmp_path, family):
    chat = make_chat(make_llm(tmp_path / family, family=family))
    is_text = text_token_rows(chat, chat.vocab_size + 7)
    assert is_text.dtype == torch.bool and is_text.shape == (chat.vocab_size + 7,)
    assert all(is_text[chat.encode(" ".join(SENTENCES))])
    assert is_text.nonzero()[:, 0].tolist() == [i for i, t in enumerate(chat.token_texts) if t]


@pytest.mark.parametrize("ctc", ["characters", "tokens"])
def test_labels_are_those_of_the_transcript_dataset(world, ctc):
    """With targets, and without them: at sigma 0, and in stage C."""
    normalize = transcript_normalizer("basic")
    of_mapper = make_transcripts(world, normalize=normalize, ctc=ctc)
    expected = {s.id: of_mapper.item(i)["ctc"] for i, s in enumerate(of_mapper.samples)}
    for pad_token in (PAD, None):
        options = {"ctc": ctc, "tasks": ["asr"], "pad_token": pad_token}
        data, raw = (make_dataset(world, normalize=n, **options) for n in (normalize, all_of_it))
        labels = {s.id: data.item(i)["ctc"] for i, s in enumerate(data.samples)}
        assert labels == {key: [of_cut] for key, of_cut in expected.items()}
        if ctc == "tokens":  # characters are folded anyway
            assert raw.item(0)["ctc"] != data.item(0)["ctc"]
            assert raw.ctc.decode(raw.item(0)["ctc"][0]) == SENTENCES[0]


def test_targets_are_those_of_the_transcript_dataset(world):
    data, mapper = make_dataset(world), make_transcripts(world, normalize=lower)
    of_asr = {mapper.samples[i].id: mapper.item(i)["target_tokens"] for i in range(len(mapper))}
    assert len(of_asr) == len(SENTENCES)
    for i, sample in enumerate(data.samples):
        targets = data.item(i)["target_tokens"]
        assert len(targets) == len(sample.audio)
        for target in targets:  # whatever the task, what is said is the same
            assert np.array_equal(target, of_asr[f"{sample.id.split('-')[0]}-asr"])
    plain = make_dataset(world, pad_token=None)
    assert plain.item(0)["target_tokens"] is None


@pytest.mark.parametrize("one_row", [False, True])
def test_a_batch_has_a_target_for_each_placeholder_in_order(world, one_row):
    data = make_dataset(world, tasks=["asr", "mt", "st"])
    step = Step(0, 0, "all", ((3, 8), (0,), (1, 5, 2)), False, {})
    (batch,) = StepBatches(data, one_row=one_row)[step]
    items = [data.item(i) for row in step.rows for i in row]
    expected = [t for item in items for target in item["target_tokens"] for t in target]
    assert batch["target_tokens"].tolist() == expected
    assert batch["target_tokens"].shape == batch["speech_index"].shape
    assert batch["target_tokens"].dtype == torch.long
    twins = StepBatches(data)[dataclasses.replace(step, rows=((1,),), is_twin=True)]
    assert twins[0]["target_tokens"] is None
    plain = make_dataset(world, pad_token=None)
    assert StepBatches(plain)[step][0]["target_tokens"] is None


def test_vectors_that_are_not_kept_have_their_targets_all_the_same(world, tmp_path):
    store = FeatureStore(world / "data" / "features")
    kept = {key: (2 * store.num_frames(key), [0, 3]) for key in store}
    file = tmp_path / "kept.parquet"
    checksums = {key: store.checksum(key) for key in store}
    of_store = {"store_fingerprint": store.fingerprint, "checksums": checksums}
    write_kept(file, kept, fingerprint={}, **of_store)
    step = Step(0, 0, "all", ((3, 1), (0,)), False, {})
    (whole,) = StepBatches(make_dataset(world, tasks=["asr"]))[step]
    (batch,) = StepBatches(make_dataset(world, tasks=["asr"], kept=str(file)))[step]
    assert batch["target_tokens"].equal(whole["target_tokens"])
    assert len(batch["keep_index"]) == len(batch["speech_index"]) == 6 < len(whole["speech_index"])


def test_more_tokens_than_vectors_are_refused_or_skipped(world):
    short = {"output_length": lambda frames: 4 if frames == 8 else 2 * frames}
    with pytest.raises(InputError, match=r"sample 1-asr: \d+ tokens for fewer .*\(4\); 4 of 32 "):
        make_dataset(world, **short)
    kept = make_dataset(world, **short, on_too_long="skip")
    ids = [s.id for s in make_dataset(world).samples]
    assert [s.id for s in kept.samples] == [i for i in ids if i[0] != "1" or i == "1-mt"]
    for i, sample in enumerate(kept.samples):
        assert kept.lengths[i] == len(kept.item(i)["tokens"]), sample.id
    dense = {"output_length": lambda frames: 1, "tasks": ["asr"]}
    with pytest.raises(InputError, match="no sample that fits is left"):
        make_dataset(world, **dense, on_too_long="skip")
    assert len(make_dataset(world, **dense, pad_token=None)) == 8  # without targets all do


def test_a_sample_whose_words_are_not_known_is_named(world, tmp_path):
    row = {"id": "a", "task": "st", "target": "x", "target_lang": "de", "audio": "0.wav"}
    two = row | {"id": "b", "audio": ["0.wav", "1.wav"], "source_text": "Yes."}
    for bad, what in ((row, "sample a: has no transcript"), (two, "sample b: has 2 audios")):
        file = tmp_path / f"{bad['id']}.jsonl"
        file.write_text(json.dumps(bad) + "\n")
        with pytest.raises(InputError, match=what):
            make_dataset(world, file)
