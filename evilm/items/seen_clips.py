"""The clips that a model was trained on, as a set of hashes beside its weights: no model is scored on what it has seen.

A clip counts as seen by its id or by the SHA-256 of its video file, so a renamed copy is found too. 16 bytes per clip.
"""

import io
from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, UInt64

from evilm.io import storage
from evilm.prefetch import map_ahead
from evilm.seeds import hash64
from evilm.shards import FrameManifest, read_columns

SEEN_FILE = "trained_on.parquet"
_READS = 16  # shards read side by side


def clip_hashes(
    frames: FrameManifest, splits: Collection[str] = (), clip_ids: Collection[str] | None = None
) -> tuple[list[str], UInt64[np.ndarray, "clip 2"]]:
    """Return ids of clips with the hashes of their ids and of their video files.

    Args:
        frames: the shards.
        splits: of the clips; empty for all.
        clip_ids: only these clips; None for all.
    """
    shards = [shard for shard in frames.shards if not splits or shard.split in splits]
    columns = ["clip_id", "source_hash"]
    tables = map_ahead(lambda shard: read_columns(storage.join(frames.uri, shard.file), columns), shards, _READS)
    found = [
        (clip, source)
        for table in tables
        for clip, source in zip(*(table[name].to_pylist() for name in columns), strict=True)
        if clip_ids is None or clip in clip_ids
    ]
    hashes = [(hash64(f"id\0{clip}".encode()), hash64(f"source\0{source}".encode())) for clip, source in found]
    return [clip for clip, _ in found], np.array(hashes, dtype=np.uint64).reshape(-1, 2)


def write_seen(model: str, hashes: UInt64[np.ndarray, "clip 2"], started_from: Iterable[str] = ()) -> None:
    """Write the set of a model: what it was trained on itself, and what the models that it started from had seen."""
    sets = [hashes.ravel(), *(read_seen(other) for other in started_from)]
    table = pa.table({"hash": np.unique(np.concatenate(sets))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    storage.write_bytes(storage.join(model, SEEN_FILE), sink.getvalue())


def read_seen(model: str) -> UInt64[np.ndarray, " hash"]:
    """Return the sorted hashes of a model; empty if it has none, as models of earlier versions."""
    place = storage.join(model, SEEN_FILE)
    if not storage.exists(place):
        return np.zeros(0, np.uint64)
    return pq.read_table(io.BytesIO(storage.read_bytes(place)))["hash"].to_numpy()


def is_seen(seen: UInt64[np.ndarray, " hash"], hashes: UInt64[np.ndarray, "clip 2"]) -> Bool[np.ndarray, " clip"]:
    """Check for each clip if its id or its video is in the set."""
    return np.isin(hashes, seen).any(axis=1)
