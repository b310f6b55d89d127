"""How well training scales to many GPUs, from real plans and on paper; no GPU is needed.

First, the share of their time that processes wait for the slowest: the steps of a plan are dealt to
them as in training, and a process takes as long as its floating-point operations do. Llama-3.1-8B
is frozen (4 operations per parameter and token), attention is counted sample by sample, the
projector is trained (6 per parameter and frame). "static" computes padding too. "dealt" shows what
dealing a step's twins evenly into rows_per_step shorter rows would give: all of one length, a
sixteenth of a row more at most with static shapes. "old" has blocks of 4,096 samples.
Second, on paper, what FSDP2 sends per process and step, and how much of it no overlap can hide.
Third, what planning costs each process.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --gpus 64 --between-nodes 25e9 --row 2048
"""

import argparse
import heapq
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import parser, print_table, write_section
from plan import OLD_BLOCK, drawn_lengths, new_plan, one_epoch

LLM_PARAMETERS = 8.03e9  # Llama-3.1-8B
LLM_LAYERS, LLM_WIDTH = 32, 4096
PROJECTOR_PARAMETERS = 51e6
RANKS = ((8, 1), (8, 2), (64, 1), (64, 2), (512, 1), (512, 2))  # processes, rows of each
MEAN_LENGTH = 182  # tokens of a sample of speech
BUCKETS = 16  # lengths that a dealt row may be padded to


def main() -> None:
    """Count, print and write."""
    arguments = parser(__doc__, takes=())
    arguments.add_argument("--gpus", type=int, default=64, help="(%(default)s)")
    arguments.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    arguments.add_argument("--row", type=int, default=8192, help="tokens (%(default)s)")
    arguments.add_argument("--within-node", type=float, default=450e9, help="bytes/s of a GPU")
    arguments.add_argument("--between-nodes", type=float, default=50e9, help="bytes/s of a GPU")
    arguments.add_argument("--flops", type=float, default=989e12 * 0.5, help="reached by a GPU")
    arguments.add_argument("--trained", type=float, default=72e6, help="projector and LoRA r=8")
    arguments.add_argument("--max-ranks", type=int, default=512, help="of the first table")
    arguments.add_argument("--steps", type=int, default=100, help="of speech (%(default)s)")
    options = arguments.parse_args()
    section = {"idle": idle(options), "traffic": traffic(options), "planning": planning(options)}
    write_section(options, "scaling", section)


