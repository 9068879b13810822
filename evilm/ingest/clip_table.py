"""Sort and join the clips of a manifest on disk with DuckDB, so that memory does not grow with their number.

Clips are ordered by a hash of (seed, clip id). DuckDB holds only the columns to sort and compare by. The clips
themselves are in a file, since sorting wide rows needs memory for a hundred thousand of them at a time. Every query
has an ORDER BY, so results depend only on the clips, not on threads.
"""

import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, NamedTuple, Self

import duckdb
import pyarrow as pa

from evilm.config.secrets import unsigned
from evilm.errors import ConfigError, StorageError
from evilm.io import storage
from evilm.io.temporary import nameless_file, temporary_folder
from evilm.manifests.rows import ClipRow
from evilm.seeds import hash64

logger = logging.getLogger(__name__)

_OF_TARS = "; more tars change no row if all are in one folder and --columns.videoid '' is given from the start"
_ADVICE = "--columns.repeats captions adds the captions of rows with the same id and video to one clip"
_SCHEMA = pa.schema(
    [
        ("turn", pa.int64()),  # position in the manifest
        ("high", pa.uint64()),  # of `order_key`
        ("low", pa.uint64()),
        ("content", pa.uint64()),  # `content_of`
        ("video", pa.uint64()),
        ("origin", pa.uint64()),  # of the source video if the clip is a part of a video, else `high`
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("start", pa.int64()),  # of the clip in the file
        ("length", pa.int64()),
    ]
)
_CHANGED = pa.schema([_SCHEMA.field(name) for name in ("turn", "content", "start", "length")])
_DATABASE = {"memory_limit": "128MB", "threads": 1, "preserve_insertion_order": False}
_BATCH_ROWS = 1 << 14


class PlacedClip(NamedTuple):
    """A clip in the order of its shards."""

    row: ClipRow
    content: int
    """Digest of its captions, video, span and split."""
    origin: int
    """Digest of its source video if the clip is a part of a video, else of its id."""


def order_key(seed: int, clip_id: str) -> bytes:
    """Return the sort key of a clip in its split."""
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def content_of(row: ClipRow) -> int:
    """Return a digest of captions, video, span and split; the position in the manifest does not matter."""
    return hash64(_video_of(row).to_bytes(8, "big") + "\0".join(row.captions).encode())


def _video_of(row: ClipRow) -> int:
    """Return a digest of video, span and split."""
    return hash64(f"{row.split}\0{unsigned(row.path, fragment=True)}\0{row.start_s}\0{row.end_s}".encode())


