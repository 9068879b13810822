"""Make one frame shard: fetch its videos ahead, decode them in order in a child process, write each row group."""

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from evilm.config.data import FetchConfig, FramesConfig
from evilm.config.secrets import public_text, public_uri
from evilm.errors import DecodeError
from evilm.ingest.failure_budget import LOST, bad_rows, lost_error, too_many
from evilm.ingest.locations import apply_locations
from evilm.ingest.shard_plan import read_rows
from evilm.ingest.source_videos import SourceVideo, fetch_sources
from evilm.jobs import commits, runner
from evilm.manifests.rows import BadRow, ClipRow
from evilm.shards import write_frames
from evilm.video.decode import DecodedClip
from evilm.video.decoder_process import Decoder
from evilm.video.fetch import Fetcher
from evilm.video.reasons import ClipFlag, RejectReason
from evilm.video.urls import without_ending

_DETAIL_CHARS = 500


@dataclass(frozen=True)
class ShardJob:
    """Settings that all tasks of a job share."""

    out: str
    run: int
    """Number of the run that owns `out`."""
    videos: str
    plan_ids: dict[str, str]
    """Plan id of each generation, by its folder."""
    sampling: FramesConfig
    fetch: FetchConfig
    max_failed_share: float
    max_failures: int
    repair: bool = False
    """Read the files of committed shards, and write them again if they are damaged."""


def make_shards(batch: dict[str, np.ndarray], work: ShardJob) -> dict[str, np.ndarray]:
    """Make one shard and commit it; Ray Data maps this function over the units."""
    return runner.outcome(partial(make_shard, work), batch)


def unit_of(work: ShardJob, task: str) -> commits.Unit:
    """Return the unit that the shard of a task is committed as."""
    generation, _, name = task.partition("/")
    return commits.Unit(name, work.plan_ids[generation])


