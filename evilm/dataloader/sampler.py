"""The order of clips in training: a pure function of (row groups, seed, epoch), never of workers or restarts.

Row groups are permuted, and rows are mixed within a window of several groups, so that reading stays sequential in
pieces of a few megabytes. A global step is the next rows of that order, sorted by row group: `batch_clips` of them, or
some less where they don't divide the epoch. Each worker takes its slice, so that it reads few of the groups that the
step touches.

An epoch is mixed window by window as its steps are asked for: no worker ever holds a list of all rows.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Lock
from typing import Literal

import numpy as np
from jaxtyping import Int64

from evilm.errors import ConfigError

_KEPT_ROWS = 1 << 18
"""Rows behind the newest step that can be asked for again without mixing the epoch from its start."""


class RowGroups:
    """The row groups of a split, numbered through as they are stored, and its rows, numbered through likewise."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        """Number row groups whose sizes are `groups[shard][group]`."""
        counts = np.fromiter(map(len, groups), dtype=np.int64, count=len(groups))
        self.sizes = np.fromiter(chain.from_iterable(groups), dtype=np.int64, count=int(counts.sum()))
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])
        """First row of each group, and the number of rows."""
        self._shard = np.repeat(np.arange(len(counts)), counts)
        self._first_group = np.concatenate([[0], np.cumsum(counts)])

    @property
    def num_rows(self) -> int:
        """Return the number of rows of all groups."""
        return int(self.first[-1])

    def group_of(self, numbers: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Number of the row group of each row."""
        return np.searchsorted(self.first, numbers, side="right") - 1

    def places(self, numbers: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, "row 3"]:
        """Return the shard, the group in the shard and the row in the group of each row."""
        group = self.group_of(numbers)
        shard = self._shard[group]
        return np.stack([shard, group - self._first_group[shard], numbers - self.first[group]], axis=1)


class _Epoch:
    """The rows of one epoch in training order, mixed window by window as they are asked for."""

    def __init__(self, groups: RowGroups, seed: int, epoch: int, window: int) -> None:
        self._groups, self._window = groups, window
        self._begin = partial(np.random.default_rng, [seed, epoch])
        self._restart()
        starts = np.arange(0, len(self._order), window)
        self._ends = np.concatenate([[0], np.cumsum(np.add.reduceat(groups.sizes[self._order], starts))])

    def rows(self, start: int, stop: int) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " row"]]:
        """Return the numbers of the rows at places start .. stop - 1 of the epoch, and where each one's window ends."""
        window = np.searchsorted(self._ends, np.arange(start, stop), side="right") - 1
        first, last = int(window[0]), int(window[-1])
        if first < self._next - len(self._mixed):
            self._restart()
        while self._next <= last:
            self._mix(keep=self._next >= first)
        rows = np.concatenate([self._mixed[number] for number in range(first, last + 1)])
        while self._ends[(oldest := next(iter(self._mixed))) + 1] < start - _KEPT_ROWS:
            del self._mixed[oldest]
        return rows[start - self._ends[first] : stop - self._ends[first]], self._ends[window + 1]

    def _restart(self) -> None:
        self._rng = self._begin()
        self._order = self._rng.permutation(len(self._groups.sizes)).astype(np.int32)
        self._mixed: dict[int, np.ndarray] = {}
        self._next = 0  # window to mix next; those before it that are held are consecutive

    def _mix(self, keep: bool) -> None:
        """Mix the next window; where it is passed over, draw only as much, and hold nothing before the one after it."""
        units = self._order[self._next * self._window : (self._next + 1) * self._window]
        sizes = self._groups.sizes[units]
        ends = np.cumsum(sizes)
        mixed = self._rng.permutation(ends[-1])
        if keep:
            block = np.repeat(self._groups.first[units] - ends + sizes, sizes) + np.arange(ends[-1])
            self._mixed[self._next] = block[mixed]
        else:
            self._mixed.clear()
        self._next += 1


Tail = Literal["even", "pad", "drop"]


def batch_sizes(num_clips: int, batch_clips: int, tail: Tail, num_micro_batches: int = 1) -> Int64[np.ndarray, " step"]:
    """Return the clips of each step of an epoch; they add up to `num_clips` but for padding and dropping.

    Args:
        batch_clips: the most clips of a step.
        tail: what to do where `num_clips` is no multiple of it, `ScheduleConfig.tail`.
        num_micro_batches: micro-batches per step.

    Raises:
        ConfigError: there are no clips, no step, or fewer clips in a step than micro-batches.
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
    if (least := num_clips // num_steps) < num_micro_batches:
        raise ConfigError(
            f"schedule.tail = even makes steps of {least} of the {num_clips} clips, too few for {num_micro_batches} "
            "micro-batches (cluster.num_workers x schedule.gradient_accumulation_steps); use fewer, or tail = pad"
        )
    return _evenly(num_clips, num_steps)


def micro_batch_slice(size: int, index: int, num_micro_batches: int) -> slice:
    """Return the slice of one micro-batch of a step of `size` clips: sizes differ by one at most, larger ones first."""
    ends = np.cumsum(_evenly(size, num_micro_batches))
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


def _evenly(count: int, shares: int) -> Int64[np.ndarray, " share"]:
    return np.full(shares, count // shares, dtype=np.int64) + (np.arange(shares) < count % shares)


@dataclass(frozen=True)
class Step:
    """The clips of one global step, and which of them are this worker's."""

    epoch: int
    numbers: Int64[np.ndarray, " clip"]
    """Number of each clip in the split as it is stored."""
    rows: Int64[np.ndarray, "clip 3"]
    """Shard, row group and row of each clip."""
    mine: slice
    until: Int64[np.ndarray, " clip"]
    """Number of this worker's last step that may need the row group of each clip."""


