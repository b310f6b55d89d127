"""The plan: which samples, in which row, in which step.

A pure function of the lengths, the mixture and the seed. Each source of samples is shuffled, cut
into blocks and packed block by block, so that a restart packs only the blocks it stands in.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchtune_speech.data._pack import pack_best_fit, packed_order
from torchtune_speech.errors import InputError

# The last step of a block has on average half its rows. This many steps make that half a percent.
STEPS_PER_BLOCK = 100
MIN_BLOCK = 4096  # samples: enough to fill rows well


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Samples that are drawn together.

    Args:
        name: e.g. ``st/de``; shown in logs, and part of the shuffling seed.
        weight: share of the steps, relative to the other sources.
        samples: sample numbers.
        is_speech: whether its samples count towards the length of an epoch.
    """

    name: str
    weight: float
    samples: np.ndarray
    is_speech: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of the plan.

    Args:
        number: steps before this one.
        epoch: passes over the speech samples (all samples when there is no speech) so far.
        source: name of the source it was drawn from.
        rows: sample numbers, row by row.
        is_twin: take the text twins of these samples.
        state: the plan's state after this step, for a checkpoint.
    """

    number: int
    epoch: int
    source: str
    rows: tuple[tuple[int, ...], ...]
    is_twin: bool
    state: Mapping[str, Any]

    @property
    def samples(self) -> list[int]:
        """Sample numbers of all rows."""
        return [i for row in self.rows for i in row]


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    """Samples shuffled and packed together: row ``r`` is ``samples[ends[r - 1] : ends[r]]``."""

    samples: np.ndarray
    ends: np.ndarray
    rows_per_step: int

    def __len__(self) -> int:
        return -(-len(self.ends) // self.rows_per_step)

    def rows(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample numbers of one step, row by row."""
        first = step * self.rows_per_step
        start = int(self.ends[first - 1]) if first else 0
        ends = self.ends[first : first + self.rows_per_step]
        samples, stops = self.samples[start : ends[-1]].tolist(), (ends - start).tolist()
        return tuple(tuple(samples[a:b]) for a, b in zip([0, *stops], stops, strict=False))


