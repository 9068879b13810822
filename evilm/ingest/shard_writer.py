"""One frame shard: its videos fetched ahead, decoded in order in a child process, written row group by row group."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from evilm.config.data import FetchConfig, FramesConfig
from evilm.config.secrets import public_text, public_uri
from evilm.errors import DecodeError, EvilmError
from evilm.ingest.failure_budget import LOST, lost_error, too_many
from evilm.ingest.locations import apply_locations
from evilm.ingest.shard_plan import read_rows
from evilm.io import storage
from evilm.jobs import commits, runner
from evilm.manifests.rows import BadRow, ClipRow
from evilm.shards import write_frames
from evilm.video.decode import DecodedClip
from evilm.video.decoder_process import Decoder
from evilm.video.fetch import Fetcher
from evilm.video.reasons import ClipFlag, RejectReason

_DETAIL_CHARS = 500


@dataclass(frozen=True)
class ShardJob:
    """Settings that all tasks of a job share."""

    out: str
    run: int
    """Number of the run that owns `out`."""
    videos: str
    plan_ids: dict[str, str]
    """Of each generation, by its folder."""
    sampling: FramesConfig
    fetch: FetchConfig
    max_failed_share: float
    max_failures: int
    repair: bool = False
    """Whether the files of committed shards are read, and made again if they are damaged."""


def make_shards(batch: dict[str, np.ndarray], work: ShardJob) -> dict[str, np.ndarray]:
    """Make one shard and commit it: the function that Ray Data maps over units."""
    return runner.outcome(partial(make_shard, work), batch)


def unit_of(work: ShardJob, task: str) -> commits.Unit:
    """Return what the shard of a task is committed as."""
    generation, _, name = task.partition("/")
    return commits.Unit(name, work.plan_ids[generation])


def make_shard(work: ShardJob, task: str) -> commits.Tally:
    """Make the shard of a task (`<folder of the generation>/<shard>`) and commit it.

    Raises:
        SourceError: most of its videos can't be fetched.
        StorageError: it can't be written.
    """
    unit = unit_of(work, task)
    before = commits.read_record(work.out, unit)
    if before and commits.is_sound(work.out, before, full=work.repair):
        return tally_of(before)  # found sound, or done by an attempt whose answer was lost with its node
    rows, size = read_rows(work.out, task), work.sampling.row_group_clips
    if locations := runner.read_private():
        rows = list(apply_locations(rows, locations))
    maker, attempt = _ShardWriter(work), commits.attempt(work.out, work.run, unit.name, work.max_failures)
    place = commits.attempt_place(work.out, unit)
    with attempt, storage.temporary(place) as path:
        groups = _groups(maker.clips(rows), size)
        with storage.storage_errors(place):
            write_frames(groups, {"plan_id": unit.key, "shard": unit.name}, path)
        record = {
            "plan_id": unit.key,
            "split": rows[0].split,
            "num_clips": maker.num_clips,
            "num_captions": maker.num_captions,
            "row_groups": [min(size, maker.num_clips - start) for start in range(0, maker.num_clips, size)],
            "flags": maker.flags,
            "bytes_read": maker.num_bytes,
            "bad": [asdict(row) for row in maker.bad],
        }
        commits.commit_file(work.out, unit, path if maker.num_clips else "", record, work.run, before)
    return tally_of(record)


def tally_of(record: dict[str, Any]) -> commits.Tally:
    """Return what a commit record says came of its shard."""
    lost = sum(row["reason"] in LOST for row in record["bad"])
    return commits.Tally(record["num_clips"], len(record["bad"]), lost, record["bytes_read"])


class _ShardWriter:
    """Turns planned rows into shard rows, one after the other, and counts."""

    def __init__(self, work: ShardJob) -> None:
        self._work = work
        self.num_clips = self.num_captions = self.num_bytes = self._num_lost = 0
        self.bad: list[BadRow] = []
        self.flags: dict[str, int] = {}

    def clips(self, rows: Sequence[ClipRow]) -> Iterator[dict[str, Any]]:
        """Shard rows of the clips that can be decoded, numbered without gaps."""
        ahead = _ahead(rows, _fetcher(self._work), self._work.fetch.concurrency)
        with _decoder(self._work.sampling) as decoder, ahead as coming:
            for group, arrival in coming:
                with _closed(arrival.result()) as videos:
                    self.num_bytes += sum(video.num_bytes for video in _distinct(videos))
                    for row, video in zip(group, videos, strict=True):
                        runner.report_progress(
                            commits.Tally(self.num_clips, len(self.bad), self._num_lost, self.num_bytes)
                        )
                        try:
                            if isinstance(video, DecodeError):
                                raise video
                            clip = decoder.decode(video.path, row.clip_id, **({} if video.is_cut else _span(row)))
                        except DecodeError as error:
                            self._put_aside(row, error)
                            continue
                        yield self._row(row, clip, video)
                        self.num_clips += 1
                        self.num_captions += len(row.captions)

    def _put_aside(self, row: ClipRow, error: DecodeError) -> None:
        root = self._work.videos
        detail = public_text(error.detail.replace(root, "") if root else error.detail)[:_DETAIL_CHARS]
        reason, where = RejectReason(error.reason), public_uri(row.path)
        self.bad.append(BadRow(row.record, row.clip_id, reason, detail, row.split, where, row.source))
        self._num_lost += reason in LOST
        asked, share = self.num_clips + len(self.bad), self._work.max_failed_share
        if reason in LOST and too_many(self._num_lost, asked, share):
            raise lost_error(self._num_lost, asked, share, self.bad[-1])

    def _row(self, row: ClipRow, clip: DecodedClip, video: "_Video") -> dict[str, Any]:
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


def _span(row: ClipRow) -> dict[str, float]:
    span = {"start_s": row.start_s, "end_s": row.end_s}
    return {name: value for name, value in span.items() if value is not None}


class _Video:
    """A video on this machine, and its digest; closing it removes a temporary copy.

    Args:
        row: a clip of it.
        fetcher: gets it.
        is_cut: get a file of the clip alone, which has the clip's id as its name.
    """

    def __init__(self, row: ClipRow, fetcher: Fetcher, is_cut: bool = False) -> None:
        self.is_cut = is_cut
        with ExitStack() as stack:
            if is_cut:
                folder, slash, _ = row.path.rpartition("/")
                place = fetcher.fetch(f"{folder}{slash}{row.clip_id}", needs_ending=True)
            else:
                place = fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes, row.url)
            local = stack.enter_context(place)
            self.path, self.uri, self.num_bytes = local.path, local.uri, local.num_bytes
            with open(local.path, "rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Remove a temporary copy."""
        self._stack.close()


