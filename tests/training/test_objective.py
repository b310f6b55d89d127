"""Packed, padded and one by one; accumulation; text steps: the same loss and gradient."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_world import (
    DIM,
    FAMILIES,
    FRAME_DIM,
    build_llm,
    make_data,
    make_llm,
    make_tokenizer,
)

from torchtune_speech.data import IGNORE_INDEX, Plan, Source, StepBatches
from torchtune_speech.datasets import speech_dataset
from torchtune_speech.models import (
    load_hf_weights,
    transformer_projector,
)
from torchtune_speech.training import (
    Process,
    batch_loss,
    compile_layers,
    compiled_graphs,
    ctc_forward_backward,
    forward_backward,
    initial_lora,
    trainable_groups,
    update,
)

ONE = Process(torch.device("cpu"), 0, 1)
# Speech and text samples, in steps of different numbers of samples and of supervised positions.
ROWS = (((0,), (1, 2), (3,)), ((4, 5), (6,)), ((7,),))


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    llm_dir = make_llm(folder / "llm", family=getattr(request, "param", "llama"))
    make_data(folder / "data")
    torch.manual_seed(0)
    projector = transformer_projector(
        FRAME_DIM, DIM, embed_dim=16, num_layers=2, num_heads=2, ctc_vocab_size=39
    )
    dataset = tiny_dataset(folder, projector)
    model = build_llm(llm_dir, projector, lora_rank=8)
    lora = {k: torch.randn_like(v) * 0.05 for k, v in initial_lora(model, 0).items()}
    model.load_state_dict(load_hf_weights(llm_dir) | lora, strict=False)
    return model, dataset


def tiny_dataset(folder, projector, **options):
    return speech_dataset(
        str(folder / "data" / "manifest.jsonl"),
        tokenizer=make_tokenizer(folder / "llm"),
        max_seq_len=160,
        features=str(folder / "data" / "features"),
        output_length=projector.output_length,
        ctc="characters",
        **options,
    )


@pytest.fixture
def with_targets(world, tmp_path):
    """The world's samples that have room for their transcripts, with target tokens."""
    model, dataset = world
    folder = dataset.store.path.parents[1]
    pad = max(dataset.chat.special_ids)
    return model, tiny_dataset(folder, model.projector, pad_token=pad, on_too_long="skip")


def first_step(dataset, **options):
    plan = Plan(
        [Source("all", 1.0, np.arange(len(dataset)))],
        dataset.lengths,
        max_seq_len=160,
        rows_per_step=100,
        **options,
    )
    return next(plan)


def loss_and_gradient(model, batches, **options):
    groups = trainable_groups(model, "projector", "lora")
    model.zero_grad(set_to_none=True)
    losses = forward_backward(model, batches, ONE, **options).read()
    grads = {n: p.grad for g in groups.values() for n, p in g.items()}
    return losses, torch.cat([g.flatten() for g in grads.values() if g is not None])


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
@pytest.mark.parametrize(("ctc_weight", "sigma"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.3, 0.5)])
def test_packed_padded_and_one_by_one_agree(request, world, ctc_weight, sigma):
    model, dataset = request.getfixturevalue("with_targets") if sigma else world
    packed, padded = first_step(dataset), first_step(dataset, packed=False)
    assert max(len(row) for row in packed.rows) > 1
    ways = {
        "packed": StepBatches(dataset)[packed],
        "packed, in four batches": StepBatches(dataset, accumulation=4)[packed],
        "packed, in one row": StepBatches(dataset, one_row=True)[packed],
        "packed, fixed length": StepBatches(dataset, seq_len=160)[packed],
        "packed, fixed shape": StepBatches(
            dataset, accumulation=2, seq_len=160, rows_per_step=len(packed.rows) + 5
        )[packed],
        "padded": StepBatches(dataset)[padded],
        "one by one": StepBatches(dataset, accumulation=len(dataset))[padded],
    }
    assert len(ways["one by one"]) == len(dataset)
    assert ways["packed, in one row"][0]["document_ids"].min() == 1  # no padding
    results = {
        name: loss_and_gradient(model, batches, ctc_weight=ctc_weight, sigma=sigma)
        for name, batches in ways.items()
    }
    expected, gradient = results.pop("one by one")
    assert expected.supervised_tokens > 100
    for name, (losses, other) in results.items():
        assert losses.loss == pytest.approx(expected.loss, rel=1e-5), name
        assert (losses.ctc or 0) == pytest.approx(expected.ctc or 0, rel=1e-5), name
        assert (losses.nmse or 0) == pytest.approx(expected.nmse or 0, rel=1e-5), name
        assert ((other - gradient).norm() / gradient.norm()).item() < 1e-5, name
        assert losses.supervised_tokens == expected.supervised_tokens, name


