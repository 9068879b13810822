"""The clips that a model was trained on, as a set of hashes beside its weights: no model is scored on what it has seen.

A clip counts as seen by its id or by the SHA-256 of its video file, so a renamed copy is found too. 17 bytes per clip.
Clips of val, by which steps are chosen, are kept apart: the model may be scored on val, but not on test with them.
"""

import io
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class SeenClips:
    """Sorted hashes of the clips that a model has seen."""

    trained: UInt64[np.ndarray, " hash"]
    """Clips that it was trained on."""
    chosen: UInt64[np.ndarray, " hash"]
    """Further clips, on which its steps were evaluated."""


def clip_hashes(
    frames: FrameManifest, splits: Collection[str] = (), clip_ids: Collection[str] | None = None
) -> tuple[list[str], UInt64[np.ndarray, "clip 2"]]:
    """Return ids of clips with the hashes of their ids and of their video files.

    Args:
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


def write_seen(
    model: str,
    hashes: UInt64[np.ndarray, "clip 2"],
    started_from: Iterable[str] = (),
    chosen_on: UInt64[np.ndarray, "clip 2"] | None = None,
) -> None:
    """Write the set of a model: what it is trained on itself, and what the models that it starts from have seen.

    If it is not known what one of them has seen, nothing is written, as it is then not known of this model either.

    Args:
        model: its folder.
        hashes: of the clips that it is trained on.
        chosen_on: hashes of the clips on which its steps are evaluated.
    """
    trained, chosen = [hashes.ravel()], [] if chosen_on is None else [chosen_on.ravel()]
    for other in started_from:
        if (seen := read_seen(other)) is None:
            logger.warning("%s has no %s: it is not known which clips it has seen", other, SEEN_FILE)
            return
        trained.append(seen.trained)
        chosen.append(seen.chosen)
    every = np.unique(np.concatenate(trained + chosen))
    table = pa.table({"hash": every, "trained": np.isin(every, np.concatenate(trained))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    storage.write_bytes(storage.join(model, SEEN_FILE), sink.getvalue())


def read_seen(model: str) -> SeenClips | None:
    """Return what a model has seen, or the training that a checkpoint belongs to.

    Returns:
        None if it is not known, as of models of earlier versions.
    """
    training = model.rstrip("/").rpartition("/")[0].rpartition("/")[0]  # of <out>/checkpoints/<name>
    for folder in (model, training):
        if folder and storage.exists(place := storage.join(folder, SEEN_FILE)):
            table = pq.read_table(io.BytesIO(storage.read_bytes(place)))
            hashes = table["hash"].to_numpy()
            # An earlier version wrote only what a model was trained on.
            is_old = "trained" not in table.column_names
            is_trained = np.ones(len(hashes), dtype=bool) if is_old else table["trained"].to_numpy()
            return SeenClips(hashes[is_trained], hashes[~is_trained])
    return None


def is_seen(seen: UInt64[np.ndarray, " hash"], hashes: UInt64[np.ndarray, "clip 2"]) -> Bool[np.ndarray, " clip"]:
    """Check for each clip if its id or its video is in the set."""
    return np.asarray(np.isin(hashes, seen).any(axis=1))
