"""Scores of a projector without the LLM, beside a loop over utterances and positions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny_world import DIM, FRAME_DIM, SENTENCES, make_data, make_llm, make_tokenizer
from torch import nn

from torchtune_speech.data import chat_format, resolve_token, spread
from torchtune_speech.datasets import transcript_dataset
from torchtune_speech.evaluation import wer
from torchtune_speech.features import FeatureWriter, finalize_store
from torchtune_speech.models import ProjectorWithTable, load_embedding_table
from torchtune_speech.training import Process, evaluate_embeddings, transcript_normalizer

ALONE = Process(torch.device("cpu"), 0, 1)
PAD = "<|reserved_special_token_1|>"


class Passer(nn.Module):
    """Passes frames on as speech vectors; its CTC head hears all tokens but ``deaf_to``."""

    out_dim = DIM

    def __init__(self, table, pad, deaf_to):
        super().__init__()
        self.table, self.pad, self.deaf_to = table, pad, deaf_to

    def output_length(self, frames):
        return frames

    ctc_length = output_length

    def forward(self, frames, lengths, return_ctc=False):
        logits = F.normalize(frames, dim=-1) @ F.normalize(self.table, dim=-1).T
        logits[:, self.deaf_to] = -1
        logits = torch.cat([logits[:, [self.pad]], logits], dim=-1)  # the blank is heard for a pad
        return (frames, logits) if return_ctc else frames


def write_frames(folder, chat, table, pad):
    """Embeddings of each transcript's tokens and of some pads, with noise and with errors."""
    normalize, generator = transcript_normalizer("basic"), torch.Generator().manual_seed(0)
    tokens = [chat.encode(normalize(sentence, "en")) for sentence in SENTENCES]
    fingerprint = {"encoder": "tokens", "dim": DIM, "frames_per_second": 50.0}
    with FeatureWriter(folder, fingerprint, dtype=torch.float32) as writer:
        for i, words in enumerate(tokens):
            spoken = [*words, *[pad] * (2 * i)]
            spoken[1] = pad
            spoken[2 :: 4 + i] = [tokens[i - 1][0]] * len(spoken[2 :: 4 + i])
            noise = torch.randn(len(spoken), DIM, generator=generator)
            writer.add(f"{i}.wav", table[spoken] + 0.1 * noise, seconds=1.0)
    finalize_store(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that errs, and its data."""
    folder = tmp_path_factory.mktemp("world")
    make_data(folder / "data")
    tokenizer = make_tokenizer(make_llm(folder / "llm"))
    chat, table = chat_format(tokenizer), load_embedding_table(folder / "llm")
    pad, (the, *_) = resolve_token(PAD, chat), chat.encode("the")
    write_frames(folder / "features", chat, table, pad)
    projector = Passer(table, pad, the)
    dataset = transcript_dataset(
        str(folder / "data" / "manifest.jsonl"),
        tokenizer=tokenizer,
        features=str(folder / "features"),
        pad_token=PAD,
        output_length=projector.output_length,
        normalize=transcript_normalizer("basic"),
        max_frames=100,
        ctc="tokens",
    )
    return ProjectorWithTable(projector, table), dataset


def by_loop(model, dataset, chosen):
    """Scores, and texts of the nearest tokens: one position after the other."""
    table, pad, chat = model.table, dataset.pad_token, dataset.chat
    heard, spelled, cosines, found = [], [], [], []
    for item in map(dataset.item, chosen):
        (frames,) = item["frames"]
        nearest = [int(F.cosine_similarity(frame[None], table).argmax()) for frame in frames]
        heard.append(chat.decode([token for token in nearest if token != pad]))
        targets = zip(frames, nearest, item["target_tokens"], strict=True)
        for i, (frame, token, target) in enumerate(targets):
            if i < item["num_words"]:
                cosines.append(F.cosine_similarity(frame, table[target], dim=0).item())
            else:
                found.append(token == pad)
        _, logits = model.projector(frames, None, return_ctc=True)
        labels = [label for label, _ in itertools.groupby(logits.argmax(-1).tolist()) if label]
        spelled.append(dataset.ctc.decode(labels))
    references = [dataset.text(i) for i in chosen]
    nearest_token = wer(references, heard, normalizer="basic") | {
        "word_cosine": pytest.approx(sum(cosines) / len(cosines), rel=1e-5),
        "pads_found": pytest.approx(sum(found) / len(found)),
    }
    ctc = wer(references, spelled, normalizer="basic")
    return {"n": len(chosen), "nearest_token": nearest_token, "ctc": ctc}, heard


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_scores_are_those_of_a_loop(world, batch_size):
    model, dataset = world
    model.train()
    chosen = spread(5, len(dataset))
    expected, heard = by_loop(model, dataset, chosen)
    scores, examples = evaluate_embeddings(
        model, dataset, ALONE, num_samples=5, batch_size=batch_size, num_examples=2
    )
    assert scores == expected
    nearest = scores["nearest_token"]
    assert 0 < scores["ctc"]["wer"] < nearest["wer"] < 1  # it errs, and its CTC head differently
    assert 0.5 < nearest["pads_found"] < 1 and 0.5 < nearest["word_cosine"] < 0.95
    assert [row["prediction"] for row in examples] == [heard[0], heard[-1]]
    assert [row["id"] for row in examples] == [dataset.samples[i].id for i in (0, 7)]
    assert [row["target"] for row in examples] == [dataset.text(i) for i in (0, 7)]
    assert model.training


class Says(nn.Module):
    """Gives the embeddings of one list of tokens to the vectors of every utterance."""

    out_dim, in_dim = DIM, FRAME_DIM

    def __init__(self, embeddings_nd):
        super().__init__()
        self.embeddings_nd = embeddings_nd

    def forward(self, frames_td, frame_lengths_u, return_ctc=False):
        return torch.cat([self.embeddings_nd[:length] for length in frame_lengths_u.tolist()])


def test_what_is_no_text_counts_as_a_pad(tmp_path):
    llm, data = make_llm(tmp_path / "llm"), make_data(tmp_path / "data")
    dataset = transcript_dataset(
        str(data / "manifest.jsonl"),
        tokenizer=make_tokenizer(llm),
        features=str(data / "features"),
        pad_token=PAD,
        output_length=lambda frames: frames,
        normalize=lambda text, lang: "k",
        max_frames=60,
    )
    special = dataset.chat.special_tokens
    no_token = dataset.chat.vocab_size + 3  # which no tokenizer could decode
    table = torch.randn(no_token + 1, DIM, generator=torch.Generator().manual_seed(0))
    (k,) = dataset.chat.encode("k")
    said = [k, special[PAD], special["<|eot_id|>"], no_token, k, *[special[PAD]] * 50]
    model = ProjectorWithTable(Says(table[said]), table)
    scores, examples = evaluate_embeddings(model, dataset, ALONE, num_samples=1, batch_size=1)
    length = dataset.lengths[0]
    assert scores["nearest_token"]["pads_found"] == (length - 2) / (length - 1)
    assert examples[0]["prediction"] == "kk"