def speech_batches(dataset, **options):
    """The first step, in batches that all have speech tensors, and the samples with speech."""
    step = first_step(dataset)
    speech = [i for i in step.samples if dataset.samples[i].is_speech]
    return StepBatches(dataset, **options)[step], speech


def test_sigma_weighs_the_cross_entropy_against_the_error_of_each_vector(with_targets):
    model, dataset = with_targets
    batches, speech = speech_batches(dataset, accumulation=3)
    table = model.decoder.tok_embeddings.weight
    total, vectors = 0.0, 0
    for sample in (dataset.samples[i] for i in speech):
        (frames,) = dataset.frames(sample)
        found = model.projector(frames, torch.tensor([len(frames)]))
        tokens = dataset.chat.encode(sample.transcript)
        for i, vector in enumerate(found):
            token = tokens[i] if i < len(tokens) else dataset.targets.pad_token
            total = total + F.mse_loss(vector, table[token])
            vectors += 1
    groups = trainable_groups(model, "projector", "lora")
    names = list(groups["projector"])
    nmse = total / vectors / 0.7
    of_error = torch.autograd.grad(nmse, [groups["projector"][n] for n in names], allow_unused=True)
    plain, _ = loss_and_gradient(model, batches)
    of_ce = {n: p.grad.clone() for n, p in groups["projector"].items() if p.grad is not None}
    for sigma in (0.3, 1.0):
        losses, _ = loss_and_gradient(model, batches, sigma=sigma, error_unit=0.7)
        assert losses.ce == pytest.approx(plain.loss, rel=1e-6)
        assert losses.nmse == pytest.approx(nmse.item(), rel=1e-5)
        expected = (1 - sigma) * losses.ce + sigma * losses.nmse
        assert losses.loss == pytest.approx(expected, rel=1e-6)
        for name, of_nmse in zip(names, of_error, strict=True):
            if of_nmse is None:  # the CTC head
                continue
            wanted = (1 - sigma) * of_ce[name] + sigma * of_nmse
            assert torch.allclose(groups["projector"][name].grad, wanted, rtol=1e-4, atol=1e-6)


def test_without_sigma_targets_change_nothing(with_targets):
    model, dataset = with_targets
    batches, _ = speech_batches(dataset)
    assert batches[0]["target_tokens"].shape == batches[0]["speech_index"].shape
    stripped = [b | {"target_tokens": None} for b in batches]
    results = [
        loss_and_gradient(model, b, ctc_weight=0.3, **options)
        for b, options in ((batches, {}), (batches, {"sigma": 0.0}), (stripped, {}))
    ]
    for losses, gradient in results:
        assert losses == results[0][0] and losses.nmse is None and losses.loss == losses.ce
        assert torch.equal(gradient, results[0][1])
    with pytest.raises(ValueError, match="without targets"):
        loss_and_gradient(model, stripped, sigma=0.5)


def test_under_sigma_a_step_without_speech_has_the_cross_entropy_alone(with_targets):
    model, dataset = with_targets
    texts = tuple(i for i, s in enumerate(dataset.samples) if not s.is_speech)
    batches = StepBatches(dataset)[dataclasses.replace(first_step(dataset), rows=(texts,))]
    assert batches[0]["target_tokens"] is None
    losses, _ = loss_and_gradient(model, batches, sigma=0.25)
    assert losses.nmse is None and losses.loss == pytest.approx(0.75 * losses.ce)
    assert all(p.grad is None for p in model.projector.parameters())