def make_shard(work: ShardJob, task: str) -> commits.Tally:
    """Make the shard of a task (`<folder of the generation>/<shard>`) and commit it.

    Raises:
        SourceError: most of its videos can't be fetched.
        StorageError: the shard can't be written.
    """
    unit = unit_of(work, task)

    def make(path: str, before: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        rows, size = read_rows(work.out, task), work.sampling.row_group_clips
        if locations := runner.read_private():
            rows = list(apply_locations(rows, locations))
        writer = _ShardWriter(work, before)
        clips = writer.clips(rows)
        groups = iter(lambda: list(islice(clips, size)), [])  # only one is held at a time
        write_frames(groups, {"plan_id": unit.key, "shard": unit.name}, path)
        record = {
            "plan_id": unit.key,
            "split": rows[0].split,
            "num_clips": writer.num_clips,
            "num_captions": writer.num_captions,
            "row_groups": [min(size, writer.num_clips - start) for start in range(0, writer.num_clips, size)],
            "flags": writer.flags,
            "bytes_read": writer.num_bytes,
            "bad": [asdict(row) for row in writer.bad],
        }
        return record, writer.num_clips > 0

    return tally_of(commits.make_unit(work.out, unit, work.run, work.max_failures, work.repair, make))


def tally_of(record: dict[str, Any]) -> commits.Tally:
    """Return the counts in the commit record of a shard."""
    lost = sum(row["reason"] in LOST for row in record["bad"])
    repaired = int(record.get("repaired", False))
    return commits.Tally(record["num_clips"], len(record["bad"]), lost, record["bytes_read"], repaired)


class _ShardWriter:
    """Turns planned rows into shard rows, one by one, and counts them.

    `before` is the commit record of a shard that is written again: clips that it lacks are left out, even if they
    can be decoded now.
    """

    def __init__(self, work: ShardJob, before: dict[str, Any] | None = None) -> None:
        self._work = work
        self.num_clips = self.num_captions = self.num_bytes = self._num_lost = 0
        self.bad = list(bad_rows(before or {"bad": []}))
        self.flags: dict[str, int] = {}

    def clips(self, rows: Sequence[ClipRow]) -> Iterator[dict[str, Any]]:
        """Yield shard rows of the clips that can be decoded, numbered without gaps."""
        left_out = {row.clip_id for row in self.bad}
        rows = [row for row in rows if row.clip_id not in left_out]
        sources = fetch_sources(rows, _fetcher(self._work), self._work.fetch.concurrency)
        with _decoder(self._work.sampling) as decoder, closing(sources):
            for source in sources:
                with closing(source):
                    self.num_bytes += source.num_bytes
                    for row, video in source.pairs:
                        tally = commits.Tally(self.num_clips, len(self.bad), self._num_lost, self.num_bytes)
                        runner.report_progress(tally)
                        try:
                            if isinstance(video, DecodeError):
                                raise video
                            span = (None, None) if video.is_cut else (row.start_s, row.end_s)
                            clip = decoder.decode(video.path, row.clip_id, *span, may_be_cut=_is_named_by_clip(row))
                        except DecodeError as error:
                            self._quarantine(row, error)
                            continue
                        yield self._row(row, clip, video)
                        self.num_clips += 1
                        self.num_captions += len(row.captions)

    def _quarantine(self, row: ClipRow, error: DecodeError) -> None:
        root = self._work.videos
        detail = public_text(error.detail.replace(root, "") if root else error.detail)[:_DETAIL_CHARS]
        reason, where = RejectReason(error.reason), public_uri(row.path)
        self.bad.append(BadRow(row.record, row.clip_id, reason, detail, row.split, where, row.source))
        self._num_lost += reason in LOST
        asked, share = self.num_clips + len(self.bad), self._work.max_failed_share
        if reason in LOST and too_many(self._num_lost, asked, share):
            raise lost_error(self._num_lost, asked, share, self.bad[-1])

    def _row(self, row: ClipRow, clip: DecodedClip, video: SourceVideo) -> dict[str, Any]:
        for flag in ClipFlag.names(clip.flags):
            self.flags[flag] = self.flags.get(flag, 0) + 1
        return asdict(clip) | {
            "clip_id": row.clip_id,
            "row": self.num_clips,
            "split": row.split,
            "captions": list(row.captions),
            "start_s": row.start_s,
            "end_s": row.end_s,
            "source": row.source or None,
            "source_uri": video.uri,
            "source_bytes": video.num_bytes,
            "source_hash": video.sha256,
            "extra": list(row.extra.items()),
        }


def _is_named_by_clip(row: ClipRow) -> bool:
    """Return whether the file has the clip's id as name, so that it may hold only the clip, not all of its video."""
    return without_ending(posixpath.basename(row.path)) == without_ending(row.clip_id)


class _Kept:
    """Resources that a process keeps between shards: a decoder, whose child takes a second to start, and a fetcher."""

    decoder: tuple[FramesConfig, Decoder] | None = None
    fetcher: tuple[tuple[str, FetchConfig, str], Fetcher] | None = None


def _fetcher(work: ShardJob) -> Fetcher:
    """Return this process' fetcher for this job; each job checks the root again."""
    wanted = (work.videos, work.fetch, f"{work.out} {work.run}")
    if _Kept.fetcher is None or _Kept.fetcher[0] != wanted:
        _Kept.fetcher = (wanted, Fetcher(work.videos, work.fetch))
    return _Kept.fetcher[1]


@contextmanager
def _decoder(sampling: FramesConfig) -> Iterator[Decoder]:
    """Provide this process' decoder. An interruption may leave half an answer behind; the child is then replaced."""
    if _Kept.decoder is not None and _Kept.decoder[0] != sampling:
        _Kept.decoder[1].close()
        _Kept.decoder = None
    if _Kept.decoder is None:
        _Kept.decoder = (sampling, Decoder(sampling))
    decoder, is_whole = _Kept.decoder[1], False
    try:
        yield decoder
        is_whole = True
    finally:
        if not is_whole:
            decoder.close()
