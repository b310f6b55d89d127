"""Batched decoding: batch size does not change the text, caches equal recomputation."""

import pytest
import torch
from tiny_world import DIM, FRAME_DIM, make_data, make_llm, make_tokenizer

from torchtune_speech.datasets import speech_dataset
from torchtune_speech.generation import Prompt, generate, predict
from torchtune_speech.models import load_hf_weights, speech_llama3_1_from_hf, transformer_projector


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    llm_dir = make_llm(folder / "llm")
    data = make_data(folder / "data")
    torch.manual_seed(0)
    projector = transformer_projector(FRAME_DIM, DIM, embed_dim=16, num_layers=1, num_heads=2)
    dataset = speech_dataset(
        str(data / "manifest.jsonl"),
        tokenizer=make_tokenizer(llm_dir),
        max_seq_len=160,
        features=str(data / "features"),
        output_length=projector.output_length,
    )
    model = speech_llama3_1_from_hf(str(llm_dir), projector)
    model.load_state_dict(load_hf_weights(llm_dir), strict=False)
    return model, dataset


def settings(chat, **changes):
    return {
        "max_new_tokens": 10,
        "stop_ids": chat.stop_ids,
        "pad_id": chat.pad_id,
        "placeholder_id": chat.placeholder_id,
    } | changes


def prompts_of(dataset):
    return [Prompt(dataset.prompt(s), dataset.frames(s)) for s in dataset.samples]


def answer_without_cache(model, prompt, chat, max_new_tokens):
    """Greedy decoding that runs the whole sequence again for each token."""
    tokens = list(prompt.tokens)
    speech = {}
    if prompt.frames:
        index = [i for i, t in enumerate(tokens) if t == chat.placeholder_id]
        lengths = torch.tensor([len(f) for f in prompt.frames])
        speech = {
            "frames": torch.cat(prompt.frames),
            "frame_lengths": lengths,
            "speech_index": torch.tensor(index),
        }
    new = []
    while len(new) < max_new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([tokens + new]), **speech)[0, -1]
        logits[chat.placeholder_id] = -torch.inf
        new.append(int(logits.argmax()))
        if new[-1] in chat.stop_ids:
            return new[:-1]
    return new


def test_caches_equal_recomputation(world):
    model, dataset = world
    prompts = prompts_of(dataset)
    got = generate(model, prompts, **settings(dataset.chat))
    for prompt, answer in list(zip(prompts, got, strict=True))[::5]:
        assert answer.tokens == answer_without_cache(model, prompt, dataset.chat, 10)
    assert len({tuple(a.tokens) for a in got}) > 5  # answers that depend on the prompt


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_does_not_change_the_text(world, batch_size):
    model, dataset = world
    special = sorted(dataset.chat.special_ids)
    together = generate(model, prompts_of(dataset), **settings(dataset.chat, forbidden_ids=special))
    rows = {}
    for batch in predict(
        model, dataset, range(len(dataset)), max_new_tokens=10, batch_size=batch_size
    ):
        rows.update(batch)
    assert [rows[i]["prediction"] for i in range(len(dataset))] == [
        dataset.chat.decode(a.tokens) for a in together
    ]
    assert [rows[i]["id"] for i in range(len(dataset))] == [s.id for s in dataset.samples]


def test_finish_reasons(world):
    model, dataset = world
    prompt = prompts_of(dataset)[:1]
    cut = generate(model, prompt, **settings(dataset.chat))[0]
    assert cut.finish_reason == "length"
    assert len(cut.tokens) == 10
    stopped = generate(model, prompt, **settings(dataset.chat, stop_ids=[cut.tokens[3]]))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == cut.tokens[: cut.tokens.index(cut.tokens[3])]


def test_forbidden_tokens_are_never_generated(world):
    model, dataset = world
    prompt = prompts_of(dataset)[:4]
    free = generate(model, prompt, **settings(dataset.chat))
    banned = free[0].tokens[0]
    answers = generate(model, prompt, **settings(dataset.chat, forbidden_ids=[banned, 10**6]))
    assert all(banned not in a.tokens for a in answers)


def test_the_model_is_left_as_it_was(world):
    model, dataset = world
    model.train()
    generate(model, prompts_of(dataset)[:2], **settings(dataset.chat))
    assert model.training
    assert not model.decoder.caches_are_setup()
    tokens = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():  # causal again: the last token does not reach back
        assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    model.eval()
