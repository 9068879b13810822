"""Sorting clips by a hash of their ids without holding them: rows go to temporary files by the first byte of the hash,
and one file at a time is sorted in memory. With 256 files, ten million clips make pieces of some 40,000 rows."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from operator import attrgetter
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from evilm.config.secrets import unsigned
from evilm.io import storage
from evilm.manifests.rows import ClipRow

ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("record", pa.int64()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("path", pa.string()),
        ("needs_ending", pa.bool_()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("url", pa.string()),
        ("extra", pa.string()),  # JSON
    ]
)
"""A planned clip: the fields of `ClipRow`."""
SORTED_SCHEMA = pa.schema(
    [
        ("high", pa.uint64()),  # of `order_key`
        ("low", pa.uint64()),
        ("turn", pa.int64()),  # place in the manifest
        ("content", pa.uint64()),
        ("video", pa.uint64()),
        ("origin", pa.uint64()),  # of the source video where clips are parts of videos, else as `high`
        *ROWS_SCHEMA,
    ]
)
_FIELDS = attrgetter(*ROWS_SCHEMA.names)
_BATCH_ROWS = 1 << 14
_NUM_FILES = 256
_SHIFT = np.uint64(56)
_SEEN_BITS = 1 << 27


def order_key(seed: int, clip_id: str) -> bytes:
    """Return where a clip comes in the order of its split."""
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def high_key(seed: int, clip_id: str) -> int:
    """The leading 64 bits of `order_key`."""
    return int.from_bytes(order_key(seed, clip_id)[:8])


def content_of(row: ClipRow) -> bytes:
    """Eight bytes that differ where captions, video, span or split do; not by where in which manifest a clip stands."""
    return content_digest(video_of(row), row.captions)


def video_of(row: ClipRow) -> bytes:
    """Eight bytes that differ where video, span or split do."""
    text = f"{row.split}\0{unsigned(row.path)}\0{row.start_s}\0{row.end_s}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def content_digest(video: bytes, captions: Sequence[str]) -> bytes:
    """Eight bytes that differ where `video_of` or the captions do."""
    return hashlib.blake2b(video + "\0".join(captions).encode(), digest_size=8).digest()


class Sorter:
    """Tables, taken in any order and given back sorted; all but a batch is held in files.

    Args:
        schema: of the tables.
        keys: columns to sort by; the first is uint64 and evenly spread.
    """

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._schema, self._keys = schema, list(keys)
        self._tables: list[pa.Table] = []
        self._num_rows = 0
        self._files: list[tuple[IO[bytes], pa.RecordBatchStreamWriter]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Take a table."""
        self._tables.append(table)
        self._num_rows += table.num_rows
        if self._num_rows >= _BATCH_ROWS:
            self._spill()

    def sorted(self, in_pieces: bool) -> Iterator[tuple[pa.Table, int | None]]:
        """Give the rows in order, as tables; each with the first key at which the next one begins at the earliest, None
        for the last one. Rows with equal first keys are in one table.

        Args:
            in_pieces: give many tables also where the rows fit in one, for merging with something large.
        """
        if self._files:
            self._spill()
            for number, (file, writer) in enumerate(self._files):
                with storage.storage_errors(tempfile.gettempdir()):
                    writer.close()
                    file.seek(0)
                with pa.ipc.open_stream(file) as stream:
                    table = self._sort(stream.read_all())
                file.close()
                yield table, _end(number)
            return
        table = self._sort(pa.concat_tables([self._schema.empty_table(), *self._tables]))
        if not in_pieces:
            yield table, None
            return
        first = table[self._keys[0]].to_numpy() >> _SHIFT
        cuts = np.searchsorted(first, np.arange(_NUM_FILES + 1))
        for number in range(_NUM_FILES):
            yield table.slice(cuts[number], cuts[number + 1] - cuts[number]), _end(number)

    def _sort(self, table: pa.Table) -> pa.Table:
        order = np.lexsort([table[name].to_numpy() for name in reversed(self._keys)])
        return table.take(order).combine_chunks()

    def _spill(self) -> None:
        """Move the rows taken so far to the files."""
        if not self._num_rows:
            return
        table = pa.concat_tables(self._tables)
        self._tables, self._num_rows = [], 0
        files = (table[self._keys[0]].to_numpy() >> _SHIFT).astype(np.int64)
        order = np.argsort(files, kind="stable")
        table, cuts = table.take(order), np.searchsorted(files[order], np.arange(_NUM_FILES + 1))
        with storage.storage_errors(tempfile.gettempdir()):
            if not self._files:
                self._open()
            for number, (_, writer) in enumerate(self._files):
                start, stop = int(cuts[number]), int(cuts[number + 1])
                if stop > start:
                    writer.write_table(table.slice(start, stop - start))

    def _open(self) -> None:
        """Nameless files: the system removes them with this process, however it ends."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        for _ in range(_NUM_FILES):
            file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            self._files.append((file, pa.ipc.new_stream(file, self._schema, options=options)))


class Spill(Sorter):
    """Clips, taken in any order and given back sorted by their key, those of one id in the order they came."""

    def __init__(self, seed: int) -> None:
        super().__init__(SORTED_SCHEMA, ("high", "low", "turn"))
        self._seed = seed
        self._rows: list[tuple[Any, ...]] = []
        self._digests: list[bytes] = []
        self._seen = bytearray(_SEEN_BITS // 8)
        self.num_rows = 0
        self.has_spans = False
        """Whether a clip is a part of its video, so that other clips may be parts of it too."""

    def take(self, row: ClipRow) -> None:
        """Take a clip."""
        key, video = order_key(self._seed, row.clip_id), video_of(row)
        bit = int.from_bytes(key[8:]) % _SEEN_BITS
        self._seen[bit >> 3] |= 1 << (bit & 7)
        is_part = row.start_s is not None or row.end_s is not None
        self.has_spans |= is_part
        origin = order_key(self._seed, unsigned(row.path))[:8] if is_part else key[:8]
        self._rows.append(_FIELDS(row))
        self._digests += [key, content_digest(video, row.captions), video, origin]
        self.num_rows += 1
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    @property
    def repeats(self) -> float:
        """Share of the rows whose id another row has, to a thousandth; by linear counting of the ids."""
        if not self.num_rows:
            return 0.0
        free = _SEEN_BITS - int(np.bitwise_count(np.frombuffer(self._seen, np.uint8)).sum())
        distinct = -_SEEN_BITS * np.log(max(free, 1) / _SEEN_BITS)
        return max(0.0, 1 - distinct / self.num_rows)

    def sorted(self, in_pieces: bool) -> Iterator[tuple[pa.Table, int | None]]:
        """Give the clips in order, as `Sorter` does; equal ids are in one table."""
        self._flush()
        return super().sorted(in_pieces)

    def _flush(self) -> None:
        """Make a table of the clips taken since the last one."""
        if not self._rows:
            return
        digests = np.frombuffer(b"".join(self._digests), ">u8").reshape(-1, 5).astype(np.uint64)
        high, low, content, video, origin = (pa.array(column) for column in digests.T)
        turns = pa.array(np.arange(self.num_rows - len(self._rows), self.num_rows))
        columns = list(zip(*self._rows, strict=True))
        columns[-1] = tuple(json.dumps(extra, ensure_ascii=False) if extra else "" for extra in columns[-1])
        arrays = [pa.array(values, kind) for values, kind in zip(columns, ROWS_SCHEMA.types, strict=True)]
        self._rows, self._digests = [], []
        parts = [high, low, turns, content, video, origin]
        self.add(pa.Table.from_arrays([*parts, *arrays], schema=SORTED_SCHEMA))


def _end(number: int) -> int | None:
    return (number + 1) << int(_SHIFT) if number + 1 < _NUM_FILES else None