def row_flops(
    rows: Sequence[Sequence[int]], lengths: np.ndarray, frames: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Floating-point operations of each row's tokens, attention and frames, without padding.

    The LLM: 2 forward and 2 backward per parameter and token, since its weights get no gradient.
    Attention: scores and sums are 4 * width operations per pair of positions, half of which are
    masked; backward is twice forward (Dao 2023, https://arxiv.org/abs/2307.08691, without
    recomputation).

    Args:
        rows: sample numbers, row by row.
        lengths: of all samples (twins), in tokens.
        frames: of all samples; None for twins.

    Returns:
        Operations and tokens, ``[rows]`` each.
    """
    samples = np.array([i for row in rows for i in row])
    tokens = lengths[samples].astype(float)
    flops = 4 * LLM_PARAMETERS * tokens + 3 * 2 * LLM_LAYERS * LLM_WIDTH * tokens**2
    if frames is not None:
        flops += 6 * PROJECTOR_PARAMETERS * frames[samples]
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return np.add.reduceat(flops, starts), np.add.reduceat(tokens, starts)


def rank_work(rows: np.ndarray, ranks: int, rows_per_rank: int) -> np.ndarray:
    """Work of each process, of which number r takes rows r, r + ranks, ...: ``[ranks]``."""
    full = np.zeros(ranks * rows_per_rank)
    full[: len(rows)] = rows
    return full.reshape(rows_per_rank, ranks).sum(0)


def idle(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Lost share of the processes' time, per number of processes and rows."""
    found, table = [], []
    for ranks, rows_per_rank in RANKS:
        if ranks > options.max_ranks:
            continue
        count = int(options.steps * ranks * rows_per_rank * options.row / MEAN_LENGTH)
        figures = lost_shares(options, ranks, rows_per_rank, count)
        # Such a block is a few steps, whatever their number: some blocks tell enough.
        few = min(count, 25 * OLD_BLOCK)
        old = lost_shares(options, ranks, rows_per_rank, few, block_size=OLD_BLOCK)
        figures |= {f"{k}_old_blocks": old[k] for k in ("speech", "static_speech")}
        found.append({"ranks": ranks, "rows_per_rank": rows_per_rank, **figures})
        table.append([f"{ranks} x {rows_per_rank}", *(f"{v:.1%}" for v in figures.values())])
    print(f"Lost share of the time; {options.row:,} tokens a row, processes x rows of each")
    header = ["", "speech", "both", "both, dealt", "static: waiting", "speech", "both"]
    print_table([*header, "both, dealt", "old: speech", "old: static"], table)
    return found


def lost_shares(
    options: argparse.Namespace, ranks: int, rows_per_rank: int, count: int, **plan_options: Any
) -> dict[str, float]:
    """What is lost over one epoch.

    Args:
        options: of the command.
        ranks: processes.
        rows_per_rank: rows of a step in each process.
        count: samples.
        plan_options: further arguments of the plan.

    Returns:
        1 - useful / (processes * slowest process), of steps of speech, of these and their twins,
        and of both with dealt twins; with static shapes the share spent waiting alone, and then
        the same three, padding lost too.
    """
    lengths, twin_lengths, frames = drawn_lengths(count)
    shape, row, bucket = (ranks, rows_per_rank), options.row, options.row // BUCKETS
    useful, spent = Counter(), Counter()

    def add(name: str, rows: np.ndarray, tokens: np.ndarray, seq_len: int | None) -> None:
        work = rank_work(rows, *shape)
        useful[name] += work.mean()
        if seq_len:  # rows are padded, and a process computes as many rows as the first
            padded = rank_work(rows - 4 * LLM_PARAMETERS * tokens, *shape)
            work = padded + 4 * LLM_PARAMETERS * seq_len * -(-len(rows) // ranks)
            useful["waiting " + name] += work.mean()
            spent["waiting " + name] += work.max()
        spent[name] += work.max()

    plan = new_plan(lengths, twin_lengths, row, rows_per_step=ranks * rows_per_rank, **plan_options)
    for step in one_epoch(plan):
        if not step.is_twin:
            flops, tokens = row_flops(step.rows, lengths, frames)
            add("speech", flops, tokens, None)
            # All rows of a step are computed, missing ones too.
            full = np.zeros(ranks * rows_per_rank - len(flops))
            add("static", np.append(flops, full), np.append(tokens, full), row)
            continue
        flops, tokens = row_flops(step.rows, twin_lengths, None)
        add("twins", flops, tokens, None)
        add("static twins", flops, tokens, row)
        dealt = deal_evenly(step.samples, twin_lengths, ranks * rows_per_rank)
        flops, tokens = row_flops(dealt, twin_lengths, None)
        add("dealt", flops, tokens, None)
        add("static dealt", flops, tokens, int(-(-tokens.max() // bucket) * bucket))

    def lost(*names: str) -> float:
        return float(1 - sum(useful[n] for n in names) / sum(spent[n] for n in names))

    return {
        "speech": lost("speech"),
        "both": lost("speech", "twins"),
        "both_dealt": lost("speech", "dealt"),
        "static_waiting": lost("waiting static"),
        "static_speech": lost("static"),
        "static_both": lost("static", "static twins"),
        "static_both_dealt": lost("static", "static dealt"),
    }


def deal_evenly(samples: Sequence[int], lengths: np.ndarray, rows: int) -> list[list[int]]:
    """Each sample, the longest first, into the row that is emptiest."""
    dealt: list[list[int]] = [[] for _ in range(min(rows, len(samples)))]
    heap = [(0, r) for r in range(len(dealt))]
    for i in sorted(samples, key=lambda i: -lengths[i]):
        filled, r = heap[0]
        heapq.heapreplace(heap, (filled + int(lengths[i]), r))
        dealt[r].append(i)
    return dealt


def traffic(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each way to launch sends per process and step of one row, on paper.

    A gathered layer reaches a node once, over the links of all its GPUs together, and goes on
    within the node (what NCCL's rings do); links of the two kinds work at the same time. Frozen
    weights are gathered in forward and in backward of each batch; only trained parameters have
    gradients, in fp32, reduced once a step.

    Args:
        options: of the command.

    Returns:
        Per way: GB of frozen weights held, GB received per batch and per step, seconds, and the
        share of a step that perfect overlap cannot hide.
    """
    gpus, node = options.gpus, min(options.gpus_per_node, options.gpus)
    weights, gradients = 2 * LLM_PARAMETERS, 4 * options.trained
    compute = 4 * LLM_PARAMETERS * options.row / options.flops

    def all_gather(size: float, of: int) -> float:
        """Seconds; as long for a reduce-scatter."""
        inside = size * (min(of, node) - 1) / min(of, node) / options.within_node
        across = size * max(0, 1 - node / of) / (node * options.between_nodes)
        return max(inside, across)

    between = all_gather(gradients, gpus)
    nodes = max(1, gpus // node)
    # Gradients, in seconds and in bytes that a process sends; reduced whole, twice the bytes of
    # scattering them. Over a node: scattered within it, then each shard is reduced between nodes.
    scattered = gradients * (gpus - 1) / gpus
    over_a_node = gradients * ((node - 1) / node + 2 / node * (nodes - 1) / nodes)
    ways = {
        "all GPUs": (gpus, between, scattered),
        "a node": (
            node,
            all_gather(gradients, node) + 2 * _across(gradients, gpus, options),
            over_a_node,
        ),
        "none": (1, 2 * between, 2 * scattered),
    }
    found, table = [], []
    for name, (of, reduced, sent) in ways.items():
        gathered = 2 * all_gather(weights, of)
        figures = {
            "weights_gb": weights / of / 1e9,
            "gathered_gb": 2 * weights * (of - 1) / of / 1e9,
            "reduced_gb": sent / 1e9,
            "compute_s": compute,
            "gather_s": gathered,
            "reduce_s": reduced,
            # Gradients are ready when backward is over: of these nothing is hidden, at worst.
            "exposed": 1 - compute / (max(compute, gathered) + reduced),
            "tokens_to_hide": int(compute and gathered / compute * options.row),
        }
        found.append({"sharded_over": name, "gpus": of, **figures})
        shown = [*list(figures.values())[:6], f"{figures['exposed']:.1%}"]
        table.append([name, *shown, figures["tokens_to_hide"]])
    print(f"\nOn {gpus} GPUs, per process, a batch of one row of {options.row:,} tokens")
    header = ["sharded over", "weights GB", "gathered GB", "reduced GB", "compute s", "gather s"]
    print_table([*header, "reduce s", "not hidden", "tokens to hide"], table)
    return found


def _across(size: float, gpus: int, options: argparse.Namespace) -> float:
    """Seconds of a reduce-scatter between nodes of the shards of a node's GPUs, all at once."""
    nodes = max(1, gpus // options.gpus_per_node)
    return size / options.gpus_per_node * (nodes - 1) / nodes / options.between_nodes


def planning(options: argparse.Namespace) -> dict[str, float]:
    """Seconds that each process spends on planning a step of speech and its twins."""
    rows_per_step = min(512, options.max_ranks)
    count = int(min(options.steps, 20) * rows_per_step * options.row / MEAN_LENGTH)
    lengths, twin_lengths, _ = drawn_lengths(count)
    began = time.perf_counter()
    plan = new_plan(lengths, twin_lengths, options.row, rows_per_step=rows_per_step)
    steps = sum(1 for _ in one_epoch(plan))
    taken = (time.perf_counter() - began) / steps
    print(f"\nPlanning {rows_per_step} rows of {options.row:,} tokens: {taken:.3f} s a step")
    return {"rows_per_step": rows_per_step, "seconds_per_step": taken}


if __name__ == "__main__":
    main()
