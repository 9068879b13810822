"""Verify shards and codes: every byte, row and JPEG, or sizes and footers only.

Problems are named by file and row group; they are collected, not raised, so one run reports all.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from evilm.errors import StorageError
from evilm.inspect.shard_stats import digest_of
from evilm.io import storage
from evilm.shards import (
    FRAMES_SCHEMA,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    CodeShardInfo,
    CodesManifest,
    FrameManifest,
    ShardInfo,
    codes_schema,
    open_shard,
    stored_columns,
    with_captions,
)
from evilm.video.reasons import ClipFlag

MOST_PER_SHARD = 200
"""Problems of one shard that are kept; the rest are counted."""


class Issue(NamedTuple):
    """Something that is not as it should be."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


@dataclass
class ShardCheck:
    """Result of checking one shard."""

    num_problems: int = 0
    problems: list[Issue] = field(default_factory=list)
    """The first ones."""
    num_jpegs: int = 0
    num_bytes: int = 0
    """Read from files."""
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Digests of the clip ids, in order."""
    jpeg_bytes: list[int] = field(default_factory=list)
    histogram: np.ndarray | None = None
    """Count of each code in the whole frames."""

    def add(self, problems: Iterable[Issue]) -> None:
        """Count problems and keep the first ones."""
        for problem in problems:
            self.num_problems += 1
            if len(self.problems) < MOST_PER_SHARD:
                self.problems.append(problem)


def check_shard(
    frames: FrameManifest, shard: ShardInfo, codes: CodesManifest | None, coded: CodeShardInfo | None, full: bool
) -> ShardCheck:
    """Look at a frame shard, and at its codes where they are given.

    Args:
        frames: what the shard belongs to; its list of shards is not used.
        codes: what the code shard belongs to; its list of shards is not used.
        full: read everything, instead of sizes and footers.
    """
    checked = ShardCheck()
    if not full:
        checked.add(_quick(frames.uri, shard, FRAMES_SCHEMA))
        if codes and coded:
            checked.add(_quick(codes.uri, coded, codes_schema(codes.codes_per_clip)))
        return checked
    ids: list[pa.Array | None] = []
    checked.add(_Frames(frames, shard, checked, ids).problems())
    known = [group for group in ids if group is not None]
    checked.ids = digest_of(pa.chunked_array(known, pa.string()).to_pylist())
    if codes and coded:
        checked.add(_Codes(codes, coded, checked, ids, frames.frame_px).problems())
    return checked


def _quick(folder: str, shard: ShardInfo, schema: pa.Schema) -> Iterator[Issue]:
    """Check size and footer."""
    uri = storage.join(folder, shard.file)
    fs, path = storage.resolve(uri)
    try:
        size = storage.with_retries(uri, lambda: fs.info(path)["size"])
        if size != shard.num_bytes:
            yield Issue(shard.file, "", f"has {size} bytes, the manifest says {shard.num_bytes}")
        with open_shard(uri) as file:
            yield from _footer(file, shard, schema)
    except FileNotFoundError:
        yield Issue(shard.file, "", "is missing, though the manifest lists it")
    except (StorageError, OSError, pa.ArrowException) as error:
        yield Issue(shard.file, "", f"cannot be opened: {_line(error)}")


def _footer(file: pq.ParquetFile, shard: ShardInfo, schema: pa.Schema) -> Iterator[Issue]:
    found = file.schema_arrow
    stored = (found.metadata or {}).get(b"evilm.schema_version", b"").decode()
    if stored not in map(str, READABLE_VERSIONS):
        yield Issue(shard.file, "footer", f"has schema version {stored or 'none'}, not {SCHEMA_VERSION}")
    of = (found.metadata or {}).get(b"evilm.frames_sha256", b"").decode()
    if isinstance(shard, CodeShardInfo) and of != shard.frames_sha256:
        yield Issue(shard.file, "footer", f"codes frames {of[:12] or 'unknown'}, not {shard.frames_sha256[:12]}")
    for name, stored_name in zip(schema.names, stored_columns(file, schema.names), strict=True):
        there = found.field(stored_name).type if stored_name in found.names else None
        wanted = schema.field(name).type if name == stored_name else pa.string()
        if there != wanted:
            yield Issue(shard.file, f"column {name}", f"is {there or 'missing'}, not {wanted}")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if groups != shard.row_groups:
        yield Issue(shard.file, "footer", f"has row groups of {groups} rows, the manifest says {shard.row_groups}")
    if sum(groups) != shard.num_clips:
        yield Issue(shard.file, "footer", f"has {sum(groups)} rows, the manifest says {shard.num_clips}")


class _File:
    """One file, read from the first byte to the last, then row group by row group."""

    def __init__(self, folder: str, shard: ShardInfo, schema: pa.Schema, checked: ShardCheck) -> None:
        self._folder, self._shard, self._schema, self._checked = folder, shard, schema, checked
        self._first = 0

    def problems(self) -> Iterator[Issue]:
        """Yield all that is wrong with it."""
        uri, name = storage.join(self._folder, self._shard.file), self._shard.file
        with ExitStack() as stack:
            try:
                path = stack.enter_context(storage.local_copy(uri))
                yield from self._bytes(path)
                file = stack.enter_context(pq.ParquetFile(path, page_checksum_verification=True))
            except FileNotFoundError:
                yield Issue(name, "", "is missing, though the manifest lists it")
                return
            except (StorageError, OSError, pa.ArrowException) as error:
                yield Issue(name, "footer", f"cannot be read: {_line(error)}")
                return
            yield from _footer(file, self._shard, self._schema)
            for group in range(file.num_row_groups):
                yield from self._group(file, group)
                self._first += file.metadata.row_group(group).num_rows

    def _bytes(self, path: str) -> Iterator[Issue]:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.path.getsize(path)
        self._checked.num_bytes += size
        if size != self._shard.num_bytes:
            yield Issue(self._shard.file, "", f"has {size} bytes, the manifest says {self._shard.num_bytes}")
        elif found != self._shard.sha256:
            what = (
                f"was changed after it was written: SHA-256 {found[:12]}, the manifest says {self._shard.sha256[:12]}"
            )
            yield Issue(self._shard.file, "", what)

    def _group(self, file: pq.ParquetFile, group: int) -> Iterator[Issue]:
        place = f"row group {group}"
        try:
            table = file.read_row_group(group)
        except (OSError, pa.ArrowException):
            for name in file.schema_arrow.names:
                try:
                    file.read_row_group(group, columns=[name])
                except (OSError, pa.ArrowException) as error:
                    yield Issue(self._shard.file, f"{place}, column {name}", f"is damaged: {_line(error)}")
            self.skip(group)
            return
        if missing := [name for name in self._schema.names if name not in table.column_names]:
            assert missing  # reported already, with the footer
            self.skip(group)
            return
        numbers = table["row"].to_numpy()
        due = np.arange(self._first, self._first + table.num_rows)
        if not np.array_equal(numbers, due):
            at = int(np.flatnonzero(numbers != due)[0])
            yield Issue(self._shard.file, place, f"row {due[at]} is numbered {numbers[at]}")
        yield from (Issue(self._shard.file, f"{place}, {where}", what) for where, what in self.rows(group, table))

    def rows(self, group: int, table: pa.Table) -> Iterator[tuple[str, str]]:
        """Return where in a row group something is wrong, and what."""
        raise NotImplementedError

    def skip(self, group: int) -> None:
        """Note that a row group can't be read."""


