"""Stream quarantined rows to a table, and count them by reason with an example of each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from evilm.config.secrets import public_uri
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.manifests.manifest_files import is_tar
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.reasons import RejectReason

FOLDER = "quarantine"
OF_MANIFEST, OF_CLIPS = "manifest", "clips"
"""Tables of rows rejected for the manifest and of rows rejected for their videos."""
SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # the manifest, if there are several
        ("record", pa.int64()),  # number in the manifest, counted from 1 after the header
        ("clip_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),  # below the video root
    ]
)
_FIELDS = attrgetter(*SCHEMA.names)
_GROUP_ROWS = 4096
_DETAIL_CHARS = 500


@dataclass
class RejectCounts:
    """Number of quarantined rows by reason, with the first row of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Clip id (or record number) and detail."""

    def add(self, row: BadRow) -> None:
        """Count a row."""
        reason = str(row.reason)
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if reason not in self.examples:
            name = row.clip_id or f"record {row.record}"
            self.examples[reason] = [name[:100], row.detail[:_DETAIL_CHARS]]

    def merge(self, other: "RejectCounts") -> None:
        """Add the counts of another object."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.examples.setdefault(reason, other.examples[reason])

    @property
    def total(self) -> int:
        """Return the number of rows of all reasons."""
        return sum(self.counts.values())

    def sorted(self) -> dict[str, int]:
        """Return the counts by reason, the most frequent first."""
        return dict(sorted(self.counts.items(), key=lambda item: (-item[1], item[0])))

    def top(self, most: int = 3) -> str:
        """Return the most frequent reasons in one line, each with an example and its detail."""
        shown = []
        for reason, count in list(self.sorted().items())[:most]:
            name, detail = self.examples[reason]
            shown.append(f"{reason} {count}, e.g. {name!r}" + (f": {' '.join(detail.split())[:160]}" if detail else ""))
        return "; ".join(shown)

    def table(self, most: int = 10) -> list[str]:
        """Return the lines of a table: reason, count, example."""
        lines = []
        for reason, count in list(self.sorted().items())[:most]:
            name, detail = self.examples[reason]
            lines.append(f"{reason:<22}{count:>10,}  e.g. {name!r}" + (f": {detail[:120]}" if detail else ""))
        left = len(self.counts) - most
        return lines + ([f"and {left} more reasons"] if left > 0 else [])


class Quarantine:
    """A table of quarantined rows, `quarantine/<name>.parquet`; the file appears when it is published."""

    def __init__(self, out: str, name: str) -> None:
        self._uri = storage.join(out, FOLDER, f"{name}.parquet")
        self.reasons = RejectCounts()
        self._rows: list[tuple[Any, ...]] = []
        self._open = storage.temporary(self._uri)

    def __enter__(self) -> Self:
        self._path = self._open.__enter__()
        self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._open.__exit__(kind, error, at)

    def add(self, row: BadRow) -> None:
        """Quarantine a row."""
        self.reasons.add(row)
        self._rows.append(_FIELDS(row))
        if len(self._rows) == _GROUP_ROWS:
            self._flush()

    def extend(self, rows: Iterable[BadRow]) -> None:
        """Quarantine rows."""
        for row in rows:
            self.add(row)

    def publish(self, output: Output) -> None:
        """Publish the table, or delete that of an earlier run if this one is empty.

        Raises:
            OwnershipError: another run has taken the output over.
        """
        self._flush()
        with storage.storage_errors(self._uri):
            self._writer.close()
        output.check()
        if self.reasons.counts:
            storage.put_file(self._path, self._uri)
        else:
            storage.delete(self._uri)

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(values, kind) for values, kind in zip(zip(*self._rows, strict=True), SCHEMA.types, strict=True)
            ]
            with storage.storage_errors(str(Path(self._path).parent)):
                self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
            self._rows.clear()


def repeated_row(row: ClipRow, first: ClipRow, is_caption: bool, is_missing: Callable[[ClipRow], bool]) -> BadRow:
    """Reject a row whose id is taken. If it names another video that does not exist, that is the reason reported."""
    reason = RejectReason.DUPLICATE_ID
    detail = f"record {first.record}" + (f" of {first.source}" if first.source else "") + " has this id"
    if is_caption:
        detail += " and video, and other captions; --columns.repeats captions joins them"
    elif row.offset != first.offset and row.path == first.path:
        detail += " and another video; give the tars one by one instead of joined to one"
    elif row.source != first.source and is_tar(row.source) and is_tar(first.source):
        detail += "; if keys are unique only within a tar, use --columns.videoid ''"
    if row.path != first.path and is_missing(row):
        reason, detail = RejectReason.MISSING_FILE, f"and {detail}"
    return BadRow(row.record, row.clip_id, reason, detail, row.split, public_uri(row.path), row.source)
