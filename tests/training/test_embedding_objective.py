"""The loss without the LLM, against a loop over positions; means over batches; float16."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_world import DIM, FRAME_DIM
from torch.amp import GradScaler

from torchtune_speech import training
from torchtune_speech.data import Step, collate_transcripts, pad_targets
from torchtune_speech.errors import InputError
from torchtune_speech.models import ProjectorWithTable, transformer_projector
from torchtune_speech.training import EmbeddingLoss, Process
from torchtune_speech.training._embedding_objective import PARTS

ALONE = Process(torch.device("cpu"), 0, 1)
VOCAB, PAD = 40, 39


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    options = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "ctc_vocab_size": 6}
    projector = transformer_projector(FRAME_DIM, DIM, **options | changes)
    return ProjectorWithTable(projector, torch.randn(VOCAB, DIM), contrast=True)


def make_items(lengths, seed=0):
    """Utterances of noise; each second one is too short for its CTC labels."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    items = []
    for i, frames in enumerate(lengths):
        words = rng.integers(0, PAD, rng.integers(0, frames + 1)).tolist()
        labels = frames + 1 if i % 2 else max(1, frames // 3)
        items.append(
            {
                "id": str(i),
                "target_tokens": pad_targets(words, frames, PAD),
                "num_words": len(words),
                "frames": [torch.randn(frames, FRAME_DIM, generator=generator)],
                "ctc": [1 + k % 5 for k in range(labels)],
            }
        )
    return items


def expected_means(model, items, temperature, pad_weight):
    """Every part, position by position."""
    errors = {name: [] for name in PARTS}  # (value, weight)
    for item in items:
        frames = item["frames"][0]
        lengths = torch.tensor([len(frames)])
        vectors, logits = model.projector(frames, lengths, return_ctc=True)
        for i, (vector, token) in enumerate(zip(vectors, item["target_tokens"], strict=True)):
            target, past_end = model.table[token], i - item["num_words"]
            weight = 1.0 if past_end < 0 else pad_weight
            name = "pad_squared_error" if past_end > 0 else "squared_error"
            errors[name].append((F.mse_loss(vector, target), 1.0))
            errors["absolute"].append((F.l1_loss(vector, target), weight))
            errors["cosine"].append((1 - F.cosine_similarity(vector, target, dim=0), weight))
            cosines = F.cosine_similarity(vector[None], model.table, dim=1)
            contrast = F.cross_entropy(cosines / temperature, torch.tensor(token))
            errors["contrast"].append((contrast, weight))
        labels = torch.tensor(item["ctc"])
        if len(labels) <= len(frames):
            log_p = logits.log_softmax(-1)
            loss = F.ctc_loss(log_p, labels, lengths, torch.tensor([len(labels)]), reduction="sum")
            errors["ctc"].append((loss / len(labels), len(labels)))
    return {
        name: sum(v * w for v, w in values) / sum(w for _, w in values)
        for name, values in errors.items()
    }


@pytest.mark.parametrize("pad_weight", [0.2, 1.0])
def test_each_part_is_the_mean_over_positions(pad_weight):
    model, items = make_model(), make_items([5, 9, 1, 7])
    weights = dict(zip(PARTS, (0.5, 0.25, 2.0, 3.0, 0.1, 0.3), strict=True))
    loss = EmbeddingLoss(**weights, temperature=0.1, pad_weight=pad_weight)
    expected = expected_means(model, items, 0.1, pad_weight)
    total = sum(weights[name] * mean for name, mean in expected.items())
    gradient = torch.autograd.grad(total, list(model.projector.parameters()))
    batch = collate_transcripts(items, FRAME_DIM)
    found = training.embedding_forward_backward(model, [batch], ALONE, loss).read()
    assert found.parts == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-5)
    assert found.loss == pytest.approx(total.item(), rel=1e-5)
    assert (found.vectors, found.frames, found.ctc_skipped) == (22, 22, 2)
    assert found.tokens == sum(item["num_words"] for item in items)
    for p, g in zip(model.projector.parameters(), gradient, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-5)


def test_accumulation_does_not_change_the_mean():
    items = make_items([3, 8, 6, 2, 9])
    loss = EmbeddingLoss(**dict.fromkeys(PARTS, 1.0), pad_weight=0.2)
    results = []
    for cuts in ((0, 5), (0, 1, 3, 3, 5)):
        model = make_model()
        batches = [collate_transcripts(items[a:b], FRAME_DIM) for a, b in itertools.pairwise(cuts)]
        found = training.embedding_forward_backward(model, batches, ALONE, loss).read()
        results.append((found, [p.grad for p in model.projector.parameters()]))
    (one, grads), (many, others) = results
    assert one.parts == pytest.approx(many.parts, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))