def test_under_sigma_a_batch_without_utterances_takes_part(with_targets):
    model, dataset = with_targets
    text = next(i for i, s in enumerate(dataset.samples) if not s.is_speech)
    speech = next(i for i, s in enumerate(dataset.samples) if s.is_speech)
    step = dataclasses.replace(first_step(dataset), rows=((speech,), (text,)))
    parts = [StepBatches(dataset, rank=r, world_size=2)[step][0] for r in range(2)]
    assert parts[1]["target_tokens"].shape == (0,)
    assert parts[1]["target_tokens"].dtype == torch.long
    alone, _ = loss_and_gradient(model, parts[1:], sigma=0.5)
    used = [p for n, p in model.projector.named_parameters() if not n.startswith("ctc_")]
    assert all(p.grad is not None and not p.grad.any() for p in used)
    assert alone.nmse is None
    both, gradient = loss_and_gradient(model, parts, sigma=0.5)
    whole, other = loss_and_gradient(model, StepBatches(dataset)[step], sigma=0.5)
    assert both.nmse == pytest.approx(whole.nmse, rel=1e-5)
    assert both.loss == pytest.approx(whole.loss, rel=1e-5)
    assert ((gradient - other).norm() / other.norm()).item() < 1e-5


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
def test_a_sample_in_a_row_does_not_see_its_neighbours(world):
    model, dataset = world
    step = first_step(dataset)
    batch = StepBatches(dataset)[step][0]
    groups = trainable_groups(model, "lora")
    assert groups
    from torchtune_speech.models import block_causal_mask

    def logits(tokens):
        return model(
            tokens,
            frames=batch["frames"],
            frame_lengths=batch["frame_lengths"],
            speech_index=batch["speech_index"],
            mask=block_causal_mask(batch["document_ids"]),
            input_pos=batch["input_pos"],
        )

    row = next(r for r in range(len(batch["tokens"])) if batch["document_ids"][r].max() > 1)
    changed = batch["tokens"].clone()
    first = batch["document_ids"][row] == 1
    changed[row, first] = torch.where(
        changed[row, first] == dataset.chat.placeholder_id, changed[row, first], 7
    )
    with torch.no_grad():
        before, after = logits(batch["tokens"]), logits(changed)
    others = batch["document_ids"][row] != 1
    assert torch.equal(before[row, others], after[row, others])
    assert not torch.equal(before[row, first], after[row, first])


def test_no_padding_inside_a_sample_and_end_of_turn_supervised(world):
    _, dataset = world
    batch = StepBatches(dataset, seq_len=160)[first_step(dataset)][0]
    pad = batch["document_ids"] == 0
    assert pad.any()
    assert (batch["tokens"][pad] == dataset.chat.pad_id).all()
    assert not (batch["tokens"][~pad] == dataset.chat.pad_id).any()
    for row in pad:
        assert (row.long().diff() >= 0).all()  # padding only at the end
    ends = (batch["labels"] == dataset.chat.end_ids[0]).sum()
    assert ends == len(dataset)
    assert (batch["labels"][pad] == IGNORE_INDEX).all()
    starts = (batch["input_pos"] == 0) & ~pad
    assert starts.sum() == len(dataset)


