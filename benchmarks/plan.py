"""How full rows are, and what planning ten million samples costs.

Speech of 2 to 20 seconds and its text twins (`synthetic.py`) are packed into rows. Fill is the
share of the rows that holds tokens; with static shapes a step computes all its rows, so the rows
missing in the last step of a block count as empty. The plan of ten million samples with their
twins is built and walked for a whole epoch in a process of its own, which counts every sample;
then another plan goes on from a state in the middle and must give the same steps.

    python benchmarks/plan.py
    python benchmarks/plan.py --samples 1000000 --fill-samples 50000
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from common import parser, print_table, write_section
from synthetic import SyntheticDataset

from torchtune_speech.data import Plan, Source, Step

ROWS = (512, 4096, 8192)
ROWS_PER_STEP = (8, 64, 512)
TWIN_ROWS = (8, 32)  # rows a step
PROCESSES = ((1, 4), (8, 4), (8, 1))  # and batches of a full step in each
RESUMED = 4  # steps that are compared after a restart: speech and twins
OLD_BLOCK = 4096  # samples; the same for all sources until blocks were made to hold 100 steps


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__, takes=())
    arguments.add_argument("--samples", type=int, default=10_000_000, help="(%(default)s)")
    arguments.add_argument("--fill-samples", type=int, default=300_000, help="(%(default)s)")
    arguments.add_argument("--max-seq-len", type=int, default=8192, help="(%(default)s)")
    arguments.add_argument("--rows-per-step", type=int, default=64, help="(%(default)s)")
    options = arguments.parse_args()
    # A process of its own, begun while this one is small: its peak is that of the plan.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        large = child.submit(walk, options).result()
    print_table(
        ["", "samples", "steps", "s", "s without twins", "peak GB", "restart s"],
        [
            [
                "one epoch",
                *(large[k] for k in ("samples", "steps", "seconds", "unpaired_seconds")),
                *(large[k] for k in ("peak_gb", "restart_s")),
            ]
        ],
    )
    write_section(options, "plan", {**large, "fill": fills(options), "twins": twin_fills(options)})


def drawn_lengths(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of samples, of their twins, and frames: of at most 100,000 samples, drawn again."""
    few = SyntheticDataset(min(count, 100_000), vocab_size=1920)
    chosen = np.random.default_rng(1).integers(0, len(few), count)
    return few.lengths[chosen], few.twin_lengths()[chosen], few.frames[chosen]


def new_plan(
    lengths: np.ndarray, twin_lengths: np.ndarray | None, max_seq_len: int, **options: Any
) -> Plan:
    """A plan over all samples; paired where there are twins."""
    return Plan(
        [Source("st", 1.0, np.arange(len(lengths)))],
        lengths,
        twin_lengths=twin_lengths,
        paired=twin_lengths is not None,
        max_seq_len=max_seq_len,
        **options,
    )


def one_epoch(plan: Plan) -> Iterator[Step]:
    """The steps of the first pass over the speech samples, the twins of the last step too."""
    return itertools.takewhile(lambda step: not step.epoch or step.is_twin, plan)


