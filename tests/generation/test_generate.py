"""Batched decoding: batch size does not change the text, caches equal recomputation."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_world import (
    DIM,
    FAMILIES,
    FRAME_DIM,
    build_llm,
    make_data,
    make_llm,
    make_tokenizer,
)
from transformers import AutoModelForCausalLM

from torchtune_speech.datasets import speech_dataset
from torchtune_speech.errors import InputError
from torchtune_speech.files import read_jsonl
from torchtune_speech.generation import (
    CycleDetector,
    Decoding,
    PartialPredictions,
    Prompt,
    generate,
    plan_batches,
    predict,
)
from torchtune_speech.generation._tokenwise import _Row
from torchtune_speech.models import load_hf_weights, transformer_projector


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    llm_dir = make_llm(folder / "llm", family=getattr(request, "param", "llama"))
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
    dataset.llm_dir = llm_dir
    model = build_llm(llm_dir, projector)
    model.load_state_dict(load_hf_weights(llm_dir), strict=False)
    return model, dataset


def settings(chat, **changes):
    return {
        "settings": Decoding(10),
        "stop_ids": chat.stop_ids,
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


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
def test_caches_equal_recomputation(world):
    model, dataset = world
    prompts = prompts_of(dataset)
    got = generate(model, prompts, **settings(dataset.chat))
    for prompt, answer in list(zip(prompts, got, strict=True))[::5]:
        assert answer.tokens == answer_without_cache(model, prompt, dataset.chat, 10)
    assert len({tuple(a.tokens) for a in got}) > 5  # answers that depend on the prompt


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(10),
        Decoding(10, num_beams=3),
        Decoding(10, temperature=0.8, top_p=0.9, seed=3),
        Decoding(40, loops="forbid"),
    ],
    ids=["greedy", "beam", "sampling", "loops"],
)
def test_the_batch_does_not_change_the_text(world, decoding):
    model, dataset = world
    everything = range(len(dataset))
    batched = {
        size: plan_batches(dataset, everything, size, text_apart=size == 4) for size in (1, 4, 16)
    }
    batched["unsorted"] = [list(everything)[i : i + 5] for i in range(0, len(dataset), 5)]
    texts = {}
    for name, batches in batched.items():
        rows = dict(pair for batch in predict(model, dataset, batches, decoding) for pair in batch)
        assert [rows[i]["id"] for i in everything] == [s.id for s in dataset.samples]
        lengths = [len(dataset.prompt(s)) for s in dataset.samples]
        assert [rows[i]["prompt_tokens"] for i in everything] == lengths
        texts[name] = [(rows[i]["prediction"], rows[i]["num_tokens"]) for i in everything]
    assert texts[1] == texts[4] == texts[16] == texts["unsorted"]
    assert len(set(texts[1])) > 5


# Few tokens to choose from, so that the model repeats itself.
FEW = range(20, 40)


@pytest.fixture
def small_cycles(monkeypatch):
    """Loops of two cycles and two tokens count."""
    small = functools.partial(CycleDetector, min_repeats=2, min_words=2, max_period=8)
    monkeypatch.setattr(
        "torchtune_speech.generation._cycles.CycleDetector", lambda *a, **k: small()
    )


def answer_rows_without_cache(model, prompt, decoding, forbidden, stop_ids):
    """Token by token with all the sequence read again, returns from loops included."""
    row = _Row(0, prompt, decoding, None)
    while row.finish_reason is None:
        tokens = list(prompt.tokens) + row.tokens
        speech = {}
        if prompt.frames:
            speech = {
                "frames": torch.cat(list(prompt.frames)),
                "frame_lengths": torch.tensor([len(f) for f in prompt.frames]),
                "speech_index": (torch.tensor(prompt.tokens) == forbidden[-1]).nonzero()[:, 0],
            }
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), **speech)[0, -1]
        logits[[i for i in forbidden if i < len(logits)]] = -torch.inf
        logits[row.banned()] = -torch.inf
        row.add(int(logits.argmax()), stop_ids)
    return row.answer()


def few_tokens(dataset):
    everything = dataset.chat.vocab_size
    return {
        "stop_ids": [FEW[3]],
        "placeholder_id": dataset.chat.placeholder_id,
        "forbidden_ids": [i for i in range(everything) if i not in FEW],
    }


def test_caches_follow_rows_that_return_from_loops(world, small_cycles):
    model, dataset = world
    model.eval()
    prompts, decoding = prompts_of(dataset), Decoding(30, loops="forbid")
    asked = few_tokens(dataset)
    together = generate(model, prompts, decoding, **asked)
    assert sum(a.loops for a in together) > 20
    forbidden = [i for i in asked["forbidden_ids"] if i != asked["placeholder_id"]]
    forbidden.append(asked["placeholder_id"])
    for prompt, answer in list(zip(prompts, together, strict=True))[::4]:
        alone = answer_rows_without_cache(model, prompt, decoding, forbidden, asked["stop_ids"])
        assert answer == alone


def test_caches_follow_rows_of_one_length_that_return(world, small_cycles):
    """Then nothing but the returns tells the rows of the cache apart."""
    model, dataset = world
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(FEW[0], FEW[-1], (12, 9), generator=generator).tolist()
    prompts, decoding = [Prompt(row) for row in tokens], Decoding(30, loops="forbid")
    asked = few_tokens(dataset)
    together = generate(model, prompts, decoding, **asked)
    assert len({a.loops for a in together}) > 1
    assert together == [generate(model, [p], decoding, **asked)[0] for p in prompts]


@pytest.mark.parametrize("policy", ["forbid", "cut"])
def test_caches_follow_beams_that_return_from_loops(world, small_cycles, policy):
    model, dataset = world
    decoding = Decoding(30, num_beams=3, loops=policy)
    asked = few_tokens(dataset)
    together = generate(model, prompts_of(dataset), decoding, **asked)
    assert sum(a.loops for a in together) > 5
    for prompt, answer in list(zip(prompts_of(dataset), together, strict=True))[::4]:
        assert generate(model, [prompt], decoding, **asked) == [answer]


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_equal_those_of_hugging_face(world, beams, penalty):
    model, dataset = world
    theirs = AutoModelForCausalLM.from_pretrained(dataset.llm_dir).eval()
    prompts = [p for p in prompts_of(dataset) if not p.frames]
    placeholder = dataset.chat.placeholder_id
    for stop_ids in ([5, 9], list(range(20, 120))):
        ours = generate(
            model,
            prompts,
            Decoding(12, num_beams=beams, length_penalty=penalty),
            stop_ids=stop_ids,
            placeholder_id=placeholder,
        )
        for prompt, answer in zip(prompts, ours, strict=True):
            tokens = theirs.generate(
                torch.tensor([prompt.tokens]),
                attention_mask=torch.ones(1, len(prompt.tokens), dtype=torch.long),
                max_new_tokens=12,
                num_beams=beams,
                length_penalty=penalty,
                do_sample=False,
                eos_token_id=stop_ids,
                pad_token_id=stop_ids[0],
                suppress_tokens=[placeholder],
                renormalize_logits=True,  # what is suppressed has no share of the probability
                early_stopping=False,
            )[0, len(prompt.tokens) :].tolist()
            assert answer.tokens == [t for t in tokens if t not in stop_ids]


def test_batches_hold_samples_of_like_length(world):
    _, dataset = world
    batches = plan_batches(dataset, range(len(dataset)), 7, text_apart=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(dataset)))
    kinds = [{dataset.samples[i].is_speech for i in batch} for batch in batches]
    assert kinds.count({True}) == 5 and kinds.count({False}) == 2  # 32 and 8 samples
    lengths = [len(dataset.prompt(dataset.samples[i])) for batch in batches[:5] for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_finish_reasons(world):
    model, dataset = world
    prompt = prompts_of(dataset)[:1]
    cut = generate(model, prompt, **settings(dataset.chat))[0]
    assert cut.finish_reason == "length"
    assert len(cut.tokens) == 10
    assert (
        generate(model, [Prompt(prompt[0].tokens, prompt[0].frames, 4)], **settings(dataset.chat))[
            0
        ].tokens
        == (cut.tokens[:4])
    )
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
    tokens = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():  # causal again: the last token does not reach back
        assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    model.eval()


TWO_PROCESSES = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_world import make_tokenizer
from torch.distributed.fsdp import fully_shard

from torchtune_speech.data import Llama3ChatFormat
from torchtune_speech.generation import Decoding, Prompt, generate
from torchtune_speech.models import load_hf_weights, speech_llama3_1_from_hf

llm, out, beams = sys.argv[1:]
dist.init_process_group("gloo")
model = speech_llama3_1_from_hf(llm, None)
model.load_state_dict(load_hf_weights(llm), strict=False)
for layer in model.decoder.layers:
    fully_shard(layer)
fully_shard(model)
if dist.get_rank():  # as if its hardware rounded in its own way
    model.register_forward_hook(lambda module, args, logits: -logits)
chat = Llama3ChatFormat(make_tokenizer(Path(llm)))
answers = generate(
    model,
    [Prompt([5, 6, 7]), Prompt([8, 9])],
    Decoding(5, num_beams=int(beams)),
    stop_ids=chat.stop_ids,
    placeholder_id=chat.placeholder_id,
)
Path(out, f"{dist.get_rank()}.json").write_text(json.dumps([a.tokens for a in answers]))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("beams", [1, 2])
def test_processes_with_sharded_weights_take_the_same_tokens(tmp_path, beams):
    make_llm(tmp_path / "llm")
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        + [tmp_path / "script.py", tmp_path / "llm", tmp_path, str(beams)],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert any(first)


def test_predictions_of_a_killed_run_are_taken_up(tmp_path):
    output, settings = tmp_path / "out" / "predictions.jsonl", {"llm": "a", "limit": None}
    with pytest.raises(KeyboardInterrupt), PartialPredictions(output, settings) as partial:
        partial.add([(2, {"id": "c"}), (0, {"id": "ä"})])
        raise KeyboardInterrupt
    assert not output.exists()
    with open(partial.path, "ab") as file:
        file.write(b'{"index": 1, "row": {"id"')  # killed in the middle of a line
    assert PartialPredictions(output, settings | {"limit": 3}).rows == {}
    again = PartialPredictions(output, settings)
    assert again.rows == {2: {"id": "c"}, 0: {"id": "ä"}}
    with again:
        again.add([(1, {"id": "b"})])
    assert PartialPredictions(output, settings).rows == again.rows
    again.finish(again.rows[i] for i in range(3))
    assert [row["id"] for row in read_jsonl(output)] == ["ä", "b", "c"]
    assert list(output.parent.iterdir()) == [output]


def test_processes_read_what_all_have_written(tmp_path):
    output = tmp_path / "predictions.jsonl"
    for rank in range(3):
        with PartialPredictions(output, {}, rank) as partial:
            partial.add([(rank, {"id": str(rank)})])
    (tmp_path / "predictions2.partial.jsonl").write_text("of another output")
    first = PartialPredictions(output, {})
    assert sorted(first.rows) == [0, 1, 2]
    with PartialPredictions(output, {}, 1) as second:
        second.add([(3, {"id": "3"})])
    first.gather()
    first.finish(first.rows[i] for i in (3, 2, 1, 0))
    assert [row["id"] for row in read_jsonl(output)] == ["3", "2", "1", "0"]
    assert len(list(tmp_path.iterdir())) == 2


def test_predictions_of_other_settings_are_begun_anew(tmp_path):
    output = tmp_path / "predictions.jsonl"
    with PartialPredictions(output, {"llm": "a"}) as partial:
        partial.add([(0, {"id": "a"})])
    before = partial.path.read_bytes()
    other = PartialPredictions(output, {"llm": "b"})
    with other:
        other.add([(1, {"id": "b"})])
    assert (tmp_path / "predictions.partial.old.jsonl").read_bytes() == before
    assert other.rows == PartialPredictions(output, {"llm": "b"}).rows == {1: {"id": "b"}}


def test_two_runs_do_not_write_the_same_predictions(tmp_path):
    output = tmp_path / "predictions.jsonl"
    with PartialPredictions(output, {}) as partial:
        partial.add([(0, {"id": "a"})])
        with (
            pytest.raises(InputError, match="partial.jsonl: another run is writing it"),
            PartialPredictions(output, {}),
        ):
            pass
    assert PartialPredictions(output, {}).rows == {0: {"id": "a"}}


def test_a_damaged_line_ends_what_is_taken_up(tmp_path):
    output = tmp_path / "predictions.jsonl"
    with PartialPredictions(output, {}) as partial:
        partial.add([(0, {"id": "a"}), (1, {"id": "b"}), (2, {"id": "c"})])
    text = partial.path.read_text()
    partial.path.write_text(text.replace('"b"', '"b'))
    again = PartialPredictions(output, {})
    assert again.rows == {0: {"id": "a"}}
    with again:
        again.add([(1, {"id": "b"})])
    assert sorted(PartialPredictions(output, {}).rows) == [0, 1]
