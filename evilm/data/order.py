"""The order of clips in training: a pure function of (row groups, seed, epoch), never of workers or restarts.

Row groups are permuted, and rows are mixed within a window of several groups, so that reading stays sequential in
pieces of a few megabytes. A global step is the next rows of that order, sorted by row group: `batch_clips` of them, or
some less where they don't divide the epoch. Each worker takes its slice, so that it reads few of the groups that the
step touches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
from jaxtyping import Int64

from evilm.errors import ConfigError


def epoch_order(groups: Sequence[Sequence[int]], seed: int, epoch: int, window: int) -> np.ndarray:
    """All rows of an epoch in training order.

    Args:
        groups: rows of each row group of each shard, `groups[shard][group]`.
        seed: seed of the run.
        epoch: number of the pass; every epoch has another order.
        window: row groups mixed with each other.

    Returns:
        int64 (row, 3): shard, group and row within the group. Each row of the data set stands in it exactly once.
    """
    rng = np.random.default_rng([seed, epoch])
    units = np.array([(s, g, rows) for s, sizes in enumerate(groups) for g, rows in enumerate(sizes)], dtype=np.int64)
    if len(units) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    units = units[rng.permutation(len(units))]
    mixed = []
    for start in range(0, len(units), window):
        rows = [
            np.stack([np.full(n, s), np.full(n, g), np.arange(n)], axis=1) for s, g, n in units[start : start + window]
        ]
        block = np.concatenate(rows)
        mixed.append(block[rng.permutation(len(block))])
    return np.concatenate(mixed)


Tail = Literal["even", "pad", "drop"]


def step_sizes(num_clips: int, batch_clips: int, tail: Tail, parts: int = 1) -> Int64[np.ndarray, " step"]:
    """Clips of each step of an epoch; they add up to `num_clips` but for padding and dropping.

    Args:
        num_clips: clips of the epoch.
        batch_clips: the most clips of a step.
        tail: what to do where the one is no multiple of the other, `ScheduleConfig.tail`.
        parts: parts that each step is cut into.

    Raises:
        ConfigError: there are no clips, no step, or fewer clips in a step than parts.
    """
    if not num_clips:
        raise ConfigError("the split train holds no clips; shard some with --split train")
    full, rest = divmod(num_clips, batch_clips)
    num_steps = full + (1 if rest and tail != "drop" else 0)
    if num_steps == 0:
        raise ConfigError(
            f"schedule.batch_clips = {batch_clips} is more than the {num_clips} clips of the split and "
            "schedule.tail = drop leaves no step; lower batch_clips or use tail = even"
        )
    if tail != "even":
        return np.full(num_steps, batch_clips, dtype=np.int64)
    if (least := num_clips // num_steps) < parts:
        raise ConfigError(
            f"schedule.tail = even makes steps of {least} of the {num_clips} clips, too few for {parts} parts "
            "(cluster.num_workers x schedule.accumulate); use fewer parts, or tail = pad"
        )
    return _evenly(num_clips, num_steps)


def part_of(size: int, part: int, parts: int) -> slice:
    """The clips of one part of a step of `size` clips: parts differ by one clip at most, larger ones come first."""
    ends = np.cumsum(_evenly(size, parts))
    return slice(int(ends[part - 1]) if part else 0, int(ends[part]))


def _evenly(count: int, shares: int) -> Int64[np.ndarray, " share"]:
    return np.full(shares, count // shares, dtype=np.int64) + (np.arange(shares) < count % shares)


@dataclass(frozen=True)
class Step:
    """The rows of one global step, int64 (row, 3), and the slice of them that is this worker's."""

    epoch: int
    rows: np.ndarray
    mine: slice


class TrainOrder:
    """How the rows of the epochs are dealt to global steps, and each step to workers."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_clips: int,
        seed: int,
        window: int,
        tail: Tail = "even",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """An order over row groups.

        Args:
            groups: rows of each row group of each shard.
            batch_clips: clips per global step, or the most of them.
            seed: seed of the run.
            window: row groups mixed with each other.
            tail: where `batch_clips` does not divide an epoch: smaller steps, all alike but for one clip (even), a last
                step that repeats the epoch's first clips (pad), or none (drop).
            rank: this worker, which takes the rank-th slice of every step.
            world: number of workers.

        Raises:
            ConfigError: there is not a single step, or one that has no clip for some worker.
        """
        self.groups, self.batch_clips, self.seed, self.window, self.tail = groups, batch_clips, seed, window, tail
        self.num_clips = sum(sum(sizes) for sizes in groups)
        sizes = step_sizes(self.num_clips, batch_clips, tail, world)
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        self.num_steps = len(sizes)
        """Steps per epoch."""
        self.num_padded = int(self._ends[-1]) - self.num_clips
        """Clips seen twice in an epoch; negative: clips left out."""
        self._rank, self._world = rank, world
        self._cached: tuple[int, np.ndarray] | None = None
        self._lock = Lock()

    @property
    def mean_clips(self) -> float:
        """Clips of a step, on average."""
        return float(self._ends[-1]) / self.num_steps

    def step(self, step: int) -> Step:
        """Global step number `step`, counted over all epochs from 0."""
        epoch, within = divmod(step, self.num_steps)
        with self._lock:
            if self._cached is None or self._cached[0] != epoch:
                self._cached = (epoch, self._epoch(epoch))
            rows = self._cached[1][self._ends[within] : self._ends[within + 1]]
        return Step(epoch, rows, part_of(len(rows), self._rank, self._world))

    def _epoch(self, epoch: int) -> np.ndarray:
        """Rows of all steps of an epoch; those that fill up its last step stand at its end, whatever their group."""
        rows = epoch_order(self.groups, self.seed, epoch, self.window)
        step = np.searchsorted(self._ends, np.arange(len(rows)), side="right")
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0], step))]
        wanted = int(self._ends[-1])
        return np.concatenate([rows] * -(-wanted // len(rows)))[:wanted]


class EvalOrder:
    """Rows as they are stored, each once; whole batches are dealt to workers in turn. The same in every evaluation."""

    def __init__(
        self, groups: Sequence[Sequence[int]], batch_clips: int, max_clips: int, rank: int = 0, world: int = 1
    ) -> None:
        """The first `max_clips` rows in batches of `batch_clips`; clips lie in shards in a seeded random order."""
        rows = [(s, g, r) for s, sizes in enumerate(groups) for g, n in enumerate(sizes) for r in range(n)]
        self._rows = np.array(rows[:max_clips], dtype=np.int64).reshape(-1, 3)
        self._batch, self._rank, self._world = batch_clips, rank, world
        self.window = 1
        batches = -(-len(self._rows) // batch_clips)
        self.num_steps = len(range(rank, batches, world))
        """Batches of this worker."""

    def step(self, step: int) -> Step:
        """This worker's batch number `step`."""
        start = (step * self._world + self._rank) * self._batch
        rows = self._rows[start : start + self._batch]
        return Step(EVAL_EPOCH, rows, slice(0, len(rows)))


EVAL_EPOCH = -1
"""Stands for the epoch where masks and negatives of an evaluation are drawn, so that each evaluation has the same."""
