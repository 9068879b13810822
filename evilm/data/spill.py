"""Sorting clips by a hash of their ids without holding them: rows go to temporary files by the first byte of the hash,
and one file at a time is sorted in memory. With 256 files, ten million clips make pieces of some 40,000 rows."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from operator import attrgetter
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from evilm import storage
from evilm.data.manifest import ClipRow

ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("record", pa.int64()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
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
        *ROWS_SCHEMA,
    ]
)
_FIELDS = attrgetter(*ROWS_SCHEMA.names)
_BATCH_ROWS = 1 << 14
_NUM_FILES = 256
_SHIFT = np.uint64(56)


def order_key(seed: int, clip_id: str) -> bytes:
    """Where a clip comes in the order of its split."""
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def high_key(seed: int, clip_id: str) -> int:
    """The leading 64 bits of `order_key`."""
    return int.from_bytes(order_key(seed, clip_id)[:8])


def content_of(row: ClipRow) -> bytes:
    """Eight bytes that differ where caption, video, span or split do; not by where in which manifest a clip stands."""
    text = f"{row.split}\0{row.path}\0{row.start_s}\0{row.end_s}\0{row.caption}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class Spill:
    """Clips, taken in any order and given back sorted by their key, those of one id in the order they came."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rows: list[tuple[Any, ...]] = []
        self._keys: list[bytes] = []
        self._contents: list[bytes] = []
        self._files: list[tuple[IO[bytes], pa.RecordBatchStreamWriter]] = []
        self._stack = ExitStack()
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def add(self, row: ClipRow) -> None:
        """Take a clip."""
        self._rows.append(_FIELDS(row))
        self._keys.append(order_key(self._seed, row.clip_id))
        self._contents.append(content_of(row))
        self.num_rows += 1
        if len(self._rows) == _BATCH_ROWS:
            self._spill()

    def sorted(self, in_pieces: bool) -> Iterator[tuple[pa.Table, int | None]]:
        """The clips in order, as tables of `SORTED_SCHEMA`; each with the key at which the next one begins at the
        earliest, None for the last one. Equal ids are in one table.

        Args:
            in_pieces: give many tables also where the clips fit in one, for merging with something large.
        """
        if self._files:
            self._spill()
            for number, (file, writer) in enumerate(self._files):
                with storage.explained(tempfile.gettempdir()):
                    writer.close()
                    file.seek(0)
                with pa.ipc.open_stream(file) as stream:
                    table = _sort(stream.read_all())
                file.close()
                yield table, _end(number)
            return
        table = _sort(self._table())
        if not in_pieces:
            yield table, None
            return
        first = table["high"].to_numpy() >> _SHIFT
        cuts = np.searchsorted(first, np.arange(_NUM_FILES + 1))
        for number in range(_NUM_FILES):
            yield table.slice(cuts[number], cuts[number + 1] - cuts[number]), _end(number)

    def _table(self) -> pa.Table:
        """The clips taken since the last spill."""
        keys = np.frombuffer(b"".join(self._keys), ">u8").reshape(-1, 2).astype(np.uint64)
        turns = np.arange(self.num_rows - len(self._rows), self.num_rows)
        contents = np.frombuffer(b"".join(self._contents), ">u8").astype(np.uint64)
        columns = list(zip(*self._rows, strict=True)) or [()] * len(ROWS_SCHEMA)
        columns[-1] = tuple(json.dumps(extra, ensure_ascii=False) if extra else "" for extra in columns[-1])
        arrays = [pa.array(values, kind) for values, kind in zip(columns, ROWS_SCHEMA.types, strict=True)]
        self._rows, self._keys, self._contents = [], [], []
        parts = [pa.array(part) for part in (keys[:, 0], keys[:, 1], turns, contents)]
        return pa.Table.from_arrays([*parts, *arrays], schema=SORTED_SCHEMA)

    def _spill(self) -> None:
        """Move the clips taken so far to the files."""
        if not self._rows:
            return
        table = self._table()
        files = (table["high"].to_numpy() >> _SHIFT).astype(np.int64)
        order = np.argsort(files, kind="stable")
        table, cuts = table.take(order), np.searchsorted(files[order], np.arange(_NUM_FILES + 1))
        with storage.explained(tempfile.gettempdir()):
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
            self._files.append((file, pa.ipc.new_stream(file, SORTED_SCHEMA, options=options)))


def _sort(table: pa.Table) -> pa.Table:
    high, low, turn = (table[name].to_numpy() for name in ("high", "low", "turn"))
    return table.take(np.lexsort((turn, low, high))).combine_chunks()


def _end(number: int) -> int | None:
    return (number + 1) << int(_SHIFT) if number + 1 < _NUM_FILES else None
