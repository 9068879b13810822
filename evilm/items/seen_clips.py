"""The clips that a model was trained on, as a set of hashes beside its weights: no model is scored on what it has seen.

A clip counts as seen by its id or by the SHA-256 of its video file, so a renamed copy is found too. 16 bytes per clip.
"""

import io
import logging
from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, UInt64

from evilm.io import storage
from evilm.prefetch import map_ahead
from evilm.seeds import hash64
from evilm.shards import FrameManifest, read_columns

logger = logging.getLogger(__name__)

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
    """Write the set of a model: what it is trained on itself, and what the models that it starts from have seen.

    If it is not known what one of them has seen, nothing is written, as it is then not known of this model either.
    """
    sets = [hashes.ravel()]
    for other in started_from:
        if (seen := read_seen(other)) is None:
            logger.warning("%s has no %s: it is not known which clips it has seen", other, SEEN_FILE)
            return
        sets.append(seen)
    table = pa.table({"hash": np.unique(np.concatenate(sets))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    storage.write_bytes(storage.join(model, SEEN_FILE), sink.getvalue())


def read_seen(model: str) -> UInt64[np.ndarray, " hash"] | None:
    """Return the sorted hashes of a model, or of the training that a checkpoint belongs to.

    Returns:
        None if they are not known, as of models of earlier versions.
    """
    training = model.rstrip("/").rpartition("/")[0].rpartition("/")[0]  # of <out>/checkpoints/<name>
    for folder in (model, training):
        if folder and storage.exists(place := storage.join(folder, SEEN_FILE)):
            return pq.read_table(io.BytesIO(storage.read_bytes(place)))["hash"].to_numpy()
    return None


def is_seen(seen: UInt64[np.ndarray, " hash"], hashes: UInt64[np.ndarray, "clip 2"]) -> Bool[np.ndarray, " clip"]:
    """Check for each clip if its id or its video is in the set."""
    return np.asarray(np.isin(hashes, seen).any(axis=1))