@pytest.mark.parametrize("name", PARTS)
def test_parts_without_weight_are_neither_computed_nor_told(name):
    model = make_model(ctc_vocab_size=6 if name == "ctc" else None)
    if name != "contrast":
        model.unit_table = None
    batch = collate_transcripts(make_items([5, 9]), FRAME_DIM)
    loss = EmbeddingLoss(**{name: 2.0})
    found = training.embedding_forward_backward(model, [batch], ALONE, loss).read()
    assert list(found.parts) == [name]
    assert found.loss == pytest.approx(2 * found.parts[name])


def test_a_part_with_nothing_to_learn_costs_nothing():
    model = make_model()
    items = make_items([4])
    items[0] |= {"target_tokens": pad_targets([1, 2, 3, 4], 4, PAD), "num_words": 4, "ctc": []}
    batch = collate_transcripts(items, FRAME_DIM)
    loss = EmbeddingLoss(squared_error=1.0, pad_squared_error=1.0, ctc=1.0)
    found = training.embedding_forward_backward(model, [batch], ALONE, loss).read()
    assert list(found.parts) == ["squared_error"]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.projector.parameters())


@pytest.mark.parametrize(
    ("weights", "others", "what"),
    [
        ({"mse": 1}, {}, "loss.mse: unknown part"),
        ({"cosin": 1}, {}, "did you mean 'cosine'"),
        ({"cosine": -1}, {}, "loss.cosine: -1; give a number"),
        ({"cosine": None}, {}, "loss.cosine: None"),
        ({"cosine": True}, {}, "loss.cosine: True"),
        ({"cosine": 0.0}, {}, "loss: all weights are 0"),
        (None, {}, "loss: None; give weights"),
        ({"cosine": 1}, {"temperature": 0}, "contrast_temperature: 0"),
        ({"cosine": 1}, {"pad_weight": "x"}, "pad_weight: 'x'"),
    ],
)
def test_an_odd_loss_is_refused(weights, others, what):
    with pytest.raises(InputError, match=what):
        training.check_embedding_loss(weights, **others)


def take_steps(dtype, init_scale, steps=4):
    """Scales and whether the weights changed, after each step."""
    model, seen = make_model(), []
    groups = training.trainable_groups(model, "projector")
    optimizer = torch.optim.AdamW(groups["projector"].values(), lr=1e-2)
    scaler = GradScaler("cpu", enabled=dtype == torch.float16, init_scale=init_scale)
    batch = collate_transcripts(make_items([5, 9, 6]), FRAME_DIM)
    loss = EmbeddingLoss(cosine=1.0, contrast=0.1)
    step = Step(0, 0, "all", ((0, 1),), False, {})
    dataset = type("Data", (), {"samples": [type("S", (), {"id": "a"})] * 2})
    for _ in range(steps):
        before = model.projector.out_proj.weight.detach().clone()
        sums = training.embedding_forward_backward(
            model, [batch], ALONE, loss, dtype=dtype, scaler=scaler
        )
        losses, norm = training.update(
            optimizer, groups, sums, step, dataset, clip_grad_norm=1.0, scaler=scaler
        )
        changed = not torch.equal(before, model.projector.out_proj.weight)
        seen.append((losses.loss, norm, scaler.get_scale(), changed))
    return seen


def test_float16_with_a_scaled_loss_is_near_float32():
    plain, scaled = take_steps(torch.float32, 1.0), take_steps(torch.float16, 2.0**10)
    assert all(changed for *_, changed in plain + scaled)
    for (loss, norm, *_), (half_loss, half_norm, scale, _) in zip(plain, scaled, strict=True):
        assert half_loss == pytest.approx(loss, rel=1e-2)
        assert half_norm == pytest.approx(norm, rel=3e-2)
        assert scale == 2.0**10
    assert [loss for loss, *_ in plain] != [loss for loss, *_ in scaled]


def test_a_scale_that_is_too_large_skips_the_step_and_is_halved():
    (_, norm, scale, changed), *others = take_steps(torch.float16, 2.0**40, steps=40)
    assert not changed and scale == 2.0**39 and not np.isfinite(norm)
    assert others[-1][3] and np.isfinite(others[-1][1])


def test_gradients_that_no_scale_mends_are_an_error():
    with pytest.raises(InputError, match="step 1: loss .*, gradient norm"):
        model = make_model()
        model.projector.out_proj.weight.register_hook(lambda g: g * float("nan"))
        groups = training.trainable_groups(model, "projector")
        optimizer = torch.optim.AdamW(groups["projector"].values())
        scaler = GradScaler("cpu", init_scale=1.0)
        batch = collate_transcripts(make_items([5]), FRAME_DIM)
        sums = training.embedding_forward_backward(
            model, [batch], ALONE, EmbeddingLoss(cosine=1.0), dtype=torch.float16, scaler=scaler
        )
        dataset = type("Data", (), {"samples": [type("S", (), {"id": "a"})]})
        step = Step(0, 0, "all", ((0,),), False, {})
        training.update(optimizer, groups, sums, step, dataset, clip_grad_norm=None, scaler=scaler)