def walk(options: argparse.Namespace) -> dict[str, Any]:
    """Build the large plan, walk one epoch, go on from its middle.

    Args:
        options: of the command.

    Returns:
        Seconds, peak memory of this process in GB, and whether all was as it must be.
    """
    lengths, twin_lengths, _ = drawn_lengths(options.samples)
    size = {"max_seq_len": options.max_seq_len, "rows_per_step": options.rows_per_step}
    seconds, middle = {}, 0
    for name, twins in (("unpaired_seconds", None), ("seconds", twin_lengths)):
        began = time.perf_counter()
        seen, count, kept = np.zeros(len(lengths), dtype=np.int8), 0, []
        for step in one_epoch(new_plan(lengths, twins, **size)):
            count += 1
            if middle <= step.number <= middle + RESUMED:
                kept.append(step)
            if not step.is_twin:
                seen[step.samples] += 1
        seconds[name] = time.perf_counter() - began
        middle = count - 1  # with twins there are about twice as many
    began = time.perf_counter()
    resumed = new_plan(lengths, twin_lengths, **size)
    resumed.load_state_dict(kept[0].state)
    first = next(resumed)
    restart = time.perf_counter() - began
    again = [first, *itertools.islice(resumed, RESUMED - 1)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {
        "samples": len(lengths),
        "steps": count,
        **seconds,
        "peak_gb": peak / 1e9,
        "restart_s": restart,
        "every_sample_once": bool((seen == 1).all()),
        "resumed_equals_whole": again == kept[1:],
    }


def fills(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Fill per length and number of rows: of speech, of twins, with static shapes."""
    lengths, twin_lengths, _ = drawn_lengths(options.fill_samples)
    found: dict[str, dict[str, Any]] = {}
    table = []
    for row, rows_per_step in itertools.product(ROWS, ROWS_PER_STEP):
        size = {"max_seq_len": row, "rows_per_step": rows_per_step}
        figures = epoch_fill(lengths, twin_lengths, **size)
        old = epoch_fill(lengths, twin_lengths, **size, block_size=OLD_BLOCK)
        figures["speech_static_old_blocks"] = old["speech_static"]
        found.setdefault(str(row), {})[str(rows_per_step)] = figures
        table.append([f"{row:,}", rows_per_step, *(f"{f:.1%}" for f in figures.values())])
    header = ["row", "rows a step", "speech", "text twins", "speech, static"]
    print()
    print_table([*header, f"static, blocks of {OLD_BLOCK:,}"], table)
    return found


def epoch_fill(
    lengths: np.ndarray, twin_lengths: np.ndarray, max_seq_len: int, **options: Any
) -> dict[str, float]:
    """Fill of one epoch's rows, speech and twins apart.

    Args:
        lengths: of the samples, in tokens.
        twin_lengths: of their twins.
        max_seq_len: length of a row, in tokens.
        options: further arguments of the plan.

    Returns:
        Shares between 0 and 1; ``speech_static`` counts all rows of all steps.
    """
    rows, steps = {False: 0, True: 0}, 0
    for step in one_epoch(new_plan(lengths, twin_lengths, max_seq_len, **options)):
        rows[step.is_twin] += len(step.rows)
        steps += not step.is_twin
    speech, text = int(lengths.sum()) / max_seq_len, int(twin_lengths.sum()) / max_seq_len
    return {
        "speech": speech / rows[False],
        "text": text / rows[True],
        "speech_static": speech / (steps * options["rows_per_step"]),
    }


def twin_fills(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of the rows computed with static shapes that holds tokens, empty batches included."""
    lengths, twin_lengths, _ = drawn_lengths(min(options.fill_samples, 100_000))
    found = []
    for rows_per_step, (processes, batches) in itertools.product(TWIN_ROWS, PROCESSES):
        plan = new_plan(lengths, twin_lengths, options.max_seq_len, rows_per_step=rows_per_step)
        computed = {False: 0, True: 0}
        for step in one_epoch(plan):
            computed[step.is_twin] += computed_rows(
                len(step.rows), rows_per_step, processes, batches
            )
        tokens = {False: int(lengths.sum()), True: int(twin_lengths.sum())}
        found.append(
            {
                "rows_per_step": rows_per_step,
                "processes": processes,
                "accumulation": batches,
                "text": tokens[True] / (computed[True] * options.max_seq_len),
                "both": sum(tokens.values()) / (sum(computed.values()) * options.max_seq_len),
            }
        )
    print()
    keys = ("rows_per_step", "processes", "accumulation")
    table = [[*(str(f[k]) for k in keys), f"{f['text']:.1%}", f"{f['both']:.1%}"] for f in found]
    print_table(["rows a step", "processes", "accumulation", "twin steps", "all steps"], table)
    return found


def computed_rows(rows: int, rows_per_step: int, processes: int, accumulation: int) -> int:
    """Rows that all processes compute for a step; see :class:`StepBatches` with static shapes.

    Args:
        rows: rows of the step.
        rows_per_step: rows of a full step.
        processes: number of processes.
        accumulation: batches of a full step in each process.

    Returns:
        Rows, empty ones included.
    """
    per_batch = max(1, -(-rows_per_step // (processes * accumulation)))
    of_first = -(-rows // processes)
    return -(-of_first // per_batch) * per_batch * processes


if __name__ == "__main__":
    main()
