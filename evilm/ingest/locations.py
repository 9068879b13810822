"""Find the current locations of planned videos: URLs with the latest signature, offsets in rewritten tars.

Plans hold no secrets and may be older than the files they name, so the driver reads the manifest again for the shards
that are not finished. The locations are kept in an unnamed temporary file and never published.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from evilm.config.secrets import stored_url
from evilm.errors import ShardError
from evilm.ingest.shard_plan import read_rows
from evilm.io.temporary import nameless_file
from evilm.manifests.rows import BadRow, ClipRow

logger = logging.getLogger(__name__)

_TABLE = "CREATE TABLE clips (id TEXT, task TEXT, number INT, video TEXT, location TEXT, PRIMARY KEY (id, task))"


class Location(NamedTuple):
    """Location of a clip's video; the fields of a `ClipRow`."""

    path: str
    url: str
    offset: int
    num_bytes: int


def apply_locations(rows: Sequence[ClipRow], found: Sequence[Sequence[Any]]) -> Iterator[ClipRow]:
    """Replace the locations of planned rows by those found; an empty list keeps the planned location."""
    for row, location in zip(rows, found, strict=True):
        yield dataclasses.replace(row, **Location(*location)._asdict()) if location else row


class VideoLocations:
    """Locations of the videos of each task's clips. A context manager."""

    def __init__(self, out: str, tasks: Sequence[str], rows: Iterable[ClipRow | BadRow]) -> None:
        """Look up the clips of `tasks` of the output `out` in the rows of the manifest.

        Raises:
            ShardError: no space for temporary files.
        """
        logger.info("looking up the videos of %d shards in the manifest", len(tasks))
        self.records: dict[str, tuple[int, int]] = {}
        """Offset and length of each task's record in the file, which is a JSON list with an item per row."""
        self._file, self.path = nameless_file()
        """`path` can be read by processes of this user on this machine until the block ends."""
        try:
            with contextlib.closing(_database()) as database:
                _look_up(database, out, tasks, rows)
                for task in tasks:
                    query = "SELECT location FROM clips WHERE task = ? ORDER BY number"
                    data = f"[{','.join(location for (location,) in database.execute(query, (task,)))}]".encode()
                    self.records[task] = (self._file.tell(), len(data))
                    self._file.write(data)
            self._file.flush()
        except (sqlite3.Error, OSError) as error:
            self._file.close()
            raise ShardError(f"cannot write to {tempfile.gettempdir()}: {error}; free space or set TMPDIR") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _database() -> sqlite3.Connection:
    """Return a database whose file is unlinked, so that it is removed when this process ends."""
    descriptor, name = tempfile.mkstemp(prefix="evilm-")
    os.close(descriptor)
    database = sqlite3.connect(name)
    database.execute(_TABLE)
    os.unlink(name)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = MEMORY"):
        database.execute(f"PRAGMA {pragma}")
    return database


def _look_up(database: sqlite3.Connection, out: str, tasks: Sequence[str], rows: Iterable[ClipRow | BadRow]) -> None:
    """Fill the table with planned clips and their locations in the manifest; the first row of an id counts."""
    for task in tasks:
        planned = enumerate(read_rows(out, task))
        values = ((row.clip_id, task, number, stored_url(row.path), "[]") for number, row in planned)
        database.executemany("INSERT INTO clips VALUES (?, ?, ?, ?, ?)", values)
    database.execute("CREATE INDEX of_task ON clips (task, number)")
    found = (row for row in rows if isinstance(row, ClipRow))
    database.executemany(
        "UPDATE clips SET location = ? WHERE id = ? AND video = ? AND location = '[]'",
        (
            (json.dumps(Location(row.path, row.url, row.offset, row.num_bytes)), row.clip_id, stored_url(row.path))
            for row in found
        ),
    )