class _Frames(_File):
    def __init__(
        self, frames: FrameManifest, shard: ShardInfo, checked: ShardCheck, ids: list[pa.Array | None]
    ) -> None:
        super().__init__(frames.uri, shard, FRAMES_SCHEMA, checked)
        self._ids, self._num_frames, self._px = ids, frames.num_frames, frames.frame_px

    def skip(self, group: int) -> None:
        self._ids.append(None)

    def rows(self, group: int, table: pa.Table) -> Iterator[tuple[str, str]]:
        self._ids.append(table["clip_id"].combine_chunks())
        names = ["clip_id", "split", "frames", "frame_pts_us", "frame_index", "flags", "captions"]
        rows = with_captions(table).select(names)
        for row in (row for batch in rows.to_batches(max_chunksize=16) for row in batch.to_pylist()):
            yield from ((f"clip {row['clip_id']!r}", what) for what in self._clip(row))

    def _clip(self, row: dict) -> Iterator[str]:
        if row["split"] != self._shard.split:
            yield f"is of split {row['split']!r}, the shard of {self._shard.split!r}"
        if not row["clip_id"] or not row["captions"] or not all(row["captions"]):
            yield "has no id or no caption"
        counts = [len(row[name]) for name in ("frames", "frame_pts_us", "frame_index")]
        if counts != [self._num_frames] * 3:
            yield f"has {counts[0]} frames, {counts[1]} times and {counts[2]} places, not {self._num_frames} each"
        least = 0 if row["flags"] & ClipFlag.REPEATED else 1
        for name in ("frame_pts_us", "frame_index"):
            if np.any(np.diff(row[name]) < least):
                yield f"its {name} do not ascend: {row[name]}"
        self._checked.jpeg_bytes += [len(jpeg) for jpeg in row["frames"]]
        for number, jpeg in enumerate(row["frames"]):
            self._checked.num_jpegs += 1
            try:
                shape = simplejpeg.decode_jpeg(jpeg, colorspace="RGB").shape
            except ValueError as error:
                yield f"frame {number} can't be decoded: {_line(error)}"
                continue
            if shape != (self._px, self._px, 3):
                yield f"frame {number} is {shape[1]} x {shape[0]}, not {self._px} x {self._px}"


