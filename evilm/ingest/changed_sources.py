"""Report videos that were replaced after they were sharded. Shards keep the frames of the old files."""

import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards import SCHEMA_VERSION, FrameManifest, read_columns
from evilm.video.urls import is_url

logger = logging.getLogger(__name__)

_MOST_CLIPS = 2_000
"""Data sets up to this size are compared as a whole; of larger ones, only randomly chosen shards."""
_THREADS = 16
_SHOWN = 3


def warn_of_changed_sources(frames: FrameManifest, videos: str) -> list[str]:
    """Compare the sizes of videos with those recorded when they were sharded, and warn if they differ.

    URLs are not requested, and members of tars are compared with their headers when they are read. A deleted video
    is not reported: shards no longer need it.

    Args:
        frames: the shards that exist.
        videos: root folder of the videos; '' to compare nothing.

    Returns:
        Sorted paths of the videos whose size has changed.
    """
    if not videos or frames.schema_version < SCHEMA_VERSION:
        return []
    sizes = _sizes_when_sharded(frames)
    fs, root = storage.resolve(videos)

    def differs(path: str) -> bool:
        try:
            return int(fs.info(f"{root.rstrip('/')}/{path}")["size"]) != sizes[path]
        except Exception:  # deleted, or a store that fails: no reason to stop a job that does not need this video
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        changed = sorted(path for path, differ in zip(sizes, pool.map(differs, sizes), strict=True) if differ)
    if changed:
        shown = ", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
        logger.warning(
            "%d of %d videos compared have another size than when they were sharded: %s; the shards keep the frames of "
            "the old files. To shard the new ones, use another --out, or --overwrite to make all shards again",
            *(len(changed), len(sizes), shown),
        )
    return changed


def _sizes_when_sharded(frames: FrameManifest) -> dict[str, int]:
    """Return the size in bytes of each file by its path below the root."""
    sizes: dict[str, int] = {}
    shards: list[Any] = random.sample(frames.shards, len(frames.shards))
    for shard in shards:
        if len(sizes) >= _MOST_CLIPS:
            break
        try:
            table = read_columns(storage.join(frames.uri, shard.file), ["source_uri", "source_bytes"])
        except ShardError:  # lost or damaged; reported elsewhere
            continue
        for path, num_bytes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            if not is_url(path) and ".tar/" not in path:
                sizes[path] = num_bytes
    return sizes