def test_ranks_share_the_rows_of_a_step(world):
    _, dataset = world
    step = first_step(dataset)
    whole = StepBatches(dataset)[step][0]["ids"]
    for world_size in (2, 3, 4):
        parts = [
            StepBatches(dataset, rank=r, world_size=world_size, accumulation=2)[step]
            for r in range(world_size)
        ]
        assert len({len(batches) for batches in parts}) == 1
        ids = [i for batches in parts for b in batches for i in b["ids"]]
        assert sorted(ids) == sorted(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_more_batches_than_the_rows_fill(world, world_size):
    _, dataset = world
    step = dataclasses.replace(first_step(dataset), rows=((0,), (1,), (2,), (3,), (4,)))
    for accumulation in (1, 2, 3, 4, 8):
        parts = [
            StepBatches(dataset, rank=r, world_size=world_size, accumulation=accumulation)[step]
            for r in range(world_size)
        ]
        assert len({len(batches) for batches in parts}) == 1
        assert len(parts[0]) <= accumulation
        assert all(batch["ids"] for batch in parts[0])  # process 0 always has the most rows


def test_fixed_shape_holds_for_small_and_twin_steps(world):
    _, dataset = world
    full = dataclasses.replace(first_step(dataset), rows=tuple((i,) for i in range(8)))
    twins = [i for i, s in enumerate(dataset.samples) if s.task == "st"]
    small = dataclasses.replace(full, rows=((0,), (1,), (2,)))
    twin = dataclasses.replace(full, rows=(tuple(twins[:2]), (twins[2],)), is_twin=True)
    for world_size, accumulation, number in (
        (1, 2, (2, 1, 1)),
        (2, 2, (2, 1, 1)),
        (2, 1, (1,) * 3),
    ):
        options = {"world_size": world_size, "accumulation": accumulation}
        shape = (8 // (world_size * accumulation), 160)
        for rank in range(world_size):
            batches = StepBatches(dataset, rank=rank, seq_len=160, rows_per_step=8, **options)
            for step, expected in zip((full, small, twin), number, strict=True):
                assert [b["tokens"].shape for b in batches[step]] == [shape] * expected


def test_ctc_is_the_mean_over_the_labels_of_possible_utterances(world):
    model, dataset = world
    batches = StepBatches(dataset, accumulation=3)[first_step(dataset)]
    speech = next(b for b in batches if b["frames"] is not None)
    # One transcript short enough for its audio, one that is not known; the others as they come.
    targets = list(speech["ctc_targets"].split(speech["ctc_target_lengths"].tolist()))
    targets[0], targets[1] = torch.tensor([3, 3, 4]), targets[1][:0]
    speech["ctc_targets"] = torch.cat(targets)
    speech["ctc_target_lengths"] = torch.tensor([len(t) for t in targets])
    labels = skipped = 0
    for batch in (b for b in batches if b["frames"] is not None):
        all_targets = batch["ctc_targets"].split(batch["ctc_target_lengths"].tolist())
        for length, target in zip(batch["frame_lengths"].tolist(), all_targets, strict=True):
            fits = length >= len(target) + int((target[1:] == target[:-1]).sum())
            labels += len(target) if fits else 0
            skipped += not fits
    assert skipped and labels
    losses, gradient = loss_and_gradient(model, batches, ctc_weight=0.3)
    total = sum(
        batch_loss(model, b, with_ctc=True)[1].item() for b in batches if b["frames"] is not None
    )
    assert losses.ctc == pytest.approx(total / labels, rel=1e-5)
    assert losses.ctc_skipped == skipped
    assert gradient.isfinite().all()
    plain, _ = loss_and_gradient(model, batches)
    assert plain.ctc_skipped == 0  # without CTC nothing is skipped


def test_a_rank_without_speech_gets_empty_speech_tensors(world):
    _, dataset = world
    text = next(i for i, s in enumerate(dataset.samples) if not s.is_speech)
    speech = next(i for i, s in enumerate(dataset.samples) if s.is_speech)
    step = dataclasses.replace(first_step(dataset), rows=((speech,), (text,)))
    batch = StepBatches(dataset, rank=1, world_size=2)[step][0]
    assert batch["frames"].shape == (0, FRAME_DIM)
    only_text = dataclasses.replace(step, rows=((text,), (text,)))
    assert StepBatches(dataset, rank=1, world_size=2)[only_text][0]["frames"] is None


def test_frames_in_bf16_are_cast_exactly(world):
    model, dataset = world
    batches = StepBatches(dataset)[first_step(dataset)]
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        cast = [
            b if b["frames"] is None else {**b, "frames": b["frames"].bfloat16().to(dtype)}
            for b in batches
        ]
        losses, gradient = loss_and_gradient(model, cast, ctc_weight=0.3)
        found.append((losses.loss, losses.ctc, gradient))
    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2])


def test_a_text_step_leaves_the_projector_without_gradient(world):
    model, dataset = world
    step = dataclasses.replace(first_step(dataset), is_twin=True)
    rows = tuple(
        tuple(i for i in row if dataset.samples[i].task in ("st", "sqa")) for row in step.rows
    )
    batches = StepBatches(dataset)[dataclasses.replace(step, rows=rows)]
    losses, _ = loss_and_gradient(model, batches, ctc_weight=0.3)
    assert losses.loss > 0
    assert losses.ctc is None
    assert all(p.grad is None for p in model.projector.parameters())


def test_augmentation_depends_on_seed_step_and_audio_only(world):
    _, dataset = world
    masks = {"time_masks": 1, "time_width": 4, "freq_masks": 1, "freq_width": 3}
    step = first_step(dataset)
    whole = StepBatches(dataset, augment=masks)[step][0]
    parts = [StepBatches(dataset, augment=masks, rank=r, world_size=2)[step][0] for r in range(2)]

    def by_utterance(batch):
        return sorted(
            f.sum().item() for f in batch["frames"].split(batch["frame_lengths"].tolist())
        )

    together = sorted(by_utterance(parts[0]) + by_utterance(parts[1]))
    assert by_utterance(whole) == pytest.approx(together)
    plain = StepBatches(dataset)[step][0]
    assert by_utterance(plain) != by_utterance(whole)
    later = StepBatches(dataset, augment=masks)[dataclasses.replace(step, number=1)][0]
    assert by_utterance(later) != by_utterance(whole)


