"""The data loader of training: rows of the epoch's order, read from Parquet, decoded and collated ahead of the step.

A direct reader in every worker rather than a Ray Dataset: the position in the data is the step number alone, so a run
resumes anywhere, with any number of workers, and sees the same batches.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Lock
from typing import Generic, TypeVar

from evilm.config.training import ScheduleConfig
from evilm.dataloader.clip_reader import ClipAugmentation, Clips, Rows, load_clips, show
from evilm.dataloader.pixel_buffers import PixelBuffers
from evilm.dataloader.sampler import EvalSampler, Step, TrainSampler
from evilm.errors import ShardError
from evilm.prefetch import map_ahead
from evilm.seeds import draw_captions
from evilm.shards import Captions, ShardPair, Side

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")
Key = tuple[int, int]
"""Shard and row group."""
_READERS = 4  # row groups read at a time by each thread: object stores answer late, but many requests at once
_WHOLE = ClipAugmentation()


class _GroupCache:
    """Row groups from the first step that needs them to the last one, so that each is read once in that time."""

    def __init__(self) -> None:
        self._clips, self._until, self._lock = dict[Key, Future[Clips]](), dict[Key, int](), Lock()

    def get(self, key: Key, until: int, load: Callable[[], Clips]) -> Clips:
        """Return the row group `key`, and keep it until the batch of step `until` is taken.

        Concurrent callers wait for one load.
        """
        with self._lock:
            self._until[key] = max(until, self._until.get(key, until))
            future = self._clips.get(key)
            mine = future is None
            if future is None:
                future = self._clips[key] = Future()
        if mine:
            try:
                future.set_result(load())
            except BaseException as error:
                with self._lock:
                    self._clips.pop(key, None)  # the next to ask tries again
                future.set_exception(error)
        return future.result()

    def drop(self, step: int) -> None:
        """Let go of what no step after this one needs."""
        with self._lock:
            for key in [key for key, until in self._until.items() if until <= step]:
                del self._until[key]
                self._clips.pop(key, None)


class DataLoader(Generic[BatchT]):
    """Batches of one worker, from any step on."""

    def __init__(
        self,
        pairs: Sequence[ShardPair],
        order: TrainSampler | EvalSampler,
        collate: Callable[[Rows], BatchT],
        augmentation: ClipAugmentation = _WHOLE,
        prefetch: int = 3,
        threads: int = 2,
        side: Side | None = None,
    ) -> None:
        """Load frame shards, with or without codes (an empty `codes_uri`).

        Args:
            collate: turns the rows of a step into a batch; runs in a background thread.
            prefetch: batches made ahead.
            side: the side files of the split. Without, the captions of the whole split are read into memory, and the
                footer of a file each time that one of its row groups is read: for small data sets.
        """
        self.order = order
        self.finish: Callable[[BatchT], BatchT] | None = None
        """Applied to each batch in the background, such as moving it to page-locked memory."""
        self._pairs, self._collate, self._augmentation = pairs, collate, augmentation
        self._prefetch, self._threads = prefetch, threads
        self._captions = side.captions if side else Captions.of_pairs(pairs)
        self._footers = side.footers if side else None
        self._groups = _GroupCache()
        self._buffers = PixelBuffers(prefetch + threads + 2)  # ahead, in the making, in use and just used
        self._readers = ThreadPoolExecutor(threads * _READERS, thread_name_prefix="loader-read")
        self.wait_s = 0.0
        """Seconds that the consumer has waited for batches so far."""

    def batches(self, start_step: int, end_step: int) -> Iterator[BatchT]:
        """Yield the batches of steps start_step .. end_step - 1, counted over all epochs."""
        steps = range(start_step, end_step)
        with closing(map_ahead(self._make, steps, self._threads, self._prefetch - 1, "loader")) as batches:
            for step in steps:
                began = time.perf_counter()
                batch = next(batches)
                self.wait_s += time.perf_counter() - began
                self._groups.drop(step)
                yield batch

    def _make(self, step: int) -> BatchT:
        batch = self._collate(self._read(self.order.step(step)))
        return self.finish(batch) if self.finish else batch

    def _read(self, step: Step) -> Rows:
        """Read the rows of one global step: captions of all, frames and codes of this worker's slice."""
        clip_ids, all_captions = self._captions.take(step.numbers)
        captions = draw_captions(self._augmentation.seed, step.epoch, clip_ids, all_captions)
        mine = [(int(s), int(g), int(r)) for s, g, r in step.rows[step.mine]]
        until = {(s, g): int(last) for (s, g, _), last in zip(mine, step.until[step.mine], strict=True)}
        groups = self._load(until)
        for (s, g, r), clip_id in zip(mine, clip_ids[step.mine], strict=True):
            if groups[s, g].clip_ids[r] != clip_id:
                raise ShardError(
                    f"the captions file has clip {clip_id} where {self._pairs[s].frames_uri} has "
                    f"{groups[s, g].clip_ids[r]}; delete the files captions-*.arrow beside it; they will be rebuilt"
                )
        clips = [(groups[s, g], r) for s, g, r in mine]
        frames, code_ids = show(self._augmentation, clips, step.epoch, self._buffers.take)
        return Rows(
            epoch=step.epoch,
            clip_ids=clip_ids,
            captions=captions,
            all_captions=all_captions,
            mine=step.mine,
            frames=frames,
            code_ids=code_ids,
        )

    def _load(self, until: Mapping[Key, int]) -> dict[Key, Clips]:
        """Load row groups by the last step that needs them; those that are not cached are read side by side."""
        views = self._augmentation.num_views > 1 and self._augmentation.crop is None

        def clips(key: Key) -> Clips:
            shard, group = key
            return self._groups.get(
                key, until[key], lambda: load_clips(self._pairs[shard], group, views, self._footers)
            )

        return dict(zip(until, self._readers.map(clips, until), strict=True))


def training_loader(
    pairs: Sequence[ShardPair],
    schedule: ScheduleConfig,
    collate: Callable[[Rows], BatchT],
    rank: int,
    world: int,
    augmentation: ClipAugmentation = _WHOLE,
    threads: int = 2,
    side: Side | None = None,
) -> DataLoader[BatchT]:
    """Create the data loader of one worker over all epochs of a schedule."""
    order = TrainSampler(
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
    return DataLoader(pairs, order, collate, augmentation, prefetch=threads + 1, threads=threads, side=side)


def evaluation_loader(
    pairs: Sequence[ShardPair],
    schedule: ScheduleConfig,
    collate: Callable[[Rows], BatchT],
    rank: int,
    world: int,
    micro_batch_clips: int,
    augmentation: ClipAugmentation = _WHOLE,
    threads: int = 2,
    side: Side | None = None,
) -> DataLoader[BatchT] | None:
    """Create the data loader of one worker over a split, each clip once; None if it is empty or not wanted.

    Args:
        schedule: says how many clips are evaluated, and among how many they are matched.
        micro_batch_clips: the most clips of a batch, unless a matching pool has more: a micro-batch of training.
    """
    if not pairs or not schedule.eval_clips:
        return None
    groups, pool = [pair.row_groups for pair in pairs], max(1, schedule.eval_pool_clips)
    order = EvalSampler(groups, micro_batch_clips, schedule.eval_clips, pool, rank, world)
    return DataLoader(pairs, order, collate, augmentation, prefetch=threads + 1, threads=threads, side=side)
