"""The actor that encodes frame shards; it reads, decodes and crops in background threads while the tokenizer runs.

Codes are written as they are computed, so memory does not grow with the shard: it holds a row group of codes and the
pixels of a few clips, for any number of threads.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch

from evilm.config.training import CropConfig
from evilm.dataloader.clip_reader import Clips
from evilm.errors import ShardError
from evilm.io import storage
from evilm.jobs import commits, runner
from evilm.model.tokenizers.base import load_tokenizer
from evilm.seeds import clip_rng
from evilm.shards import ShardInfo, codes_schema, stored_columns, with_captions, write_codes
from evilm.video.crops import View, draw_view, replay, whole

T = TypeVar("T")


@dataclass(frozen=True)
class EncodeJob:
    """Settings that all actors of a job share."""

    out: str
    run: int
    """Number of the run that owns `out`."""
    frames: str
    tokenizer: str
    fingerprint: str
    frame_px: int
    num_frames: int
    grid: int
    num_codes: int
    num_views: int
    crop: CropConfig
    view_spec: dict[str, Any]
    batch_clips: int
    threads: int
    use_gpu: bool
    max_failures: int
    repair: bool = False
    """Read the files of finished shards, and compute damaged ones again."""

    @property
    def codes_per_clip(self) -> int:
        """Number of codes stored per clip."""
        return self.num_views * self.num_frames * self.grid**2


class EncodeBatch(NamedTuple):
    """Decoded clips of a row group in each of their views."""

    clip_ids: pa.Array
    views: list[list[View]]
    """Views of each clip."""
    frames: list[np.ndarray]
    """Pixels of each view, uint8 (clip, frame, row, col, 3)."""
    ends_group: bool

    @property
    def size(self) -> int:
        """Number of clips."""
        return len(self.views)


class TokenizerActor:
    """An actor that holds the tokenizer and encodes one frame shard per call."""

    def __init__(self, work: EncodeJob, shards: dict[str, ShardInfo]) -> None:
        self._work, self._shards = work, shards
        torch.set_num_threads(work.threads)
        device = "cuda" if work.use_gpu else "cpu"
        self._tokenizer = load_tokenizer(work.tokenizer).to(device)
        found = self._tokenizer.fingerprint()
        if found != work.fingerprint:
            raise ShardError(f"{work.tokenizer} changed while its codes were computed ({found}); run again")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode one shard and commit it."""
        return runner.outcome(self.make_shard, batch)

    def make_shard(self, name: str) -> commits.Tally:
        """Encode the frame shard of this unit and commit the code shard."""
        work = self._work
        shard = self._shards[name]
        unit = commits.Unit(name, shard.sha256)
        before = commits.read_record(work.out, unit)
        if before and commits.is_sound(work.out, before, full=work.repair):
            return commits.Tally(shard.num_clips)
        histogram = np.zeros(work.num_codes, dtype=np.int64)
        metadata = {"tokenizer": work.fingerprint, "frames_sha256": shard.sha256, "shard": name}
        attempt = commits.attempt(work.out, work.run, name, work.max_failures)
        place = commits.attempt_place(work.out, unit)
        with attempt, storage.temporary(place) as path:
            with storage.storage_errors(place), prefetched(self._parts(shard)) as parts:
                write_codes(self._tables(parts, histogram), work.codes_per_clip, metadata, path, histogram)
            record = {
                "split": shard.split,
                "num_clips": shard.num_clips,
                "row_groups": shard.row_groups,
                "frames_file": shard.file,
                "frames_sha256": shard.sha256,
            }
            commits.commit_file(work.out, unit, path, record, work.run, before)
        return commits.Tally(shard.num_clips)

    def _parts(self, shard: ShardInfo) -> Iterator[EncodeBatch]:
        """Yield the clips of a shard in order, at most `batch_clips` at a time; runs in a background thread.

        As many threads as the worker has CPUs decode clips, those of the next batch while this one is completed.
        """
        coming: deque[tuple[EncodeBatch, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self._work.threads, thread_name_prefix="decode") as pool:
            for part, clips, first in self._undecoded(shard):
                tasks = [pool.submit(self._decode, clips, first + place, part, place) for place in range(part.size)]
                coming.append((part, tasks))
                if len(coming) > 1:
                    yield _finished(*coming.popleft())
            while coming:
                yield _finished(*coming.popleft())

    def _undecoded(self, shard: ShardInfo) -> Iterator[tuple[EncodeBatch, Clips, int]]:
        """Yield batches without pixels yet, with the clips of their row group and the row of the first clip in it."""
        work = self._work
        with shard.open_file(work.frames) as file:
            for group, size in enumerate(shard.row_groups):
                table = file.read_row_group(group, columns=stored_columns(file, ["clip_id", "captions", "frames"]))
                table = with_captions(table)
                clips, ids = Clips(table), table["clip_id"].combine_chunks()
                for start in range(0, size, work.batch_clips):
                    rows = range(start, min(start + work.batch_clips, size))
                    views = [self._views(clips.clip_ids[row], clips.captions[row]) for row in rows]
                    shape = (len(rows), work.num_frames, work.frame_px, work.frame_px, 3)
                    frames = [np.empty(shape, np.uint8) for _ in range(work.num_views)]
                    yield EncodeBatch(ids.slice(start, len(rows)), views, frames, rows.stop == size), clips, start

    def _decode(self, clips: Clips, row: int, part: EncodeBatch, place: int) -> None:
        """Write the pixels of one clip in each of its views; several threads call this at a time."""
        pixels, *others = (frames[place] for frames in part.frames)
        clips.decode(row, range(self._work.num_frames), pixels)
        for view, out in zip(part.views[place][1:], others, strict=True):
            replay(pixels, view, out)

    def _views(self, clip_id: str, captions: list[str]) -> list[View]:
        """Draw the views of a clip: the whole frame, then crops drawn from (seed, number of the view, clip id)."""
        work = self._work
        rngs = (clip_rng(f"stored view {k}", work.crop.seed, 0, clip_id) for k in range(1, work.num_views))
        return [whole(work.frame_px), *(draw_view(work.frame_px, work.crop, "\n".join(captions), rng) for rng in rngs)]

    def _tables(self, parts: Iterable[EncodeBatch], histogram: np.ndarray) -> Iterator[pa.Table]:
        """Yield the code shard in the row groups of its frame shard; count the codes of whole frames."""
        done: list[EncodeBatch] = []
        codes: list[np.ndarray] = []
        first = 0
        for part in parts:
            by_view = [self._encode(frames) for frames in part.frames]
            histogram += np.bincount(by_view[0].ravel(), minlength=len(histogram))
            done.append(part._replace(frames=[]))
            codes.append(np.stack(by_view, axis=1))
            if part.ends_group:
                table = self._table(done, np.concatenate(codes), first)
                yield table
                first += table.num_rows
                done, codes = [], []

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        """Encode frames to codes (clip, region), uint16."""
        found = self._tokenizer.encode(torch.from_numpy(frames).to(self._tokenizer.device)).cpu().numpy()
        assert found.shape == (len(frames), self._work.num_frames * self._work.grid**2)
        return found.astype(np.uint16)

    def _table(self, parts: list[EncodeBatch], codes: np.ndarray, first: int) -> pa.Table:
        """Build one row group; `first` is the number of its first row."""
        schema = codes_schema(self._work.codes_per_clip)
        views = [[view._asdict() for view in views] for part in parts for views in part.views]
        columns = {
            "clip_id": pa.concat_arrays([part.clip_ids for part in parts]),
            "row": pa.array(np.arange(first, first + len(codes), dtype=np.int32)),
            "views": pa.array(views, schema.field("views").type),
            "code_ids": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), self._work.codes_per_clip),
        }
        return pa.table(columns, schema)


def _finished(part: EncodeBatch, tasks: list[Future[None]]) -> EncodeBatch:
    """Return the batch when its clips are decoded."""
    for task in tasks:
        task.result()
    return part


@contextmanager
def prefetched(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Iterate over items, the next one computed in a background thread; closed at the end of the block."""
    nothing: Any = object()

    def take() -> Iterator[T]:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            yield take()
        finally:
            pool.submit(_close, items).result()


def _close(items: Any) -> None:
    """Close a generator in the thread where it ran."""
    with closing(items):
        pass