class ClipTable:
    """Clips, added in any order and read back sorted. A context manager; its temporary files are removed at the end.

    Raises:
        StorageError: no space for temporary files.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._waiting: dict[str, list[tuple[Any, ...]]] = {"clips": [], "changed": []}
        self._size = 0
        self.num_rows, self._has_tars = 0, False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(temporary_folder())
            self._file = stack.enter_context(nameless_file()[0])
            config = {**_DATABASE, "temp_directory": f"{self._folder}/spill"}
            self._database = stack.enter_context(duckdb.connect(config=config))
            for name, schema in (("clips", _SCHEMA), ("changed", _CHANGED)):
                self._database.from_arrow(schema.empty_table()).create(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()
        if isinstance(error, duckdb.Error):
            reason = str(error).strip().splitlines()[0]
            raise StorageError(f"cannot sort clips in {tempfile.gettempdir()}: {reason}; free space or set TMPDIR")

    def take(self, row: ClipRow) -> None:
        """Add a clip."""
        key = order_key(self._seed, row.clip_id)
        is_part = row.start_s is not None or row.end_s is not None
        origin = order_key(self._seed, unsigned(row.path))[:8] if is_part else key[:8]
        high, low, origin = map(int.from_bytes, (key[:8], key[8:], origin))
        digests = (high, low, content_of(row), _video_of(row), origin)
        self._add("clips", (self.num_rows, *digests, row.clip_id, row.split, *self._write(row)))
        self.num_rows += 1
        self._has_tars |= row.offset >= 0

    def take_repeats(self, repeats: str) -> Iterator[tuple[ClipRow, ClipRow, bool]]:
        """Keep the first row of each id and remove the others.

        Args:
            repeats: meaning of rows with the id and the video of another row (`ColumnsConfig.repeats`). If they are
                captions, the first row of the id receives those that it does not have.

        Returns:
            The removed rows that add nothing, each with the first row of its id, and whether it has the same video and
            other captions, which no setting asked to remove; ordered by id.
        """
        self._flush("clips")
        num_ids = self._all("SELECT count(*) FROM (SELECT DISTINCT high, low FROM clips)")[0][0]
        if num_ids == self.num_rows:
            return
        are_captions = repeats == "captions" or (repeats == "auto" and num_ids < 0.5 * self.num_rows)
        repeated = "SELECT high, low FROM clips GROUP BY high, low HAVING count(*) > 1"
        columns, num_lost = "high, low, video, turn, start, length", 0
        query = f"SELECT {columns} FROM clips SEMI JOIN ({repeated}) USING (high, low) ORDER BY high, low, turn"
        for _, ((_, _, video, turn, *place), *others) in groupby(self._read(query), itemgetter(0, 1)):
            first = self._row(*place)
            captions = dict.fromkeys(first.captions)
            for _, _, other_video, _, *other_place in others:
                row, known = self._row(*other_place), len(captions)
                is_same = video == other_video and row.offset == first.offset  # names may come back in one tar
                if are_captions and is_same:
                    captions.update(dict.fromkeys(row.captions))
                if len(captions) == known:
                    is_lost = repeats == "auto" and is_same and not captions.keys() >= set(row.captions)
                    num_lost += is_lost
                    yield row, first, is_lost
            if len(captions) > len(first.captions):
                first = replace(first, captions=tuple(captions))
                self._add("changed", (turn, content_of(first), *self._write(first)))
        self._flush("changed")
        if num_lost:
            logger.warning("%d rows with other captions for a clip are quarantined; %s", num_lost, _ADVICE)
        values = ", ".join(f"coalesce(changed.{name}, clips.{name}) AS {name}" for name in _CHANGED.names)
        first = "SELECT min(turn) AS turn FROM clips GROUP BY high, low"
        joins = f"SEMI JOIN ({first}) USING (turn) LEFT JOIN changed USING (turn)"
        self._keep(f"clips.* REPLACE ({values}) FROM clips {joins}")

    def drop_planned(self, digests: Sequence[str], out: str) -> None:
        """Drop the clips that are in the digests of earlier generations, so planned already.

        Raises:
            ConfigError: clips that were planned before are gone or have changed.
        """
        self._flush("clips")
        copies = [f"{self._folder}/{number}.parquet" for number in range(len(digests))]
        for uri, copy in zip(digests, copies, strict=True):
            storage.get_file(uri, copy)
        if not copies:
            return
        self._database.execute("CREATE TABLE planned AS SELECT clip_id, content FROM read_parquet(?)", [copies])
        complaints = []
        for rows, text in (
            (
                "clips JOIN planned USING (clip_id) WHERE clips.content != planned.content",
                "{:,} rows have another caption, path, span or split, e.g. of {!r}",
            ),
            ("planned ANTI JOIN clips USING (clip_id)", "{:,} rows are gone or cut off by --limit, e.g. {!r}"),
        ):
            ((count, example),) = self._all(f"SELECT count(*), min(clip_id) FROM {rows}")
            complaints += [text.format(count, example)] if count else []
        if complaints:
            raise ConfigError(
                f"the manifest is not the one that {out} was made from, with rows added: {' and '.join(complaints)}; "
                "--overwrite writes all shards again, or choose another --out" + _OF_TARS * self._has_tars
            )
        self._keep("* FROM clips ANTI JOIN planned USING (clip_id)")

    def publish_digest(self, uri: str) -> None:
        """Write the ids of all clips and digests of their contents to a Parquet file."""
        self._flush("clips")
        path = f"{self._folder}/digest.parquet"
        query = "SELECT high, clip_id, content FROM clips ORDER BY high, low"
        quoted = path.replace("'", "''")
        self._database.execute(f"COPY ({query}) TO '{quoted}' (FORMAT parquet, COMPRESSION zstd)")
        storage.put_file(path, uri)

    def splits(self, most: int) -> list[str]:
        """List the splits of the clips, at most `most` of them."""
        self._flush("clips")
        return [split for (split,) in self._all(f"SELECT DISTINCT split FROM clips ORDER BY split LIMIT {most}")]

    def of_split(self, split: str) -> Iterator[PlacedClip]:
        """Yield the clips of a split in the order of their shards: those of one source video follow each other."""
        query = "SELECT start, length, content, origin FROM clips WHERE split = ? ORDER BY origin, high, low"
        for start, length, content, origin in self._read(query, split):
            yield PlacedClip(self._row(start, length), content, origin)

    def _write(self, row: ClipRow) -> tuple[int, int]:
        """Append a clip to the file and return its offset and length."""
        data, start = pickle.dumps(row), self._size
        with storage.storage_errors(tempfile.gettempdir()):
            self._file.write(data)
        self._size += len(data)
        return start, len(data)

    def _row(self, start: int, length: int) -> ClipRow:
        self._file.flush()
        return pickle.loads(os.pread(self._file.fileno(), length, start))  # written by this process

    def _add(self, name: str, values: tuple[Any, ...]) -> None:
        self._waiting[name].append(values)
        if len(self._waiting[name]) == _BATCH_ROWS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        """Move the rows added since the last time to a table."""
        schema, rows = (_SCHEMA if name == "clips" else _CHANGED), self._waiting[name]
        if rows:
            arrays = [
                pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
            ]
            self._database.from_arrow(pa.Table.from_arrays(arrays, schema=schema)).insert_into(name)
            self._waiting[name] = []

    def _keep(self, selection: str) -> None:
        """Replace the clips by a selection of them. DELETE and UPDATE would hold every changed row in memory."""
        self._database.execute(f"CREATE TABLE kept AS SELECT {selection}")
        self._database.execute("DROP TABLE clips")
        self._database.execute("ALTER TABLE kept RENAME TO clips")

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        return self._database.sql(query).fetchall()

    def _read(self, query: str, *parameters: str) -> Iterator[tuple[Any, ...]]:
        """Read the rows of a query, some thousands at a time; the tables may change meanwhile."""
        with self._database.cursor() as cursor:
            for batch in cursor.sql(query, params=parameters).to_arrow_reader(_BATCH_ROWS):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
