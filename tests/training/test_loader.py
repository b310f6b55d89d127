"""Steps and their batches from the loader."""

import pytest
import torch
from tiny_world import make_data, make_tokenizer
from torch.utils.data._utils.pin_memory import pin_memory

from torchtune_speech.data import StepBatches
from torchtune_speech.datasets import speech_dataset
from torchtune_speech.nano._tokenizer import write_tokenizer
from torchtune_speech.training import build_plan, step_loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_tokenizer(folder)
    data = make_data(folder / "data")
    return speech_dataset(
        str(data / "manifest.jsonl"),
        tokenizer=make_tokenizer(folder),
        max_seq_len=160,
        features=str(data / "features"),
    )


def loader_of(dataset, **options):
    plan = build_plan(dataset, max_seq_len=160, rows_per_step=2, paired=True)
    return step_loader(plan, StepBatches(dataset), steps=4, **options)


def assert_same(first, second):
    (step, batches), (other_step, other_batches) = first, second
    assert step == other_step
    for batch, other in zip(batches, other_batches, strict=True):
        assert batch.keys() == other.keys() and batch["ids"] == other["ids"]
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name]) and value.dtype == other[name].dtype
            else:
                assert value == other[name]


def test_a_worker_makes_the_batches_that_this_process_makes(dataset):
    loaders = [list(loader_of(dataset, num_workers=n)) for n in (0, 1)]
    assert [step.number for step, _ in loaders[0]] == [0, 1, 2, 3]
    assert any(step.is_twin for step, _ in loaders[0])
    for first, second in zip(*loaders, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 1), "cpu"])
def test_memory_is_pinned_for_a_gpu_alone(dataset, device):
    assert loader_of(dataset, device=device).pin_memory == (str(device) != "cpu")


def test_pinning_takes_every_tensor_and_leaves_the_rest(dataset, monkeypatch):
    pinned = []

    def pin(tensor):  # what a machine without a GPU has of it
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    for step, batches in loader_of(dataset):
        pinned.clear()
        assert_same(pin_memory((step, batches)), (step, batches))
        tensors = [v for b in batches for v in b.values() if isinstance(v, torch.Tensor)]
        assert len(pinned) == len(tensors)
