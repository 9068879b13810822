"""Side files of shards: the captions of a split, and the Parquet footers of its files, each in one Arrow file.

They repeat what the shards hold, so that a training worker needs only its own row groups of them: captions of the whole
global step come from the one file, and a row group is read without asking for the size and the footer of its file.
Both are written when a manifest is published, have their shards' digest in their names, and hold one record batch per
shard. A machine copies remote ones once and memory-maps them; where they are missing, it makes them in its cache.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from evilm.config.base import fingerprint
from evilm.errors import ShardError, StorageError
from evilm.io import storage
from evilm.io.node_cache import cached
from evilm.prefetch import map_ahead
from evilm.shards.pairing import ShardPair
from evilm.shards.shard_files import FRAMES_SCHEMA, read_columns, read_footer, with_captions
from evilm.shards.shard_manifests import CodesManifest, FrameManifest, ShardInfo

logger = logging.getLogger(__name__)

CAPTIONS, FOOTERS = "captions", "footers"
_TEXTS = pa.schema([FRAMES_SCHEMA.field(name) for name in ("clip_id", "captions")])
_FOOTER = pa.schema([pa.field("footer", pa.large_binary(), nullable=False)])
_NAME = re.compile(rf"(?:{CAPTIONS}|{FOOTERS})-.+-[0-9a-f]{{16}}\.arrow")
_READS = 16  # shards read side by side
_BATCHES, _PARSED = 4096, 64
"""Record batches of captions and parsed footers that are kept at hand; a footer takes 350 KB when parsed."""

_Batches = Callable[[int], pa.RecordBatch]
"""The record batch of a shard, by the shard's number."""