class Plan:
    """An endless, resumable sequence of steps.

    Sources are drawn by largest deficit: after k draws each source has had its share of k to
    within one step of rounding per source, without luck. A source is exhausted before it repeats.

    Args:
        sources: what to draw from. One source is a plain shuffled pass over the data.
        lengths: length of each sample, in tokens, ``[n]``.
        twin_lengths: length of each sample's text twin, 0 where there is none, ``[n]``. Needed
            for ``paired``.
        max_seq_len: length of a row, in tokens.
        rows_per_step: rows of one optimizer step, whatever the number of processes.
        paired: follow each speech step by a step with its samples' text twins, where they
            have them.
        packed: fill rows with several samples; otherwise one sample a row.
        block_size: samples shuffled and packed together, at least; a source is cut into equal
            blocks. Default: 100 steps of the source, and no fewer than 4096 samples.
        seed: of the shuffling.

    Attributes:
        number: steps taken so far.
        twin_lengths: as given; zeros when not.

    Example:
        >>> sources, lengths = [Source("asr", 1.0, np.arange(4))], np.array([5, 3, 4, 4])
        >>> plan = Plan(sources, lengths, max_seq_len=8, rows_per_step=1)
        >>> next(plan).rows
        ((2, 3),)
    """

    def __init__(
        self,
        sources: Sequence[Source],
        lengths: np.ndarray,
        *,
        max_seq_len: int,
        rows_per_step: int,
        twin_lengths: np.ndarray | None = None,
        paired: bool = False,
        packed: bool = True,
        block_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.sources = [s for s in sources if len(s.samples) and s.weight > 0]
        if not self.sources:
            raise InputError("dataset: the plan has nothing to draw from; give it samples")
        total = sum(s.weight for s in self.sources)
        self._weights = [s.weight / total for s in self.sources]
        self.twin_lengths = twin_lengths if twin_lengths is not None else np.zeros_like(lengths)
        # Twins share their samples' rows, so a row must have room for whichever is longer.
        self._lengths = np.maximum(lengths, self.twin_lengths) if paired else lengths
        self.max_seq_len, self.rows_per_step = max_seq_len, rows_per_step
        self.paired, self.packed, self.block_size, self.seed = paired, packed, block_size, seed
        speech = sum(len(s.samples) for s in self.sources if s.is_speech)
        self.epoch_size = speech or sum(len(s.samples) for s in self.sources)
        self._count_speech_only = speech > 0
        self._num_blocks = [self._count_blocks(s.samples) for s in self.sources]
        self._blocks: dict[tuple[int, int, int], _Block] = {}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source -> (pass, shuffled samples)
        self.number = 0
        self._drawn = 0  # samples that count towards the epoch
        self._twin_of: tuple[int, int, int, int] | None = None
        self._cursors = [[0, 0, 0, 0] for _ in self.sources]  # draws, pass, block, step in block

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        epoch = self._drawn // self.epoch_size
        if self._twin_of is not None:
            source, *place = self._twin_of
            rows, is_twin = self._twin_rows(self._block(source, *place[:2]).rows(place[2])), True
            self._twin_of = None
        else:
            source = self._choose()
            rows, is_twin = self._draw(source), False
        number, self.number = self.number, self.number + 1
        name = self.sources[source].name
        return Step(number, epoch, name, rows, is_twin, state=self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Where the plan stands: JSON data whose size does not grow with the data."""
        return {
            "number": self.number,
            "drawn": self._drawn,
            "twin_of": list(self._twin_of) if self._twin_of else None,
            "cursors": {s.name: list(c) for s, c in zip(self.sources, self._cursors, strict=True)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            InputError: if it belongs to a plan with other sources, or with more blocks.
        """
        names = {s.name for s in self.sources}
        if set(state["cursors"]) != names:
            raise InputError(
                f"resume: the saved plan drew from {sorted(state['cursors'])}, "
                f"this one from {sorted(names)}; go on with the data and mixture of the run"
            )
        for source, count in zip(self.sources, self._num_blocks, strict=True):
            if state["cursors"][source.name][2] >= count:
                raise InputError(
                    f"resume: the saved plan stood in block {state['cursors'][source.name][2]} of "
                    f"{source.name}, which now has {count}: other data, or another version of "
                    "torchtune_speech; go on with those of the run, or start a new one"
                )
        self.number, self._drawn = state["number"], state["drawn"]
        self._twin_of = tuple(state["twin_of"]) if state["twin_of"] else None
        self._cursors = [list(state["cursors"][s.name]) for s in self.sources]

    def steps_in_epochs(self, epochs: int) -> int:
        """Steps until this many epochs are over, counted by planning them.

        Args:
            epochs: number of epochs from the very start.

        Returns:
            Number of steps.
        """
        fresh = Plan(
            self.sources,
            self._lengths,
            max_seq_len=self.max_seq_len,
            rows_per_step=self.rows_per_step,
            twin_lengths=self.twin_lengths,
            paired=self.paired,
            packed=self.packed,
            block_size=self.block_size,
            seed=self.seed,
        )
        return next(step.number for step in fresh if step.epoch >= epochs)

    def _choose(self) -> int:
        draws = [cursor[0] for cursor in self._cursors]
        total = sum(draws) + 1
        deficits = [w * total - d for w, d in zip(self._weights, draws, strict=True)]
        return deficits.index(max(deficits))

    def _draw(self, source: int) -> tuple[tuple[int, ...], ...]:
        draws, pass_, block, offset = self._cursors[source]
        packed = self._block(source, pass_, block)
        rows = packed.rows(offset)
        if self.sources[source].is_speech or not self._count_speech_only:
            self._drawn += sum(len(row) for row in rows)
        if self.paired and self.twin_lengths[[i for row in rows for i in row]].any():
            self._twin_of = (source, pass_, block, offset)
        if offset + 1 < len(packed):
            following = [pass_, block, offset + 1]
        elif block + 1 < self._num_blocks[source]:
            following = [pass_, block + 1, 0]
        else:
            following = [pass_ + 1, 0, 0]
        self._cursors[source] = [draws + 1, *following]
        return rows

    def _count_blocks(self, samples: np.ndarray) -> int:
        """Equal blocks: a small last one would have few steps, and one of them not full."""
        size = self.block_size
        if size is None:
            per_row = self.max_seq_len / self._lengths[samples].mean() if self.packed else 1
            size = max(MIN_BLOCK, STEPS_PER_BLOCK * self.rows_per_step * per_row)
        return max(1, int(len(samples) / size))

    def _block(self, source: int, pass_: int, block: int) -> _Block:
        key = (source, pass_, block)
        if key not in self._blocks:
            # Only the block in use (and the one a twin step still points to) is kept.
            self._blocks = {
                k: v
                for k, v in self._blocks.items()
                if k[0] != source or k[1:] == (pass_, block - 1)
            }
            self._blocks[key] = self._pack_block(source, pass_, block)
        return self._blocks[key]

    def _pack_block(self, source: int, pass_: int, block: int) -> _Block:
        name = zlib.crc32(self.sources[source].name.encode())
        if self._orders.get(source, (None,))[0] != pass_:
            shuffle = np.random.default_rng([self.seed, name, pass_])
            self._orders[source] = (pass_, shuffle.permutation(self.sources[source].samples))
        order, count = self._orders[source][1], self._num_blocks[source]
        chosen = order[block * len(order) // count : (block + 1) * len(order) // count]
        if self.packed:
            by_row, ends = packed_order(self._lengths[chosen], self.max_seq_len)
        else:
            by_row, ends = np.arange(len(chosen)), np.arange(1, len(chosen) + 1)
        # Best fit orders rows by length: shuffle them, or early steps would hold the long samples.
        shuffled = np.random.default_rng([self.seed, name, pass_, block]).permutation(len(ends))
        counts = np.diff(ends, prepend=0)
        row_of = np.repeat(np.argsort(shuffled), counts)  # new place of each sample's row
        by_row = by_row[np.argsort(row_of, kind="stable")]
        return _Block(chosen[by_row], np.cumsum(counts[shuffled]), self.rows_per_step)

    def _twin_rows(self, rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """Twins are shorter than speech: pack them again, into as few rows as they need."""
        samples = [i for row in rows for i in row if self.twin_lengths[i]]
        if not self.packed:
            return tuple((i,) for i in samples)
        packed = pack_best_fit(self.twin_lengths[samples].tolist(), self.max_seq_len)
        if len(packed) > len(rows):  # best fit is no optimum; the speech rows always have room
            kept = (tuple(i for i in row if self.twin_lengths[i]) for row in rows)
            return tuple(row for row in kept if row)
        return tuple(tuple(samples[i] for i in row) for row in packed)


def fill(step: Step, lengths: np.ndarray, max_seq_len: int) -> float:
    """Share of a step's rows that holds tokens.

    Args:
        step: the step.
        lengths: length of each sample (of each twin for a twin step), in tokens.
        max_seq_len: length of a row, in tokens.

    Returns:
        Between 0 and 1.
    """
    return float(lengths[step.samples].sum()) / (len(step.rows) * max_seq_len)
