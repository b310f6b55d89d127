"""Speech vectors that are kept: loss and gradient beside the model run by hand, and packed."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_world import DIM, FRAME_DIM, build_llm, make_data, make_llm, make_tokenizer

from torchtune_speech.data import AudioCut, Plan, Sample, Source, StepBatches, write_kept
from torchtune_speech.datasets import speech_dataset
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore
from torchtune_speech.generation import Decoding, Prompt, generate
from torchtune_speech.models import load_hf_weights, transformer_projector
from torchtune_speech.training import (
    Process,
    check_same_kept,
    ctc_forward_backward,
    forward_backward,
    initial_lora,
    trainable_groups,
)

ONE = Process(torch.device("cpu"), 0, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and the same data with all vectors, with all of them named, and with some."""
    folder = tmp_path_factory.mktemp("world")
    llm_dir, data = make_llm(folder / "llm"), make_data(folder / "data")
    torch.manual_seed(0)
    projector = transformer_projector(
        FRAME_DIM, DIM, embed_dim=16, num_layers=2, num_heads=2, out_stack=2, ctc_vocab_size=39
    )
    model = build_llm(llm_dir, projector, lora_rank=8)
    lora = {k: torch.randn_like(v) * 0.05 for k, v in initial_lora(model, 0).items()}
    model.load_state_dict(load_hf_weights(llm_dir) | lora, strict=False)
    store, rng = FeatureStore(data / "features"), np.random.default_rng(0)
    counts = {key: projector.output_length(store.num_frames(key)) for key in store}
    some = {
        key: np.sort(rng.choice(n, size=rng.integers(1, n + 1), replace=False))
        for key, n in counts.items()
    }
    assert 0 < sum(map(len, some.values())) < sum(counts.values())
    files = {"whole": {key: range(n) for key, n in counts.items()}, "some": some}
    datasets = {}
    for name in ("all", *files):
        if name in files:
            write_kept(
                folder / name,
                {key: (counts[key], list(kept)) for key, kept in files[name].items()},
                fingerprint={"projector": name, "pad_token": 0},
                store_fingerprint=store.fingerprint,
                checksums={key: store.checksum(key) for key in store},
            )
        datasets[name] = speech_dataset(
            str(data / "manifest.jsonl"),
            tokenizer=make_tokenizer(llm_dir),
            max_seq_len=160,
            features=str(data / "features"),
            output_length=projector.output_length,
            kept=str(folder / name) if name in files else None,
            ctc="characters",
        )
    return model, datasets, some


def first_step(dataset, **options):
    sources = [Source("all", 1.0, np.arange(len(dataset)))]
    return next(
        Plan(sources, dataset.lengths, max_seq_len=160, rows_per_step=100, seed=0, **options)
    )


def loss_and_gradient(model, batches, ctc_weight=0.3):
    model.zero_grad(set_to_none=True)
    losses = forward_backward(model, batches, ONE, ctc_weight=ctc_weight).read()
    groups = trainable_groups(model, "projector", "lora")
    grads = [p.grad for group in groups.values() for p in group.values() if p.grad is not None]
    return losses, torch.cat([g.flatten() for g in grads])


def test_lengths_and_placeholders_are_those_of_what_is_kept(world):
    _, datasets, some = world
    few, many = datasets["some"], datasets["all"]
    for i, sample in enumerate(few.samples):
        dropped = sum(
            few.output_length(few.store.num_frames(cut.key)) - len(some[cut.key])
            for cut in sample.audio
        )
        assert few.lengths[i] == many.lengths[i] - dropped
        item = few.item(i)
        placeholders = item["tokens"].count(few.chat.placeholder_id)
        assert placeholders == sum(len(some[cut.key]) for cut in sample.audio)
        assert [k.tolist() for k in item["kept"]] == [some[c.key].tolist() for c in sample.audio]
    assert many.item(0)["kept"] is None
    assert StepBatches(many)[first_step(many)][0]["keep_index"] is None
    assert (few.twin_lengths() == many.twin_lengths()).all()


def test_packed_padded_and_one_by_one_agree(world):
    model, datasets, _ = world
    dataset = datasets["some"]
    packed, padded = first_step(dataset), first_step(dataset, packed=False)
    one_by_one = StepBatches(dataset, accumulation=len(dataset))[padded]
    assert len(one_by_one) == len(dataset)
    expected, gradient = loss_and_gradient(model, one_by_one)
    for batches in (
        StepBatches(dataset)[packed],
        StepBatches(dataset, one_row=True)[packed],
        StepBatches(dataset, accumulation=4, seq_len=160, rows_per_step=99)[packed],
        StepBatches(dataset)[padded],
    ):
        losses, other = loss_and_gradient(model, batches)
        assert losses.loss == pytest.approx(expected.loss, rel=1e-5)
        assert losses.ctc == pytest.approx(expected.ctc, rel=1e-5)
        assert ((other - gradient).norm() / gradient.norm()).item() < 1e-5