class Captions:
    """Ids and captions of the clips of a split, by their number in the stored order."""

    def __init__(self, batch: _Batches, num_clips: Sequence[int]) -> None:
        """Hold captions of shards of `num_clips` clips, whose texts `batch(shard)` gives."""
        self._batch = lru_cache(_BATCHES)(batch)
        self._first = np.concatenate([[0], np.cumsum(np.asarray(num_clips, dtype=np.int64))])

    @classmethod
    def of_pairs(cls, pairs: Sequence[ShardPair]) -> Self:
        """Read the captions of a small data set into memory."""
        found = map_ahead(lambda pair: _texts(pair.frames_uri), pairs, _READS)
        return cls(list(found).__getitem__, [pair.num_clips for pair in pairs])

    def take(self, numbers: Int64[np.ndarray, " clip"]) -> tuple[list[str], list[list[str]]]:
        """Return the ids and all captions of some clips."""
        shards = np.searchsorted(self._first, numbers, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        pieces = []
        for run, shard in zip(np.split(numbers, cuts), shards[np.append(0, cuts)], strict=True):
            pieces.append(self._batch(int(shard)).take(pa.array(run - self._first[shard])))
        table = with_captions(pa.Table.from_batches(pieces))  # of a side file of an earlier version
        return table["clip_id"].to_pylist(), table["captions"].to_pylist()


class Footers:
    """The footers of files, parsed when they are asked for."""

    def __init__(self, footers: dict[str, tuple[_Batches, int]]) -> None:
        """Hold footers by URI: the batches of a side file, and the number of the file among them."""
        self._footers = footers
        self.of = lru_cache(_PARSED)(self._parse)
        """The footer of a file by its URI."""

    @classmethod
    def join(cls, parts: Sequence["Footers"]) -> "Footers":
        """Return the footers of all files of several."""
        return cls({uri: place for part in parts for uri, place in part._footers.items()})

    def _parse(self, uri: str) -> pq.FileMetaData:
        batch, number = self._footers[uri]
        return pq.read_metadata(pa.BufferReader(batch(number)["footer"][0].as_buffer()))


@dataclass(frozen=True)
class Side:
    """Contents of a split's side files."""

    captions: Captions
    footers: Footers


def open_side(frames: FrameManifest, split: str, codes: CodesManifest | None = None) -> Side:
    """Open the side files of a split, after copying or making what this machine lacks.

    Raises:
        ShardError: they, or the shards that they are made of, can't be read.
        StorageError: the cache of this machine can't be used.
    """
    shards = frames.of_split(split)
    captions = _open(frames.uri, CAPTIONS, shards, split)
    footers: dict[str, tuple[_Batches, int]] = {}
    coded = {shard.file for shard in shards}
    codes_shards = [shard for shard in codes.shards if shard.frames_file in coded] if codes else []
    for folder, files in ((frames.uri, shards), (codes.uri if codes else "", codes_shards)):
        if files:
            batch = _open(folder, FOOTERS, files, split)
            footers |= {storage.join(folder, shard.file): (batch, number) for number, shard in enumerate(files)}
    return Side(Captions(captions, [shard.num_clips for shard in shards]), Footers(footers))


def publish_side(manifest: FrameManifest | CodesManifest, replace: bool = True, again: bool = False) -> None:
    """Write the side files of all splits beside the shards, those that are missing.

    Args:
        replace: the manifest is being published: side files of other shards are removed. Otherwise they were made
            before there were side files, and a place that can't be written is left as it is.
        again: write also those that are there, which may be damaged.

    Raises:
        ShardError: the shards can't be read.
        StorageError: the place can't be written.
    """
    kinds = (CAPTIONS, FOOTERS) if isinstance(manifest, FrameManifest) else (FOOTERS,)
    there, wanted = set(storage.list_names(manifest.uri)), set[str]()
    for split in dict.fromkeys(shard.split for shard in manifest.shards):
        shards = [shard for shard in manifest.shards if shard.split == split]
        for kind in kinds:
            name = _name(kind, shards, split)
            wanted.add(name)
            try:
                if again or name not in there:
                    _publish(manifest.uri, kind, shards, name)
            except StorageError as error:
                if replace:
                    raise
                logger.info("%s; every machine makes its own %s", error, name)
    if replace:
        for name in there - wanted:
            if _NAME.fullmatch(name):
                storage.delete(storage.join(manifest.uri, name))


def _publish(folder: str, kind: str, shards: Sequence[ShardInfo], name: str) -> None:
    uri = storage.join(folder, name)
    with storage.temporary(uri) as path:
        _write(path, folder, kind, shards)
        storage.put_file(path, uri)


def _name(kind: str, shards: Sequence[ShardInfo], split: str) -> str:
    return f"{kind}-{split}-{fingerprint([shard.sha256 for shard in shards])}.arrow"


def _open(folder: str, kind: str, shards: Sequence[ShardInfo], split: str) -> _Batches:
    """Open the batches of a side file, memory-mapped: the published one if it is local, else this machine's copy."""
    name = _name(kind, shards, split)
    uri = storage.join(folder, name)

    def make(path: str) -> None:
        if not storage.is_local(uri):
            try:
                storage.get_file(uri, path)
                return
            except FileNotFoundError:
                pass
        _write(path, folder, kind, shards)

    is_there = storage.is_local(uri) and Path(storage.absolute(uri)).exists()
    path = storage.absolute(uri) if is_there else cached(name, make)
    try:
        reader = pa.ipc.open_file(pa.memory_map(path))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(f"cannot read {path}: {reason}; delete the file; it will be rebuilt") from None
    if reader.num_record_batches != len(shards):
        raise ShardError(
            f"{path} holds {reader.num_record_batches} shards, not {len(shards)}; delete the file; it will be rebuilt"
        )
    lock = Lock()

    def batch(number: int) -> pa.RecordBatch:
        with lock:  # Arrow's reader is for one thread at a time
            return reader.get_batch(number)

    return batch


def _write(path: str, folder: str, kind: str, shards: Sequence[ShardInfo]) -> None:
    """Write a side file to a local path; few shards are held at a time."""
    schema, read = (_TEXTS, _texts) if kind == CAPTIONS else (_FOOTER, _footer)
    uris = (storage.join(folder, shard.file) for shard in shards)
    with storage.storage_errors(path), pa.ipc.new_file(path, schema) as writer:
        for batch in map_ahead(read, uris, _READS):
            writer.write_batch(batch)


def _texts(uri: str) -> pa.RecordBatch:
    """Read the ids and captions of a shard."""
    table = read_columns(uri, _TEXTS.names).select(_TEXTS.names).cast(_TEXTS).combine_chunks()
    return next(chain(table.to_batches(), [pa.RecordBatch.from_pylist([], _TEXTS)]))


def _footer(uri: str) -> pa.RecordBatch:
    return pa.record_batch([pa.array([read_footer(uri)], pa.large_binary())], schema=_FOOTER)
