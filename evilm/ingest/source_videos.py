"""Fetch the videos of planned clips to this machine: once for all clips of a video, ahead of the decoder."""

import hashlib
import posixpath
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

from evilm.config.secrets import unsigned
from evilm.errors import DecodeError, EvilmError
from evilm.manifests.rows import ClipRow
from evilm.prefetch import map_ahead
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason


class SourceVideo:
    """A video on this machine and its digest; closing it removes a temporary copy.

    Args:
        row: a clip of the video.
        cut: path without ending of a file that holds only the clip, to fetch instead; '' for the video.
    """

    def __init__(self, row: ClipRow, fetcher: Fetcher, cut: str = "") -> None:
        self.is_cut = bool(cut)
        with ExitStack() as stack:
            if cut:
                place = fetcher.fetch(cut, needs_ending=True)
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


class SourceClips:
    """Consecutive clips of one video, each with the video or the error of fetching it."""

    def __init__(self, rows: Sequence[ClipRow], videos: Sequence[SourceVideo | DecodeError]) -> None:
        self.pairs = list(zip(rows, videos, strict=True))
        self._videos = {id(video): video for video in videos if isinstance(video, SourceVideo)}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of their videos, each counted once."""
        return sum(video.num_bytes for video in self._videos.values())

    def close(self) -> None:
        """Remove temporary copies."""
        for video in self._videos.values():
            video.close()


def fetch_sources(rows: Sequence[ClipRow], fetcher: Fetcher, ahead: int) -> Generator[SourceClips, None, None]:
    """Yield clips grouped by video, in order; the next few videos are fetched while earlier ones are decoded.

    Leaving early does not wait for servers: a hanging one must not delay the error that ends the job.
    """
    sources = (list(group) for _, group in groupby(rows, _source))
    return map_ahead(partial(fetch_source, fetcher), sources, ahead, name="fetch", discard=SourceClips.close)


def fetch_source(fetcher: Fetcher, rows: Sequence[ClipRow]) -> SourceClips:
    """Fetch the video that the rows are parts of, once; if it is missing, fetch a file for each clip."""
    missing = DecodeError(RejectReason.MISSING_FILE)
    for row in {(row.path, row.url): row for row in rows}.values():  # by another signature where one has expired
        try:
            return SourceClips(rows, [_fetch(row, fetcher)] * len(rows))
        except DecodeError as error:
            missing = error
        if missing.reason != RejectReason.FETCH_ERROR:
            break
    is_span = rows[0].start_s is not None or rows[0].end_s is not None
    if missing.reason != RejectReason.MISSING_FILE or not rows[0].needs_ending or not is_span:
        return SourceClips(rows, [missing] * len(rows))
    return SourceClips(rows, [_fetch_cut(row, fetcher, missing) for row in rows])


def _fetch_cut(row: ClipRow, fetcher: Fetcher, missing: DecodeError) -> SourceVideo | DecodeError:
    """Fetch the file of a clip whose video is missing: named by the clip's id, or `<videoid>_000033_000043`."""
    folder, slash, _ = row.path.rpartition("/")
    names, times = [f"{folder}{slash}{row.clip_id}"], (row.start_s, row.end_s)
    if all(time is not None and time % 1 == 0 for time in times):  # as Kinetics writes them
        names.append("_".join((row.path, *(f"{time:06.0f}" for time in times))))
    for name in names:
        try:
            return _fetch(row, fetcher, name)
        except DecodeError as error:
            if error.reason != RejectReason.MISSING_FILE:
                return error
    tried = ", ".join(posixpath.basename(name) for name in names)
    return DecodeError(missing.reason, f"{missing.detail}, nor {tried}")


def _source(row: ClipRow) -> tuple[Any, ...]:
    """Return what rows of the same video have in common; each may have its own signature."""
    return unsigned(row.path), row.needs_ending, row.offset, row.num_bytes, unsigned(row.url)


def _fetch(row: ClipRow, fetcher: Fetcher, cut: str = "") -> SourceVideo:
    try:
        return SourceVideo(row, fetcher, cut)
    except (EvilmError, MemoryError):
        raise
    except OSError as error:  # the file was found, but has vanished or can't be read
        raise DecodeError(RejectReason.FETCH_ERROR, error.strerror or type(error).__name__) from None
    except Exception as error:  # an unforeseen error of one video among millions must not end the job
        raise DecodeError(RejectReason.FETCH_ERROR, f"unexpected {type(error).__name__}") from error