def test_all_positions_named_is_none_named(world):
    model, datasets, _ = world
    found = []
    for name in ("all", "whole"):
        batches = StepBatches(datasets[name])[first_step(datasets[name])]
        found.append(loss_and_gradient(model, batches))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_the_llm_reads_the_named_vectors_and_ctc_hears_all(world):
    model, datasets, some = world
    dataset = datasets["some"]
    whole, _ = loss_and_gradient(model, StepBatches(datasets["all"])[first_step(datasets["all"])])
    losses, _ = loss_and_gradient(model, StepBatches(dataset)[first_step(dataset)])
    assert losses.ctc == pytest.approx(whole.ctc, rel=1e-5)
    assert losses.loss != pytest.approx(whole.loss, rel=1e-3)
    total = count = 0
    with torch.no_grad():
        for i in range(len(dataset)):
            item = dataset.item(i)
            tokens, labels = torch.tensor(item["tokens"]), torch.tensor(item["labels"])
            h = model.decoder.tok_embeddings(tokens)
            vectors = [
                model.projector(f, torch.tensor([len(f)]))[torch.from_numpy(some[key])]
                for f, key in zip(item["frames"], item["keys"], strict=True)
            ]
            if vectors:
                h[tokens == dataset.chat.placeholder_id] = torch.cat(vectors)
            h = h[None]
            mask = torch.ones(len(tokens), len(tokens)).tril().bool()[None]
            for layer in model.decoder.layers:
                h = layer(h, mask=mask)
            logits = model.decoder.output(model.decoder.norm(h))[0]
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    assert losses.loss == pytest.approx(total / count, rel=1e-5)


def test_the_warm_up_without_the_llm_is_the_same(world):
    model, datasets, _ = world
    found = []
    for name in ("all", "some"):
        step = first_step(datasets[name], packed=False)
        rows = tuple(row for row in step.rows if datasets[name].samples[row[0]].is_speech)
        batches = StepBatches(datasets[name])[dataclasses.replace(step, rows=tuple(sorted(rows)))]
        model.zero_grad(set_to_none=True)
        losses = ctc_forward_backward(model, batches, ONE).read()
        grads = [p.grad for p in model.projector.parameters() if p.grad is not None]
        found.append((losses.loss, torch.cat([g.flatten() for g in grads])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_a_rank_without_speech_takes_part(world):
    model, datasets, _ = world
    dataset = datasets["some"]
    text = next(i for i, s in enumerate(dataset.samples) if not s.is_speech)
    speech = next(i for i, s in enumerate(dataset.samples) if s.is_speech)
    step = dataclasses.replace(first_step(dataset), rows=((speech,), (text,)))
    batches = StepBatches(dataset, rank=1, world_size=2)[step]
    assert batches[0]["frames"].shape == (0, FRAME_DIM) and batches[0]["keep_index"] is None
    loss_and_gradient(model, batches)
    # CTC's head, too: every process takes part in the same collectives.
    assert all(p.grad is not None for p in model.projector.parameters())


def test_answers_are_those_of_the_named_vectors(world):
    """Each prompt by itself, whole batches, and the model run by hand for the first token."""
    model, datasets, some = world
    dataset = datasets["some"]
    chat = dataset.chat
    samples = dataset.samples[:12]
    prompts = [
        Prompt(dataset.prompt(s), dataset.frames(s), kept=dataset.kept_positions(s))
        for s in samples
    ]
    ask = {"stop_ids": chat.stop_ids, "placeholder_id": chat.placeholder_id}
    together = generate(model, prompts, Decoding(6), **ask)
    alone = [generate(model, [p], Decoding(6), **ask)[0] for p in prompts]
    assert together == alone
    model.eval()
    for sample, prompt, answer in zip(samples, prompts, together, strict=True):
        tokens = torch.tensor(prompt.tokens)
        speech = {}
        if prompt.frames:
            (cut,), (frames,) = sample.audio, prompt.frames
            speech = {
                "frames": frames,
                "frame_lengths": torch.tensor([len(frames)]),
                "speech_index": (tokens == chat.placeholder_id).nonzero()[:, 0],
                "keep_index": torch.from_numpy(some[cut.key]),
            }
        with torch.no_grad():
            logits = model(tokens[None], **speech)[0, -1]
        logits[chat.placeholder_id] = -torch.inf
        first = int(logits.argmax())
        assert (answer.tokens[0] == first) if answer.tokens else first in chat.stop_ids


def test_prompts_with_and_without_named_vectors_may_stand_in_one_batch(world):
    model, datasets, _ = world
    chat = datasets["all"].chat
    ask = {"stop_ids": chat.stop_ids, "placeholder_id": chat.placeholder_id}
    prompts = [
        Prompt(d.prompt(s), d.frames(s), kept=d.kept_positions(s))
        for s in datasets["all"].samples[:4]
        for d in (datasets["all"], datasets["some"])
    ]
    together = generate(model, prompts, Decoding(6), **ask)
    assert together == [generate(model, [p], Decoding(6), **ask)[0] for p in prompts]


def test_dev_data_of_text_alone_has_no_pads_to_drop():
    speech = Sample("a", "asr", "x", (AudioCut("a.wav"),))
    text = Sample("b", "mt", "x", source_text="y")
    training_data = SimpleNamespace(kept=SimpleNamespace(fingerprint={"pad_token": 1}))
    check_same_kept(training_data, SimpleNamespace(kept=None, samples=[text]))
    with pytest.raises(InputError, match="eval_dataset.kept: drops pads in another way"):
        check_same_kept(training_data, SimpleNamespace(kept=None, samples=[text, speech]))
