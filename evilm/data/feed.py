"""The feed of training: rows of the epoch's order, read from Parquet, decoded and collated ahead of the step.

A direct reader in every worker rather than a Ray Dataset: the position in the data is the step number alone, so a run
resumes anywhere, with any number of workers, and sees the same batches.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from evilm.config.train import ScheduleConfig
from evilm.data.buffers import Buffers
from evilm.data.clips import Clips, Looks, load_captions, load_clips, show
from evilm.data.order import EvalOrder, Step, TrainOrder
from evilm.shards import ShardPair

logger = logging.getLogger(__name__)

Key = tuple[int, int]
"""Shard and row group."""
_READERS = 4  # row groups read at a time by each thread: object stores answer late, but many requests at once
_WHOLE = Looks()


@dataclass(frozen=True)
class Rows:
    """What a worker gets of one global step, before collation.

    `clip_ids` and `captions` are those of all clips of the global step; `mine` says which of them are this worker's,
    and `frames` (uint8, clip x frame x row x col x 3) and `code_ids` (int64, clip x region) belong to those.
    """

    epoch: int
    clip_ids: list[str]
    captions: list[str]
    mine: slice
    frames: np.ndarray
    code_ids: np.ndarray | None


class _GroupCache:
    """The last row groups read; a window of the order touches each of its groups many times."""

    def __init__(self, size: int) -> None:
        self._size, self._tables, self._lock = size, OrderedDict[Key, Future[Clips]](), Lock()

    def get(self, key: Key, load: Callable[[], Clips]) -> Clips:
        """The row group `key`; concurrent callers wait for one load."""
        with self._lock:
            future = self._tables.get(key)
            mine = future is None
            if future is None:
                future = self._tables[key] = Future()
                while len(self._tables) > self._size:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
        if mine:
            try:
                future.set_result(load())
            except BaseException as error:
                with self._lock:
                    self._tables.pop(key, None)  # the next to ask tries again
                future.set_exception(error)
        return future.result()


class Feed:
    """Batches of one worker, from any step on."""

    def __init__(
        self,
        pairs: Sequence[ShardPair],
        order: TrainOrder | EvalOrder,
        collate: Callable[[Rows], Any],
        looks: Looks = _WHOLE,
        prefetch: int = 3,
        threads: int = 2,
    ) -> None:
        """A feed over frame shards, with or without their code shards (an empty `codes_uri`).

        Args:
            pairs: the shards.
            order: says which rows make a step.
            collate: turns the rows of a step into a batch; runs in a background thread.
            looks: which frames and which view of a clip an epoch shows.
            prefetch: batches made ahead.
            threads: background threads.
        """
        self.order = order
        self.finish: Callable[[Any], Any] | None = None
        """Applied to each batch in the background, such as moving it to page-locked memory."""
        self._pairs, self._collate, self._looks = pairs, collate, looks
        self._prefetch, self._threads = prefetch, threads
        self._groups = _GroupCache(2 * order.window + threads)
        self._texts = _GroupCache(8 * order.window + threads)
        self._buffers = Buffers(prefetch + threads + 2)  # ahead, in the making, in use and just used
        self._readers = ThreadPoolExecutor(threads * _READERS, thread_name_prefix="feed-read")
        self.wait_s = 0.0
        """Seconds that the consumer has waited for batches so far."""

    def batches(self, start_step: int, end_step: int) -> Iterator[Any]:
        """The batches of steps start_step .. end_step - 1, counted over all epochs."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="feed") as pool:
            ahead: deque[Future[Any]] = deque()
            step = start_step
            try:
                while step < end_step or ahead:
                    while step < end_step and len(ahead) < self._prefetch:
                        ahead.append(pool.submit(self._make, step))
                        step += 1
                    began = time.perf_counter()
                    batch = ahead.popleft().result()
                    self.wait_s += time.perf_counter() - began
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def _make(self, step: int) -> Any:
        batch = self._collate(self._read(self.order.step(step)))
        return self.finish(batch) if self.finish else batch

    def _read(self, step: Step) -> Rows:
        """The rows of one global step: texts of all, frames and codes of this worker's slice."""
        places = [(int(s), int(g), int(r)) for s, g, r in step.rows]
        mine = places[step.mine]
        groups = self._load({(s, g) for s, g, _ in mine}, self._clips)
        texts = groups | self._load({(s, g) for s, g, _ in places} - groups.keys(), self._captions)
        frames, code_ids = show(self._looks, [(groups[s, g], r) for s, g, r in mine], step.epoch, self._buffers.take)
        return Rows(
            epoch=step.epoch,
            clip_ids=[texts[s, g].clip_ids[r] for s, g, r in places],
            captions=[texts[s, g].captions[r] for s, g, r in places],
            mine=step.mine,
            frames=frames,
            code_ids=code_ids,
        )

    def _load(self, keys: Set[Key], load: Callable[[Key], Clips]) -> dict[Key, Clips]:
        """Row groups, those that are not at hand read side by side."""
        ordered = sorted(keys)
        return dict(zip(ordered, self._readers.map(load, ordered), strict=True))

    def _clips(self, key: Key) -> Clips:
        views = self._looks.num_views > 1 and self._looks.crop is None
        return self._groups.get(key, lambda: load_clips(self._pairs[key[0]], key[1], views))

    def _captions(self, key: Key) -> Clips:
        return self._texts.get(key, lambda: load_captions(self._pairs[key[0]], key[1]))


def training_feed(
    pairs: Sequence[ShardPair],
    schedule: ScheduleConfig,
    collate: Callable[[Rows], Any],
    rank: int,
    world: int,
    looks: Looks = _WHOLE,
    threads: int = 2,
) -> Feed:
    """The feed of one worker over all epochs of a schedule."""
    order = TrainOrder(
        [pair.row_groups for pair in pairs],
        schedule.batch_clips,
        schedule.seed,
        schedule.shuffle_groups,
        schedule.tail,
        rank,
        world,
    )
    if rank == 0 and order.num_padded:
        kind = "repeated" if order.num_padded > 0 else "left out"
        logger.info("%d clips of %d are %s per epoch", abs(order.num_padded), order.num_clips, kind)
    return Feed(pairs, order, collate, looks, prefetch=threads + 1, threads=threads)


def evaluation_feed(
    pairs: Sequence[ShardPair],
    schedule: ScheduleConfig,
    collate: Callable[[Rows], Any],
    rank: int,
    world: int,
    looks: Looks = _WHOLE,
    threads: int = 2,
) -> Feed | None:
    """The feed of one worker over a split, each clip once; None where the split is empty or not asked for."""
    if not pairs or not schedule.eval_clips:
        return None
    groups = [pair.row_groups for pair in pairs]
    order = EvalOrder(groups, schedule.batch_clips, schedule.eval_clips, rank, world)
    return Feed(pairs, order, collate, looks, prefetch=threads + 1, threads=threads)