class TrainSampler:
    """Deal the rows of the epochs to global steps, and each step to workers."""

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
        """Create an order over row groups.

        Args:
            groups: rows of each row group of each shard.
            batch_clips: clips per global step, or the most of them.
            window: row groups mixed with each other.
            tail: where `batch_clips` does not divide an epoch: smaller steps, all alike but for one clip (even), a last
                step that repeats the epoch's first clips (pad), or none (drop).
            rank: this worker, which takes the rank-th slice of every step.

        Raises:
            ConfigError: there is not a single step, or one that has no clip for some worker.
        """
        self.batch_clips, self.seed, self.window, self.tail = batch_clips, seed, window, tail
        self._groups = RowGroups(groups)
        self.num_clips = self._groups.num_rows
        sizes = batch_sizes(self.num_clips, batch_clips, tail, world)
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        self.num_steps = len(sizes)
        """Steps per epoch."""
        self.num_padded = int(self._ends[-1]) - self.num_clips
        """Clips seen twice in an epoch; negative: clips left out."""
        self._rank, self._world = rank, world
        self._epochs: OrderedDict[int, tuple[_Epoch, np.ndarray]] = OrderedDict()
        self._lock = Lock()

    @property
    def mean_clips(self) -> float:
        """Return the clips of a step, on average."""
        return float(self._ends[-1]) / self.num_steps

    def step(self, step: int) -> Step:
        """Return the global step number `step`, counted over all epochs from 0."""
        epoch, within = divmod(step, self.num_steps)
        start, stop = int(self._ends[within]), int(self._ends[within + 1])
        with self._lock:
            rows, padding = self._epoch(epoch)
            numbers, ends = rows.rows(start, min(stop, self.num_clips))
        until = np.minimum(np.searchsorted(self._ends, ends, side="left"), self.num_steps) - 1 + epoch * self.num_steps
        place = np.argsort(numbers, kind="stable")
        numbers, until = numbers[place], until[place]
        if stop > self.num_clips:  # after the rows that are left, whatever their group
            numbers = np.concatenate([numbers, padding])
            until = np.concatenate([until, np.full(len(padding), step)])
        mine = micro_batch_slice(len(numbers), self._rank, self._world)
        return Step(epoch, numbers, self._groups.places(numbers), mine, until)

    def _epoch(self, epoch: int) -> tuple[_Epoch, np.ndarray]:
        """Return the rows of an epoch, and those that fill up its last step: the first ones, as in its first step."""
        if epoch not in self._epochs:
            rows = _Epoch(self._groups, self.seed, epoch, self.window)
            padding = np.zeros(0, np.int64)
            if self.num_padded > 0:
                first, _ = rows.rows(0, min(int(self._ends[1]), self.num_clips))
                padding = np.resize(np.sort(first), self.num_padded)
            self._epochs[epoch] = rows, padding
            while len(self._epochs) > 2:  # steps of two epochs are in the making at a border
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


EVAL_EPOCH = -1
"""Stands for the epoch where masks and negatives of an evaluation are drawn, so that each evaluation has the same."""
NEGATIVE_GROUP_CLIPS = 256
"""Clips of an evaluation among which negatives are chosen, rounded up to whole pools."""


class EvalSampler:
    """The first rows as they are stored, each once, in micro-batches that are dealt to workers in turn.

    Negatives are chosen in groups of consecutive clips with fixed borders. Batches are cut inside of these, and inside
    of no matching pool, so that neither depends on the size of batches or on the number of workers.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        micro_batch_clips: int,
        max_clips: int,
        pool_clips: int = 1,
        rank: int = 0,
        world: int = 1,
        epoch: int = EVAL_EPOCH,
    ) -> None:
        """Create an order of the first `max_clips` rows; clips are stored in a seeded random order.

        Args:
            groups: rows of each row group of each shard.
            micro_batch_clips: the most clips of a batch, unless a pool has more.
            pool_clips: clips that are matched with each other; a batch holds whole pools.
            epoch: epoch of training whose frames are shown; `EVAL_EPOCH` shows the same in each evaluation.
        """
        self._groups, self._epoch = RowGroups(groups), epoch
        num_clips = min(max_clips, self._groups.num_rows)
        size = max(1, micro_batch_clips // pool_clips) * pool_clips
        self._whole = -(-NEGATIVE_GROUP_CLIPS // pool_clips) * pool_clips
        starts = [
            start
            for first in range(0, num_clips, self._whole)
            for start in range(first, min(first + self._whole, num_clips), size)
        ]
        self._starts = np.array(starts[rank::world], dtype=np.int64)
        self._size, self._num_clips = size, num_clips
        self.window = 1
        self.num_steps = len(self._starts)
        """Batches of this worker."""

    def step(self, step: int) -> Step:
        """Return this worker's batch number `step`, within the clips that its negatives are chosen from."""
        start = int(self._starts[step])
        first = start - start % self._whole
        numbers = np.arange(first, min(first + self._whole, self._num_clips))
        mine = slice(start - first, min(start - first + self._size, len(numbers)))
        ends = self._groups.first[self._groups.group_of(numbers) + 1]
        until = np.searchsorted(self._starts, ends, side="left") - 1
        return Step(self._epoch, numbers, self._groups.places(numbers), mine, until)
