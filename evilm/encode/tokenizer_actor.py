"""The actor that encodes frame shards; it reads, decodes and crops in background threads while the tokenizer runs.

Codes are written as they are computed, so memory does not grow with the shard: it holds a row group of codes and the
pixels of a few clips, for any number of threads.
"""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from evilm.config.training import CropConfig
from evilm.dataloader.clip_reader import Clips
from evilm.errors import ShardError
from evilm.jobs import commits, runner
from evilm.model.tokenizers.base_tokenizer import load_tokenizer
from evilm.prefetch import map_ahead
from evilm.seeds import clip_rng
from evilm.shards import ShardInfo, codes_schema, stored_columns, with_captions, write_codes
from evilm.video.crops import View, draw_view, replay, whole


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
        work, shard = self._work, self._shards[name]
        unit = commits.Unit(name, shard.sha256)

        def make(path: str, _: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
            histogram = np.zeros(work.num_codes, dtype=np.int64)
            metadata = {"tokenizer": work.fingerprint, "frames_sha256": shard.sha256, "shard": name}
            with closing(self._batches(shard)) as batches:
                write_codes(self._tables(batches, histogram), work.codes_per_clip, metadata, path, histogram)
            kept = {name: getattr(shard, name) for name in ("split", "num_clips", "row_groups")}
            return kept | {"frames_file": shard.file, "frames_sha256": shard.sha256}, True

        record = commits.make_unit(work.out, unit, work.run, work.max_failures, work.repair, make)
        return commits.Tally(shard.num_clips, num_repaired=int(record.get("repaired", False)))

    def _batches(self, shard: ShardInfo) -> Generator[EncodeBatch, None, None]:
        """Yield the clips of a shard in order, at most `batch_clips` at a time, decoded by a thread per CPU.

        The next row group is read and the next batches are decoded while the caller processes one.
        """
        names = ["clip_id", "captions", "frames"]
        with shard.open_file(self._work.frames) as file, ThreadPoolExecutor(self._work.threads, "decode") as pool:

            def decode(undecoded: tuple[EncodeBatch, Clips, int]) -> EncodeBatch:
                batch, clips, first = undecoded
                list(pool.map(lambda place: self._decode(clips, first + place, batch, place), range(batch.size)))
                return batch

            tables = map_ahead(
                lambda group: file.read_row_group(group, stored_columns(file, names)), range(len(shard.row_groups)), 1
            )
            yield from map_ahead(decode, self._undecoded(tables), threads=1, ahead=2)

    def _undecoded(self, tables: Iterable[pa.Table]) -> Generator[tuple[EncodeBatch, Clips, int], None, None]:
        """Yield batches without pixels yet, with the clips of their row group and the row of the first clip in it."""
        work = self._work
        for table in map(with_captions, tables):
            clips, ids = Clips(table), table["clip_id"].combine_chunks()
            for start in range(0, table.num_rows, work.batch_clips):
                rows = range(start, min(start + work.batch_clips, table.num_rows))
                views = [self._views(clips.clip_ids[row], clips.captions[row]) for row in rows]
                shape = (len(rows), work.num_frames, work.frame_px, work.frame_px, 3)
                frames = [np.empty(shape, np.uint8) for _ in range(work.num_views)]
                yield EncodeBatch(ids.slice(start, len(rows)), views, frames, rows.stop == table.num_rows), clips, start

    def _decode(self, clips: Clips, row: int, batch: EncodeBatch, place: int) -> None:
        """Write the pixels of one clip in each of its views; several threads call this at a time."""
        pixels, *others = (frames[place] for frames in batch.frames)
        clips.decode(row, range(self._work.num_frames), pixels)
        for view, out in zip(batch.views[place][1:], others, strict=True):
            replay(pixels, view, out)

    def _views(self, clip_id: str, captions: list[str]) -> list[View]:
        """Draw the views of a clip: the whole frame, then crops drawn from (seed, number of the view, clip id)."""
        work = self._work
        rngs = (clip_rng(f"stored view {k}", work.crop.seed, 0, clip_id) for k in range(1, work.num_views))
        return [whole(work.frame_px), *(draw_view(work.frame_px, work.crop, "\n".join(captions), rng) for rng in rngs)]

    def _tables(self, parts: Iterable[EncodeBatch], histogram: np.ndarray) -> Generator[pa.Table, None, None]:
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