def test_the_warm_up_does_not_depend_on_packing_and_leaves_the_llm_alone(world):
    model, dataset = world
    packed, padded = first_step(dataset), first_step(dataset, packed=False)
    groups = trainable_groups(model, "projector", "lora")
    results = []
    for batches in (
        StepBatches(dataset)[packed],
        StepBatches(dataset, accumulation=3)[packed],
        StepBatches(dataset)[padded],
    ):
        speech = [b for b in batches if b["frames"] is not None]
        model.zero_grad(set_to_none=True)
        losses = ctc_forward_backward(model, speech, ONE).read()
        assert losses.loss == losses.ctc
        grads = [p.grad for p in groups["projector"].values() if p.grad is not None]
        results.append((losses.loss, torch.cat([g.flatten() for g in grads])))
        assert all(p.grad is None for p in groups["lora"].values())
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert ((gradient - results[0][1]).norm() / gradient.norm()).item() < 1e-5


@pytest.mark.parametrize("embedding_weight", [0.0, 0.5])
def test_in_the_warm_up_a_process_without_rows_changes_nothing(world, embedding_weight):
    model, dataset = world
    # The two longest utterances: the first has room for its labels.
    rows = (tuple(i for i, s in enumerate(dataset.samples) if s.id in ("6-asr", "7-asr")),)
    step = dataclasses.replace(first_step(dataset), rows=rows)
    batch, empty = (StepBatches(dataset, rank=r, world_size=2)[step][0] for r in range(2))
    assert len(batch["frame_lengths"]) == 2 and not len(empty["frame_lengths"])
    results = []
    for batches in ([batch], [batch, empty]):
        model.zero_grad(set_to_none=True)
        losses = ctc_forward_backward(model, batches, ONE, embedding_weight=embedding_weight)
        grads = [p.grad for p in model.projector.parameters() if p.grad is not None]
        results.append((losses.read().loss, torch.cat([g.flatten() for g in grads])))
    (alone, gradient), (both, other) = results
    assert both == pytest.approx(alone, rel=1e-6)
    assert ((other - gradient).norm() / gradient.norm()).item() < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_alone(world, fused):
    model, dataset = world
    model = copy.deepcopy(model)
    step = first_step(dataset)
    batches = StepBatches(dataset)[step]
    groups = trainable_groups(model, "projector", "lora")
    parameters = [p for group in groups.values() for p in group.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, fused=fused)

    def take(spoil):
        sums = forward_backward(model, batches, ONE)
        if spoil:
            parameters[3].grad[0] = float("nan")
        options = {"clip_grad_norm": 1.0, "on_nonfinite": "skip"}
        return update(optimizer, groups, sums, step, dataset, **options)

    def everything():
        states = [v for s in optimizer.state.values() for v in s.values()]
        return [x.detach().clone() for x in (*parameters, *states)]

    take(spoil=False)
    before = everything()
    losses, norm = take(spoil=True)
    assert np.isfinite(losses.loss) and np.isnan(norm)
    assert all(map(torch.equal, before, everything()))
    take(spoil=False)
    assert not all(map(torch.equal, before, everything()))


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
def test_compiled_layers_give_the_same_loss_and_are_compiled_once(world):
    """The last layer, whose number of positions differs from step to step, is not compiled."""
    model, dataset = world
    steps = [dataclasses.replace(first_step(dataset), rows=rows) for rows in ROWS]
    fixed = {"seq_len": 160, "rows_per_step": 3}
    batches = [StepBatches(dataset, **fixed)[step] for step in steps]
    expected = [loss_and_gradient(model, b) for b in batches]
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    compile_layers(compiled)
    before = compiled_graphs()
    found = [loss_and_gradient(compiled, batches[0])]
    after_one = compiled_graphs()
    assert after_one > before
    found += [loss_and_gradient(compiled, b) for b in batches[1:]]
    assert compiled_graphs() == after_one
    for (losses, gradient), (wanted, other) in zip(found, expected, strict=True):
        assert losses.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert ((gradient - other).norm() / other.norm()).item() < 1e-5
