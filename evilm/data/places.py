"""Where the videos of planned clips are now: URLs as they were signed last, offsets in tars that were written anew.

Plans hold no secrets and may be older than what they name, so the driver reads the manifest once more for the shards
that are left. What it finds lies in a file without a name, which tasks are given their part of and nobody else sees.
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

from evilm.config.secrets import unsigned
from evilm.data.manifest import BadRow, ClipRow
from evilm.data.plan import read_rows

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """Where a clip's video is now; the fields of a `ClipRow`."""

    path: str
    url: str
    offset: int
    num_bytes: int


def put_places(rows: Sequence[ClipRow], found: Sequence[Sequence[Any]]) -> Iterator[ClipRow]:
    """Put what was found into planned rows; what was not found is an empty list."""
    for row, place in zip(rows, found, strict=True):
        yield dataclasses.replace(row, **Found(*place)._asdict()) if place else row


class Places:
    """By task, where the videos of its clips are now. A context manager."""

    def __init__(self, out: str, tasks: Sequence[str], rows: Iterable[ClipRow | BadRow]) -> None:
        """Look for the clips of `tasks` of the output `out` in the rows of the manifest."""
        logger.info("looking up where the videos of %d shards are", len(tasks))
        self._file = tempfile.TemporaryFile(prefix="evilm-")  # noqa: SIM115
        self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        """Readable by processes of this user for as long as the block lasts."""
        self.index: dict[str, tuple[int, int]] = {}
        """Of each task, offset and length of its part: JSON, a list per row."""
        descriptor, name = tempfile.mkstemp(prefix="evilm-")
        os.close(descriptor)
        with contextlib.closing(sqlite3.connect(name)) as database:
            database.execute("CREATE TABLE clips (id TEXT PRIMARY KEY, task TEXT, number INT, video TEXT, place TEXT)")
            os.unlink(name)  # it lasts for as long as it is open
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = MEMORY"):
                database.execute(f"PRAGMA {pragma}")
            _look_up(database, out, tasks, rows)
            for task in tasks:
                places = database.execute("SELECT place FROM clips WHERE task = ? ORDER BY number", (task,))
                data = f"[{','.join(place for (place,) in places)}]".encode()
                self.index[task] = (self._file.tell(), len(data))
                self._file.write(data)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _look_up(database: sqlite3.Connection, out: str, tasks: Sequence[str], rows: Iterable[ClipRow | BadRow]) -> None:
    """Fill a table with the planned clips and their places."""
    for task in tasks:
        planned = enumerate(read_rows(out, task))
        values = ((row.clip_id, task, number, row.path, "[]") for number, row in planned)
        database.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?, ?)", values)
    database.execute("CREATE INDEX of_task ON clips (task, number)")
    found = (row for row in rows if isinstance(row, ClipRow))
    update = "UPDATE clips SET place = ? WHERE id = ? AND video = ? AND place = '[]'"  # of rows with one id, the first
    database.executemany(
        update,
        (
            (json.dumps([row.path, row.url, row.offset, row.num_bytes]), row.clip_id, unsigned(row.path))
            for row in found
        ),
    )
