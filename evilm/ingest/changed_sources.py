"""Report videos that were replaced after they were sharded. Shards keep the frames of the old files."""

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards import read_columns
from evilm.video.urls import is_url

logger = logging.getLogger(__name__)

_MOST_CLIPS = 2_000
"""Data sets up to this size are compared as a whole; of larger ones, only randomly chosen shards."""
_MOST_HASHED_BYTES = 256 << 20
"""Videos of the same size that are younger than their shards are hashed up to this sum, chosen at random."""
_THREADS = 16
_SHOWN = 3
_BLOCK_BYTES = 1 << 23


class _Sharded(NamedTuple):
    """A video as it was when it was sharded."""

    path: str
    num_bytes: int
    sha256: str
    time: float
    """Time when its shard was written, in seconds."""


def warn_of_changed_sources(out: str, files: Sequence[str], videos: str) -> list[str]:
    """Compare videos with those that were sharded, by size, time and digest, and warn if they differ.

    A video of the same size is read only if it is younger than its shard, as after a copy of the folder, and only up
    to a sum of bytes. URLs are not requested, and members of tars are compared with their headers when they are read.
    A deleted video is not reported: shards no longer need it.

    Args:
        files: names of the shards that exist.
        videos: root folder of the videos; '' to compare nothing.

    Returns:
        Sorted paths of the videos that have changed.
    """
    if not videos or not files:
        return []
    sharded = _sharded(out, files)
    fs, root = storage.resolve(videos)

    def look_at(video: _Sharded) -> tuple[int, float]:
        try:
            return _size_and_time(fs, f"{root.rstrip('/')}/{video.path}")
        except Exception:  # deleted, or a store that fails: no reason to stop a job that does not need this video
            return video.num_bytes, 0.0

    def differs(video: _Sharded) -> bool:
        try:
            with storage.open_file(storage.join(videos, video.path), _BLOCK_BYTES) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() != video.sha256  # type: ignore[arg-type]
        except Exception:  # deleted meanwhile, or a store that fails: as above, no reason to stop
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(zip(sharded, pool.map(look_at, sharded), strict=True))
        changed = {video.path for video, (size, _) in found if size != video.num_bytes}
        touched = _some([video for video, (size, time) in found if size == video.num_bytes and time > video.time])
        changed |= {video.path for video, differ in zip(touched, pool.map(differs, touched), strict=True) if differ}
    if changed:
        shown = ", ".join(sorted(changed)[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
        logger.warning(
            "%d of %d videos compared have changed since they were sharded: %s; the shards keep the frames of the old "
            "files. To shard the new ones, use another --out, or --overwrite to write all shards again",
            *(len(changed), len(sharded), shown),
        )
    return sorted(changed)


def _size_and_time(fs: Any, place: str) -> tuple[int, float]:
    """Return the size of a file and when it was written or put there, in seconds; 0 if the store does not tell."""
    if isinstance(fs, LocalFileSystem):
        found = os.stat(place)
        return found.st_size, max(found.st_mtime, found.st_ctime)  # copies may keep the former
    info = fs.info(place)
    return int(info["size"]), info["LastModified"].timestamp() if info.get("LastModified") else 0.0


def _some(videos: Sequence[_Sharded]) -> list[_Sharded]:
    """Choose videos at random, of at most `_MOST_HASHED_BYTES` in all."""
    chosen, left = list[_Sharded](), _MOST_HASHED_BYTES
    for video in random.sample(videos, len(videos)):
        if video.num_bytes <= left:
            chosen.append(video)
            left -= video.num_bytes
    return chosen


def _sharded(out: str, files: Sequence[str]) -> list[_Sharded]:
    """Return the videos of the shards, or of randomly chosen ones, that are files of their own."""
    videos, columns = dict[str, _Sharded](), ("source_uri", "source_bytes", "source_hash")
    fs, root = storage.resolve(out)
    for file in random.sample(files, len(files)):
        if len(videos) >= _MOST_CLIPS:
            break
        try:
            table = read_columns(storage.join(out, file), columns)
            time = fs.modified(f"{root.rstrip('/')}/{file}").timestamp()
        except (ShardError, OSError):  # lost or damaged; reported elsewhere
            continue
        for path, num_bytes, sha256 in zip(*(table[name].to_pylist() for name in columns), strict=True):
            if not is_url(path) and ".tar/" not in path:
                videos[path] = _Sharded(path, num_bytes, sha256, time)
    return list(videos.values())