_Videos = list[_Video | DecodeError]
"""Of each row of a source; the same one for all where they are parts of one file."""
_Arrival = Future[_Videos]


def _sources(rows: Sequence[ClipRow]) -> Iterator[list[ClipRow]]:
    """Rows that follow each other and are parts of one video."""

    def source(row: ClipRow) -> tuple[Any, ...]:
        return row.path, row.needs_ending, row.offset, row.num_bytes, row.url

    yield from (list(group) for _, group in groupby(rows, source))


@contextmanager
def _ahead(rows: Sequence[ClipRow], fetcher: Fetcher, most: int) -> Iterator[Iterator[tuple[list[ClipRow], _Arrival]]]:
    """Rows by their sources, in order, and their videos; a few sources are fetched and read while the clips of the ones
    before them are decoded."""
    waiting: deque[tuple[list[ClipRow], _Arrival]] = deque()
    pool = ThreadPoolExecutor(most, thread_name_prefix="fetch")

    def coming() -> Iterator[tuple[list[ClipRow], _Arrival]]:
        for group in _sources(rows):
            waiting.append((group, pool.submit(fetch_source, group, fetcher)))
            if len(waiting) > most:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    try:
        yield coming()
    finally:
        for _, arrival in waiting:
            arrival.cancel()
            arrival.add_done_callback(_close)
        pool.shutdown(wait=False)  # a server that hangs must not hold up the error that ends the job


def fetch_source(rows: Sequence[ClipRow], fetcher: Fetcher) -> _Videos:
    """Get the video that some rows are parts of, once; where there is none, the file of each of the clips."""
    try:
        return [_get(rows[0], fetcher)] * len(rows)
    except DecodeError as error:
        missing = error
    if missing.reason != RejectReason.MISSING_FILE or not rows[0].needs_ending or not _span(rows[0]):
        return [missing] * len(rows)
    videos: _Videos = []
    for row in rows:
        try:
            videos.append(_get(row, fetcher, is_cut=True))
        except DecodeError as error:
            is_gone = error.reason == RejectReason.MISSING_FILE
            videos.append(DecodeError(missing.reason, f"{missing.detail}, nor {row.clip_id}") if is_gone else error)
    return videos


def _close(arrival: _Arrival) -> None:
    if not arrival.cancelled() and arrival.exception() is None:
        with _closed(arrival.result()):
            pass


def _distinct(videos: _Videos) -> list[_Video]:
    return list({id(video): video for video in videos if isinstance(video, _Video)}.values())


@contextmanager
def _closed(videos: _Videos) -> Iterator[_Videos]:
    """Videos that are closed at the end of the block."""
    try:
        yield videos
    finally:
        for video in _distinct(videos):
            video.close()


def _get(row: ClipRow, fetcher: Fetcher, is_cut: bool = False) -> _Video:
    try:
        return _Video(row, fetcher, is_cut)
    except (EvilmError, MemoryError):
        raise
    except OSError as error:  # a file that vanished or can't be read once it was found
        raise DecodeError(RejectReason.FETCH_ERROR, error.strerror or type(error).__name__) from None
    except Exception as error:  # what no one foresaw of one place among millions must not end the job
        raise DecodeError(RejectReason.FETCH_ERROR, f"unexpected {type(error).__name__}") from error


class _Kept:
    """Resources that a process keeps between shards: a decoder, whose child takes a second to start, and a fetcher."""

    decoder: tuple[FramesConfig, Decoder] | None = None
    fetcher: tuple[tuple[str, FetchConfig, str], Fetcher] | None = None


def _fetcher(work: ShardJob) -> Fetcher:
    """This process' fetcher in this job; the next job sees the root anew."""
    wanted = (work.videos, work.fetch, f"{work.out} {work.run}")
    if _Kept.fetcher is None or _Kept.fetcher[0] != wanted:
        _Kept.fetcher = (wanted, Fetcher(work.videos, work.fetch))
    return _Kept.fetcher[1]


@contextmanager
def _decoder(sampling: FramesConfig) -> Iterator[Decoder]:
    """This process' decoder. Whatever interrupts its work may leave half an answer behind, so its child is replaced."""
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


def _groups(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of `size`, the last one shorter; only one list is held at a time."""
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
