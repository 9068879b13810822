"""The feed of training: rows of the epoch's order, read from Parquet, decoded and collated ahead of the step.

A direct reader in every worker rather than a Ray Dataset: the position in the data is the step number alone, so a run
resumes anywhere, with any number of workers, and sees the same batches.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from evilm.config.train import ScheduleConfig
from evilm.data.order import EvalOrder, Step, TrainOrder
from evilm.errors import ShardError
from evilm.shards import ShardPair, decode_frames, read_group

logger = logging.getLogger(__name__)

_TEXT_COLUMNS = ["clip_id", "caption"]


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
        self._size, self._tables, self._lock = size, OrderedDict[Any, Future[pa.Table]](), Lock()

    def get(self, key: Any, load: Callable[[], pa.Table]) -> pa.Table:
        """The table of `key`; concurrent callers wait for one load."""
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
        prefetch: int = 3,
        threads: int = 2,
    ) -> None:
        """A feed over frame shards, with or without their code shards (an empty `codes_uri`).

        Args:
            order: says which rows make a step.
            collate: turns the rows of a step into a batch; runs in a background thread.
            prefetch: batches made ahead.
            threads: background threads.
        """
        self.order = order
        self._pairs, self._collate = pairs, collate
        self._prefetch, self._threads = prefetch, threads
        self._groups = _GroupCache(2 * order.window + threads)
        self._texts = _GroupCache(8 * order.window + threads)
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
        return self._collate(self._read(self.order.step(step)))

    def _read(self, step: Step) -> Rows:
        """The rows of one global step: texts of all, frames and codes of this worker's slice."""
        texts = [(*self._text(int(s), int(g)), int(r)) for s, g, r in step.rows]
        mine = [(self._heavy(int(s), int(g)), int(r)) for s, g, r in step.rows[step.mine]]
        codes = None
        if mine and "code_ids" in mine[0][0].column_names:
            codes = np.stack([np.asarray(table["code_ids"][r].values, dtype=np.int64) for table, r in mine])
        return Rows(
            epoch=step.epoch,
            clip_ids=[clip_ids[r] for clip_ids, _, r in texts],
            captions=[captions[r] for _, captions, r in texts],
            mine=step.mine,
            frames=np.stack([decode_frames(table["frames"][r].as_py()) for table, r in mine]),
            code_ids=codes,
        )

    def _text(self, shard: int, group: int) -> Any:
        def load() -> Any:
            table = read_group(self._pairs[shard].frames_uri, group, _TEXT_COLUMNS)
            return table["clip_id"].to_pylist(), table["caption"].to_pylist()

        return self._texts.get((shard, group), load)

    def _heavy(self, shard: int, group: int) -> pa.Table:
        return self._groups.get((shard, group), lambda: load_group(self._pairs[shard], group))


def training_feed(
    pairs: Sequence[ShardPair], schedule: ScheduleConfig, collate: Callable[[Rows], Any], rank: int, world: int
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
    return Feed(pairs, order, collate)


def evaluation_feed(
    pairs: Sequence[ShardPair], schedule: ScheduleConfig, collate: Callable[[Rows], Any], rank: int, world: int
) -> Feed | None:
    """The feed of one worker over a split, each clip once; None where the split is empty or not asked for."""
    if not pairs or not schedule.eval_clips:
        return None
    groups = [pair.row_groups for pair in pairs]
    return Feed(pairs, EvalOrder(groups, schedule.batch_clips, schedule.eval_clips, rank, world), collate)


def load_group(pair: ShardPair, group: int) -> pa.Table:
    """Frames of a row group, with their codes where the pair has them.

    Raises:
        ShardError: a row of the codes belongs to another clip than the row of the frames.
    """
    table = read_group(pair.frames_uri, group, ["clip_id", "frames"])
    if pair.codes_uri:
        codes = read_group(pair.codes_uri, group, ["clip_id", "code_ids"])
        if codes["clip_id"].to_pylist() != table["clip_id"].to_pylist():
            raise ShardError(
                f"row group {group} of {pair.codes_uri} holds other clips than that of {pair.frames_uri}; "
                "make the codes again with pipelines/precompute_codes.py --overwrite"
            )
        table = table.append_column("code_ids", codes["code_ids"])
    return table
