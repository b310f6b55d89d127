"""The fuse step beside what a user would take instead, on the same samples, weights and dtype.

A Llama with LoRA and a projector trains on speech samples of 2 to 20 seconds and on their text
twins, in turn. Ours packs samples into rows; the peer (`peer.py`: Hugging Face, PEFT) pads them to
the longest of a batch, in random order or grouped by length, or takes them one by one. torchtune's
own LoRA step takes our packed rows of text. A sample or token is counted when it holds something,
padding never; each figure is a whole step with its optimizer, the fastest of a few, and all
systems take turns. Before anything is measured, losses and gradients of ours and the peer are
compared on the same samples: they must be equal.

    python benchmarks/train_step.py                    # 100 million parameters, on the CPU
    python benchmarks/train_step.py --size nano
    python benchmarks/train_step.py --size 8b --device cuda
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    SIZES,
    compute_dtype,
    parser,
    print_table,
    seconds,
    take_turns,
    write_section,
)
from peer import PeerSpeechLLM, grouped_batches, hf_llama, peer_batch, random_batches
from peft import set_peft_model_state_dict
from synthetic import PLACEHOLDER_ID, SyntheticDataset
from torch import nn
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3_1 import lora_llama3_1
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import disable_adapter
from torchtune.training import compile_model, set_activation_checkpointing, set_default_dtype
from tqdm import tqdm

from torchtune_speech import training
from torchtune_speech.data import Plan, Source, Step, StepBatches
from torchtune_speech.models import (
    SpeechLLM,
    block_causal_mask,
    dense_causal_mask,
    lora_speech_llama3_1,
    to_peft,
    transformer_projector,
)

FRAME_DIM = 1024
# Width of the projector's layers, length and number of our rows, batch sizes that the peer may
# choose from, samples to draw from, pairs of a speech and a text step of ours that are timed.
SETTINGS: dict[str, dict[str, Any]] = {
    "nano": {"projector": 192, "row": 512, "rows": 4, "peer": [8, 16, 32], "pairs": 8},
    "100m": {"projector": 384, "row": 512, "rows": 4, "peer": [1, 2, 4], "pairs": 3},
    "8b": {"projector": 1024, "row": 8192, "rows": 2, "peer": [8, 16, 32], "pairs": 4},
}
POOL = 2048
ROUNDS = 2
MOST_BATCHES = 16  # of the peer and a kind that are timed
LORA = {"lora_rank": 8, "lora_alpha": 16}
ALL_LORA = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_dropout": 0.0,
}

Run = tuple[float, int, int]  # seconds, samples, tokens that are no padding


class Job(NamedTuple):
    """A step to time.

    Args:
        kind: ``speech`` or ``text``.
        run: what runs it.
        samples: its samples.
        tokens: their tokens, without padding.
        positions: the same with padding.
    """

    kind: str
    run: Callable[[], None]
    samples: int
    tokens: int
    positions: int


def main() -> None:
    """Check, measure, print and write."""
    arguments = parser(__doc__, sizes=("100m", "nano", "8b"))
    arguments.set_defaults(repeats=2)
    arguments.add_argument("--pairs", type=int, help="speech and text steps of ours that are timed")
    arguments.add_argument("--peer-batch-sizes", type=int, nargs="+")
    arguments.add_argument("--trace", type=Path, help="profile two of our steps into this file")
    arguments.add_argument(
        "--compile", action="store_true", help="compile the layers of all systems"
    )
    arguments.add_argument(
        "--checkpointing", action="store_true", help="recompute layers in the backward pass, all"
    )
    options = arguments.parse_args()
    given = SETTINGS[options.size]
    options.pairs = options.pairs or given["pairs"]
    options.peer_batch_sizes = options.peer_batch_sizes or given["peer"]
    options.row, options.rows = given["row"], given["rows"]
    dtype = compute_dtype(options)
    torch.manual_seed(0)
    ours, peer = build_models(options, dtype)
    dataset = SyntheticDataset(
        POOL,
        vocab_size=SIZES[options.size]["vocab_size"],
        frame_dim=FRAME_DIM,
        output_length=ours.projector.output_length,
    )
    difference = check_equal(ours, peer, dataset, options, dtype)
    ceiling = matmul_ceiling(options, dtype)
    table = measure(ours, peer, dataset, options, dtype)
    report(table, options, difference, ceiling)


def build_models(
    options: argparse.Namespace, dtype: torch.dtype
) -> tuple[SpeechLLM, PeerSpeechLLM]:
    """Both systems with the same random weights, LoRA's second matrices not zero."""
    shape = SIZES[options.size]
    projector = {"in_dim": FRAME_DIM, "out_dim": shape["embed_dim"]}
    projector |= {"embed_dim": SETTINGS[options.size]["projector"], "output_scale": 0.1}
    device = torch.device(options.device)
    with device:
        theirs = transformer_projector(**projector)
        peer = PeerSpeechLLM(hf_llama(shape, options.device, dtype), theirs)
        with set_default_dtype(dtype):
            ours = lora_speech_llama3_1(transformer_projector(**projector), **LORA, **shape)
    ours.projector.float().load_state_dict(theirs.state_dict())
    llm = peer.llm.get_base_model()
    weights = {k.replace(".base_layer", ""): v for k, v in llm.state_dict().items()}
    weights = {k: v for k, v in weights.items() if ".lora_" not in k}
    heads = {"num_heads": shape["num_heads"], "num_kv_heads": shape["num_kv_heads"]}
    weights = hf_to_tune(weights, dim=shape["embed_dim"], **heads)
    ours.decoder.load_state_dict(weights, strict=False)
    groups = training.trainable_groups(ours, "projector", "lora")
    for name, parameter in groups["lora"].items():
        parameter.data = parameter.data.float()
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.02)
    copy_lora(groups["lora"], peer)
    if options.checkpointing:
        peer.llm.gradient_checkpointing_enable({"use_reentrant": False})
        set_activation_checkpointing(ours, auto_wrap_policy={TransformerSelfAttentionLayer})
    if options.compile:
        training.compile_layers(ours)
        for layer in llm.model.layers:
            layer.compile(dynamic=True)  # its batches are as long as their longest sample
    return ours.train(), peer.train()


