"""Ids that earlier generations planned: compact sorted digests, streamed beside a manifest's sorted rows."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilm.errors import ConfigError
from evilm.ingest.external_sort import high_key
from evilm.io import storage

DIGEST = "digest.parquet"
"""Beside the rows of a generation: all its clips, sorted by key."""
DIGEST_SCHEMA = pa.schema([("high", pa.uint64()), ("clip_id", pa.string()), ("content", pa.uint64())])
_BATCH_ROWS = 1 << 15


class PlannedIds:
    """Compares the sorted rows of a manifest with the digests of earlier generations."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.is_empty = not folders
        self._uris = [storage.join(folder, DIGEST) for folder in folders]
        self._changed = self._gone = 0
        self._changed_id = self._gone_id = ""

    def __enter__(self) -> Self:
        self._copies = tempfile.TemporaryDirectory(prefix="evilm-")
        paths = [f"{self._copies.name}/{number}" for number in range(len(self._uris))]
        for uri, path in zip(self._uris, paths, strict=True):
            storage.get_file(uri, path)
        self._digests = [_Digest(path) for path in paths]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._copies.cleanup()

    def is_new(self, table: pa.Table, end: int | None) -> np.ndarray:
        """Return which rows no generation planned.

        Args:
            table: rows in order, without doubles; the next ones after those of the last call.
            end: all rows below this key are here; None for the last table.
        """
        known = {clip_id: content for digest in self._digests for clip_id, content in digest.until(end)}
        new = np.ones(table.num_rows, bool)
        if not known:
            return new
        for index, (clip_id, content) in enumerate(_entries(table)):
            if (before := known.pop(clip_id, None)) is None:
                continue
            new[index] = False
            if before != content:
                self._changed += 1
                self._changed_id = self._changed_id or clip_id
        if known:
            self._gone += len(known)
            self._gone_id = self._gone_id or min(known)
        return new

    def enforce(self, out: str) -> None:
        """Refuse a manifest that takes back what was planned.

        Raises:
            ConfigError: rows changed or went away; says how many.
        """
        complaints = []
        if self._changed:
            complaints.append(
                f"{self._changed:,} rows have another caption, path, span or split, e.g. of {self._changed_id!r}"
            )
        if self._gone:
            complaints.append(f"{self._gone:,} rows are gone or cut off by --limit, e.g. {self._gone_id!r}")
        if complaints:
            raise ConfigError(
                f"the manifest is not the one that {out} was made from, with rows added: {' and '.join(complaints)}; "
                "--overwrite makes all anew, or choose another --out"
            )


class _Digest:
    """A digest that is read once, front to back."""

    def __init__(self, path: str) -> None:
        self._batches = pq.ParquetFile(path).iter_batches(_BATCH_ROWS)
        self._rest: pa.RecordBatch | None = None

    def until(self, end: int | None) -> Iterator[tuple[str, int]]:
        """Clips and contents that come next, those below the key `end`."""
        while True:
            batch = self._rest or next(self._batches, None)
            if batch is None:
                return
            stop = batch.num_rows if end is None else int(np.searchsorted(batch["high"].to_numpy(), np.uint64(end)))
            yield from _entries(batch.slice(0, stop))
            self._rest = batch.slice(stop) if stop < batch.num_rows else None
            if self._rest is not None:
                return


def _entries(table: pa.Table | pa.RecordBatch) -> Iterable[tuple[str, int]]:
    return zip(table["clip_id"].to_pylist(), table["content"].to_numpy().tolist(), strict=True)


class Retried:
    """Clips that a later generation planned again: eight bytes for each."""

    def __init__(self, folders: dict[int, str], seed: int) -> None:
        self._seed = seed
        self._keys: dict[int, np.ndarray] = {}
        for number, folder in folders.items():
            with tempfile.TemporaryDirectory(prefix="evilm-") as copies:
                copy = Path(copies) / DIGEST
                storage.get_file(storage.join(folder, DIGEST), str(copy))
                self._keys[number] = pq.read_table(copy, columns=["high"])["high"].to_numpy()

    def after(self, generation: int, clip_id: str) -> bool:
        """Return whether a clip of a generation was tried again in a later one, whose result counts."""
        later = [keys for number, keys in self._keys.items() if number > generation]
        if not later:
            return False
        key = np.uint64(high_key(self._seed, clip_id))
        places = ((keys, int(np.searchsorted(keys, key))) for keys in later)
        return any(place < len(keys) and keys[place] == key for keys, place in places)