class _Codes(_File):
    def __init__(
        self, codes: CodesManifest, shard: CodeShardInfo, checked: ShardCheck, ids: list[pa.Array | None], frame_px: int
    ) -> None:
        super().__init__(codes.uri, shard, codes_schema(codes.codes_per_clip), checked)
        self._codes, self._ids, self._px = codes, ids, frame_px
        checked.histogram = np.zeros(codes.num_codes, np.int64)

    def rows(self, group: int, table: pa.Table) -> Iterator[tuple[str, str]]:
        ids = self._ids[group] if group < len(self._ids) else None
        if ids is not None and not table["clip_id"].combine_chunks().equals(ids):
            pairs = zip(table["clip_id"].to_pylist(), ids.to_pylist(), strict=False)
            odd = next((f"{code!r} beside {frame!r}" for code, frame in pairs if code != frame), "another number")
            yield "column clip_id", f"holds other clips than the frames: {odd}"
        flat = table["code_ids"].combine_chunks().flatten().to_numpy()
        if len(flat) and flat.max() >= self._codes.num_codes:
            yield "column code_ids", f"has code {flat.max()}, the codebook has {self._codes.num_codes}"
        first = flat.reshape(table.num_rows, self._codes.num_views, -1)[:, 0]
        assert self._checked.histogram is not None
        self._checked.histogram += np.bincount(first.ravel(), minlength=self._codes.num_codes)[: self._codes.num_codes]
        for clip_id, views in zip(table["clip_id"].to_pylist(), table["views"].to_pylist(), strict=True):
            yield from ((f"clip {clip_id!r}", what) for what in self._views(views))

    def _views(self, views: list[dict]) -> Iterator[str]:
        if len(views) != self._codes.num_views:
            yield f"has {len(views)} views, not {self._codes.num_views}"
        for number, view in enumerate(views):
            ends = view["x"] + view["width"], view["y"] + view["height"]
            if min(view["width"], view["height"]) < 1 or max(ends) > self._px:
                yield f"view {number} is not inside the frame of {self._px} px: {view}"
        if views and list(views[0].values()) != [0, 0, self._px, self._px, False]:
            yield f"view 0 is not the whole frame: {views[0]}"


def twice(ids: np.ndarray) -> np.ndarray:
    """Return the indices of digests that already occurred earlier."""
    order = np.argsort(ids, kind="stable")
    return np.sort(order[1:][ids[order[1:]] == ids[order[:-1]]])


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