def copy_lora(lora: Mapping[str, nn.Parameter], peer: PeerSpeechLLM) -> None:
    """Give the peer our LoRA, through the export that PEFT reads."""
    adapter = {name.removeprefix("decoder."): p.detach() for name, p in lora.items()}
    config = peer.llm.get_base_model().config.to_dict()
    result = set_peft_model_state_dict(peer.llm, to_peft(adapter, config))
    if result.unexpected_keys:
        raise SystemExit(f"PEFT does not know {result.unexpected_keys[0]}")


def check_equal(
    ours: SpeechLLM,
    peer: PeerSpeechLLM,
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Relative differences of losses and gradients between the two, on the same samples.

    Ours has them laid out as they are where it is timed, several samples in a row.
    """
    rows = tuple(row[:2] for row in our_steps(dataset, options)[0].rows[:2])
    few = [number for row in rows for number in row]
    limit = 1e-3 if dtype == torch.float32 else 3e-2
    found = {}
    for kind in ("speech", "text"):
        step = Step(0, 0, "st", rows, kind == "text", {})
        losses = [
            our_loss(ours, step, dataset, options, dtype),
            peer_loss(peer, few, step.is_twin, dataset, options, dtype),
        ]
        found[f"{kind}_loss"] = abs(losses[0] - losses[1]) / losses[1]
        found[f"{kind}_lora_gradient"] = difference(
            our_lora_gradient(ours, peer), gradient(peer.llm)
        )
        if kind == "speech":
            gradients = [gradient(model.projector) for model in (ours, peer)]
            found["projector_gradient"] = difference(*gradients)
        ours.zero_grad(), peer.zero_grad()
    if max(found.values()) > limit:
        raise SystemExit(f"ours and the peer differ: {found}")
    return found


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference, relative to theirs."""
    return float((ours - theirs).norm() / theirs.norm())


def gradient(module: nn.Module) -> torch.Tensor:
    """All gradients of a module in one vector."""
    return torch.cat([p.grad.float().flatten() for p in module.parameters() if p.requires_grad])


def our_lora_gradient(ours: SpeechLLM, peer: PeerSpeechLLM) -> torch.Tensor:
    """Gradients of our LoRA in one vector, in the order of the peer's."""
    ours_by_name = {n: p.grad.float() for n, p in ours.decoder.named_parameters() if "lora_" in n}
    gradients = to_peft(ours_by_name, peer.llm.get_base_model().config.to_dict())
    names = [n.replace(".default.", ".") for n, p in peer.llm.named_parameters() if p.requires_grad]
    return torch.cat([gradients[name].flatten() for name in names])


def our_loss(
    model: SpeechLLM,
    step: Step,
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> float:
    """Loss of a step, with its gradients."""
    (batches,) = prepare([step], dataset, options)
    process = training.start_process(options.device)
    return training.forward_backward(model, batches, process, dtype=dtype).read().loss


def peer_loss(
    peer: PeerSpeechLLM,
    numbers: Sequence[int],
    is_twin: bool,
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> float:
    """Loss of a batch, with its gradients."""
    batch = on_device(peer_items(numbers, is_twin, dataset), options.device)
    with training.autocast(torch.device(options.device), dtype):
        loss = peer(**batch)
    loss.backward()
    return loss.item()


def peer_items(numbers: Sequence[int], is_twin: bool, dataset: SyntheticDataset) -> dict[str, Any]:
    """A padded batch."""
    return peer_batch([dataset.item(i, twin=is_twin) for i in numbers], PLACEHOLDER_ID)


def on_device(batch: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The batch on a device; lengths stay on the CPU, as ours do."""
    return {
        k: v.to(device) if isinstance(v, torch.Tensor) and not k.startswith("frame_lengths") else v
        for k, v in batch.items()
    }


def measure(
    ours: SpeechLLM,
    peer: PeerSpeechLLM,
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Samples and tokens a second of each system, for speech, text and both in turn."""
    steps = our_steps(dataset, options)
    batches = prepare(steps, dataset, options)
    step_ours = our_step(ours, options, dtype, "projector", "lora")
    lengths = {"speech": dataset.lengths, "text": dataset.twin_lengths()}
    wanted = len([s for s in steps[2:] if not s.is_twin]) * len(steps[0].samples)
    jobs = {
        "ours": our_jobs(step_ours, steps, batches),
        "stage A": stage_a_jobs(ours, steps, batches, options, dtype),
        "torchtune": torchtune_jobs(steps, dataset, options, dtype),
        **peer_systems(peer, lengths, wanted, dataset, options, dtype),
    }
    runs, peaks = run_in_turns(jobs, options)
    table: dict[str, Any] = {}
    for name, of_system in jobs.items():
        table[name] = speeds(runs[name], lengths)
        table[name]["fill"] = fills(of_system)
        table[name]["peak_gib"] = peaks[name]
    table["ours"]["useful_flops"] = useful_flops(ours, steps, batches, options)
    if options.trace:
        trace(step_ours, steps[-2:], batches[-2:], options)
    return with_best_batches(table)


def with_best_batches(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with one row for each way of making batches, at the size that suits it best."""
    best: dict[str, Any] = {}
    for name, found in table.items():
        way, _, size = name.partition(", batch ")
        if size:
            print(f"peer, {name}: {found['both']['samples_per_s']:.3g} samples/s")
            found = {**found, "batch_size": int(size)}
        known = best.get(way)
        if not known or found["both"]["samples_per_s"] > known["both"]["samples_per_s"]:
            best[way] = found
    return best


def our_steps(dataset: SyntheticDataset, options: argparse.Namespace) -> list[Step]:
    """A pair to warm up, then the pairs that are timed: speech, its twins, speech, ..."""
    plan = Plan(
        [Source("st", 1.0, np.arange(len(dataset)))],
        dataset.lengths,
        twin_lengths=dataset.twin_lengths(),
        max_seq_len=options.row,
        rows_per_step=options.rows,
        paired=True,
    )
    return [next(plan) for _ in range(2 * (options.pairs + 1))]


def prepare(
    steps: Sequence[Step], dataset: SyntheticDataset, options: argparse.Namespace
) -> list[list[Any]]:
    """Batches of our steps, made ahead as the loader's workers do."""
    static = options.device != "cpu" or options.compile
    # A GPU runs row by row. A CPU takes all rows at once; compiled, half of them, so that text
    # twins, which need half as many, do not run padded to the one shape that is compiled.
    accumulation = options.rows if options.device != "cpu" else 1 + options.compile
    make = StepBatches(
        dataset,
        accumulation=accumulation,
        seq_len=options.row if static else None,
        rows_per_step=options.rows if static else None,
        one_row=not static,
    )
    return [make[step] for step in steps]


def our_step(
    model: SpeechLLM,
    options: argparse.Namespace,
    dtype: torch.dtype,
    *trained: str,
) -> Callable[[Step, list[Any]], None]:
    """One optimizer step of the parameter groups that are trained, as the recipe takes it."""
    groups = training.trainable_groups(model, *trained)
    parameters = [p for group in groups.values() for p in group.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    process = training.start_process(options.device)

    def run(step: Step, batches: list[Any]) -> None:
        training.trainable_groups(model, *trained)  # another system may have frozen some
        sums = training.forward_backward(model, batches, process, dtype=dtype)
        training.update(optimizer, groups, sums, step, None, clip_grad_norm=1.0)

    return run


def peer_step(
    peer: PeerSpeechLLM, options: argparse.Namespace, dtype: torch.dtype
) -> Callable[[dict[str, Any]], None]:
    """One optimizer step of the peer."""
    parameters = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def run(batch: dict[str, Any]) -> None:
        with training.autocast(torch.device(options.device), dtype):
            loss = peer(**on_device(batch, options.device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def our_jobs(
    run: Callable[[Step, list[Any]], None], steps: Sequence[Step], batches: Sequence[list[Any]]
) -> list[Job]:
    """Our steps; the first of a kind warms up."""
    return [
        Job(
            "text" if step.is_twin else "speech",
            partial(run, step, made),
            len(step.samples),
            count_tokens(made),
            sum(batch["tokens"].numel() for batch in made),
        )
        for step, made in zip(steps, batches, strict=True)
    ]


def run_in_turns(
    jobs: Mapping[str, Sequence[Job]], options: argparse.Namespace
) -> tuple[dict[str, dict[str, list[Run]]], dict[str, float | None]]:
    """Run the steps of all systems in rounds, so that a busy moment hits all of them.

    Each step is taken ``repeats`` times, and the fastest counts.

    Returns:
        Of each system kind to its steps that were timed, all but the first of a kind, and the peak
        memory of the first round.
    """
    runs: dict[str, dict[str, list[Run]]] = {name: {} for name in jobs}
    peaks: dict[str, float | None] = {}
    kinds = {name: by_kind(of_system) for name, of_system in jobs.items()}
    timed = sum(len(k) - 1 for of_system in kinds.values() for k in of_system.values())
    progress = tqdm(total=timed, desc="steps of all systems")
    for number in range(ROUNDS):
        for name, of_system in kinds.items():
            reset_peak(options)
            for of_kind in of_system.values():  # memory and caches as they are amid many steps
                of_kind[0].run()
            rest = [of_kind[1:][number::ROUNDS] for of_kind in of_system.values()]
            for job in (job for turn in zip_longest(*rest) for job in turn if job):
                taken = min(seconds(job.run, options.device) for _ in range(options.repeats))
                runs[name].setdefault(job.kind, []).append((taken, job.samples, job.tokens))
                progress.update()
            peaks.setdefault(name, peak_gib(options))
    return runs, peaks


def by_kind(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Kind to its jobs; a kind that is absent is left out."""
    kinds = {kind: [job for job in jobs if job.kind == kind] for kind in ("speech", "text")}
    return {kind: found for kind, found in kinds.items() if found}


def stage_a_jobs(
    model: SpeechLLM,
    steps: Sequence[Step],
    batches: Sequence[list[Any]],
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> list[Job]:
    """Stage A on our speech steps: the projector alone, through the LLM without LoRA.

    Stage B is the text steps of stage C, with the projector's optimizer left out.
    """
    step_a = our_step(model, options, dtype, "projector")

    def run(step: Step, made: list[Any]) -> None:
        with disable_adapter(model):
            step_a(step, made)

    return [job for job in our_jobs(run, steps, batches) if job.kind == "speech"]


def trace(
    run: Callable[[Step, list[Any]], None],
    steps: Sequence[Step],
    batches: Sequence[list[Any]],
    options: argparse.Namespace,
) -> None:
    """Profile some of our steps: a trace to look at, and where the host waits for the device."""
    with torch.profiler.profile(record_shapes=False) as profiler:
        for step, made in zip(steps, batches, strict=True):
            run(step, made)
    profiler.export_chrome_trace(str(options.trace))
    averages = profiler.key_averages()
    sort = "self_cpu_time_total" if options.device == "cpu" else "self_device_time_total"
    print(averages.table(sort_by=sort, row_limit=15, max_name_column_width=40))
    waits = {e.key: e.count for e in averages if "Synchronize" in e.key}
    print(f"the host waits for the device in {len(steps)} steps: {waits or 'never'}")
    print(f"trace written to {options.trace}; open it at https://ui.perfetto.dev")


def matmul_ceiling(options: argparse.Namespace, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product in the shape of the feed-forward network."""
    shape, device = SIZES[options.size], options.device
    rows = 2048 if device == "cpu" else 8192
    x = torch.randn(rows, shape["embed_dim"], device=device, dtype=dtype)
    w = torch.randn(shape["intermediate_dim"], shape["embed_dim"], device=device, dtype=dtype)
    run = partial(torch.nn.functional.linear, x, w)
    many = 3 if device == "cpu" else 50
    taken = take_turns({"matmul": lambda: [run() for _ in range(many)]}, 5, device)["matmul"]
    return 2 * many * rows * w.numel() / taken


def useful_flops(
    model: SpeechLLM,
    steps: Sequence[Step],
    batches: Sequence[list[Any]],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Products that the timed steps cannot do without, for each token that is no padding.

    Twice the frozen matrices of the layers forward, and as much for the gradient of their input;
    LoRA and projector three times theirs; the output layer at supervised positions; attention on
    the pairs that see each other, twice as much backward as forward.
    """
    shape = SIZES[options.size]
    table = model.decoder.output.weight.numel()
    decoder = list(model.decoder.layers.named_parameters())
    frozen = sum(p.numel() for n, p in decoder if "lora_" not in n and p.dim() == 2)
    lora = sum(p.numel() for n, p in decoder if "lora_" in n)
    projector = sum(p.numel() for p in model.projector.parameters())
    sums = {"speech": np.zeros(2), "text": np.zeros(2)}
    for step, made in zip(steps[2:], batches[2:], strict=True):
        tokens = count_tokens(made)
        flops = tokens * (4 * frozen + 6 * lora) + sum(4 * table * len(b["select"]) for b in made)
        if not step.is_twin:
            flops += 6 * projector * sum(int(b["frame_lengths"].sum()) for b in made)
        lengths = np.concatenate([sample_lengths(b["document_ids"]) for b in made])
        pairs = (lengths * (lengths + 1) / 2).sum()
        flops += 12 * pairs * shape["embed_dim"] * shape["num_layers"]
        sums["text" if step.is_twin else "speech"] += (flops, tokens)
    return {kind: float(flops / tokens) for kind, (flops, tokens) in sums.items()}


def sample_lengths(document_ids: torch.Tensor) -> np.ndarray:
    """Tokens of each sample of a batch."""
    rows = [torch.bincount(row[row > 0]) for row in document_ids]
    return torch.cat(rows).numpy().astype(float)


def count_tokens(batches: Sequence[Any]) -> int:
    """Tokens that are no padding."""
    return sum(int((b["document_ids"] > 0).sum()) for b in batches)


def reset_peak(options: argparse.Namespace) -> None:
    """Forget the peak of the device's memory."""
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(options: argparse.Namespace) -> float | None:
    """Peak of the device's memory, both models in it; None for a CPU."""
    return None if options.device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def peer_systems(
    peer: PeerSpeechLLM,
    lengths: Mapping[str, np.ndarray],
    wanted: int,
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> dict[str, list[Job]]:
    """Steps of the peer for each way of making batches and each size; one by one pads nothing."""
    run = peer_step(peer, options, dtype)
    systems = {}
    for size in options.peer_batch_sizes:
        for way, make in (("padded", random_batches), ("grouped", grouped_batches)):
            if size > 1:
                made = peer_jobs(run, make, lengths, size, wanted, dataset)
                systems[f"{way}, batch {size}"] = made
    if 1 in options.peer_batch_sizes:
        systems["one by one"] = peer_jobs(run, random_batches, lengths, 1, wanted, dataset)
    return systems


def peer_jobs(
    run: Callable[[dict[str, Any]], None],
    make: Callable[..., list[list[int]]],
    lengths: Mapping[str, np.ndarray],
    size: int,
    wanted: int,
    dataset: SyntheticDataset,
) -> list[Job]:
    """Steps of the peer on batches that stand for all of its epoch."""
    jobs: list[Job] = []
    for kind, of_kind in lengths.items():
        orders = of_kind.tolist()
        batches = make(orders if make is grouped_batches else len(orders), size)
        chosen = spread(batches, of_kind, min(max(2, round(wanted / size)), MOST_BATCHES))
        for numbers in (chosen[0], *chosen):  # the first warms up
            batch = peer_items(numbers, kind == "text", dataset)
            tokens, positions = int(of_kind[numbers].sum()), batch["tokens_bs"].numel()
            jobs.append(Job(kind, partial(run, batch), len(numbers), tokens, positions))
    return jobs


def spread(batches: list[list[int]], lengths: np.ndarray, count: int) -> list[list[int]]:
    """Some of the batches, evenly from the shortest to the longest."""
    ordered = sorted(batches, key=lambda b: int(lengths[b].max()))
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def torchtune_jobs(
    steps: Sequence[Step],
    dataset: SyntheticDataset,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> list[Job]:
    """Torchtune's LoRA step on our packed rows of text: its model, its loss, all positions."""
    run = torchtune_step(options, dtype)
    # Its attention is the square of a row: rows as they were planned.
    make = StepBatches(dataset, seq_len=options.row)
    text = [step for step in steps if step.is_twin]
    return our_jobs(lambda _, batches: run(batches), text, [make[step] for step in text])


def torchtune_step(
    options: argparse.Namespace, dtype: torch.dtype
) -> Callable[[Sequence[Any]], None]:
    """One optimizer step of torchtune's Llama with LoRA."""
    shape = SIZES[options.size]
    with torch.device(options.device), set_default_dtype(dtype):
        model = lora_llama3_1(**ALL_LORA, **LORA, **shape)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    loss_fn = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_fn.num_output_chunks)
    if options.checkpointing:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    if options.compile:
        compile_model(model, verbose=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    device = torch.device(options.device)

    def run(batches: Sequence[Any]) -> None:
        for batch in batches:
            b = training.to_device(batch, device)
            with training.autocast(device, dtype):
                ids = b["document_ids"]
                mask = block_causal_mask(ids) if ids.is_cuda else dense_causal_mask(ids)
                logits = model(b["tokens"], mask=mask, input_pos=b["input_pos"])
                loss = loss_fn(logits, b["labels"])
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def speeds(
    kinds: Mapping[str, Sequence[Run]], lengths: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Tokens a second of each kind, and samples of mean length a second.

    Each system was timed on samples of its own, drawn from the same ones: by tokens, since one
    may have drawn longer samples than another.

    Args:
        kinds: kind to the steps that were timed.
        lengths: kind to the lengths of all samples, in tokens.

    Returns:
        Kind to speeds; ``both`` for as many samples of each, in turn.
    """
    result: dict[str, dict[str, float]] = {}
    for kind, runs in kinds.items():
        taken, samples, tokens = (sum(column) for column in zip(*runs, strict=True))
        result[kind] = {
            "tokens_per_s": tokens / taken,
            "samples_per_s": tokens / taken / float(lengths[kind].mean()),
            "seconds": taken,
            "samples": samples,
        }
    if len(kinds) == 2:
        each = [found["samples_per_s"] for found in result.values()]
        result["both"] = {"samples_per_s": 2 / sum(1 / rate for rate in each)}
    return result


def fills(jobs: Sequence[Job]) -> dict[str, float]:
    """Share of the computed positions that hold something, speech and text apart."""
    return {
        kind: round(sum(j.tokens for j in timed) / sum(j.positions for j in timed), 3)
        for kind, (_, *timed) in by_kind(jobs).items()
    }


def report(
    table: Mapping[str, Any],
    options: argparse.Namespace,
    difference: Mapping[str, float],
    ceiling: float,
) -> None:
    """Print the table and write the section."""
    rows = []
    for name, found in table.items():
        batch = f", batch {found['batch_size']}" if "batch_size" in found else ""
        full = " / ".join(f"{share:.3f}" for share in found["fill"].values())
        speed = [
            found[kind][f"{unit}_per_s"] if kind in found else "-"
            for kind, unit in (("speech", "tokens"), ("text", "tokens"), ("both", "samples"))
        ]
        rows.append([name + batch, *speed, full])
    print_table(["", "speech tokens/s", "text tokens/s", "samples/s", "positions full"], rows)
    both = {n: found["both"]["samples_per_s"] for n, found in table.items() if "both" in found}
    ratios = {
        f"ratio_vs_{name.replace(' ', '_')}": round(both["ours"] / rate, 2)
        for name, rate in both.items()
        if name != "ours"
    }
    text = [table[n]["text"]["tokens_per_s"] for n in ("ours", "torchtune")]
    ratios["text_ratio_vs_torchtune"] = round(text[0] / text[1], 2)
    print("  ".join(f"{name} {ratio}" for name, ratio in ratios.items()))
    ours = table["ours"]
    share = {
        kind: round(ours[kind]["tokens_per_s"] * flops / ceiling, 3)
        for kind, flops in ours["useful_flops"].items()
    }
    print(f"matrix products reach {ceiling / 1e9:,.0f} GFLOP/s here; share of that: {share}")
    section = "train_step" if options.size != "nano" else "train_step_nano"
    found = {**ratios, "share_of_ceiling": share, "ceiling_gflops": round(ceiling / 1e9, 1)}
    found |= {"relative_difference": dict(difference), "table": dict(table)}
    write_section(options, section, found)


if __name__ == "__main__":
    main()
