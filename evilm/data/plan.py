"""The plan of a sharding run: which clip goes into which shard, at which place.

A pure function of the manifest's rows and the seed: within each split, clips are sorted by a hash of (seed, clip_id)
and cut into shards. A plan grows by generations, each written once below `_plan/`: the first one, then the rows that
a manifest has gained, or quarantined clips that are tried again. Shards of earlier generations stay as they are.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evilm import storage
from evilm.data.known import DIGEST, DIGEST_SCHEMA, Known
from evilm.data.manifest import BadRow, ClipRow
from evilm.data.quarantine import OF_MANIFEST, Quarantine, Reasons
from evilm.data.spill import ROWS_SCHEMA, Spill
from evilm.errors import ManifestError
from evilm.video.reasons import Reason
from evilm.video.urls import public_uri

FOLDER = "_plan"
_PLAN = "plan.json"
_MOST_SPLITS = 1000
_UPLOADS = 8
Kind = Literal["rows", "retry"]


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be made."""

    name: str
    split: str
    num_rows: int


@dataclass(frozen=True)
class Generation:
    """Shards that were planned together, and the rows of the manifest that are in none."""

    number: int
    kind: Kind
    plan_id: str
    manifest: str
    """Which rows of which manifest were planned; '' for a retry."""
    num_rows: int
    """Rows of the whole manifest, good and bad; 0 for a retry."""
    shards: list[PlannedShard]
    reasons: Reasons
    """Of the rows put aside."""

    @property
    def num_planned(self) -> int:
        """Clips of all its shards."""
        return sum(shard.num_rows for shard in self.shards)

    def unit(self, shard: PlannedShard) -> str:
        """The name under which a job does one of its shards."""
        return f"{self.number:04d}/{shard.name}"


def read_generations(out: str) -> list[Generation]:
    """What was planned under `out`, in order; an attempt to plan that was killed is not there."""
    generations: list[Generation] = []
    names = storage.list_names(storage.join(out, FOLDER))
    while f"{len(generations):04d}" in names:
        try:
            data = storage.read_json(storage.join(folder(out, len(generations)), _PLAN))
        except FileNotFoundError:
            break
        shards = [PlannedShard(**shard) for shard in data.pop("shards")]
        generations.append(Generation(shards=shards, reasons=Reasons(**data.pop("reasons")), **data))
    return generations


def read_rows(out: str, unit: str) -> list[ClipRow]:
    """The rows planned for a unit, in order."""
    data = storage.read_bytes(storage.join(out, FOLDER, f"{unit}.parquet"))
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [_as_row(row) for row in rows]


def plan_rows(
    out: str,
    rows: Iterable[ClipRow | BadRow],
    manifest: str,
    earlier: Sequence[Generation],
    seed: int,
    shard_clips: int,
    is_missing: Callable[[ClipRow], bool],
) -> Generation:
    """Plan the rows of a manifest that are in no earlier generation; memory does not grow with their number.

    Args:
        out: where plan and quarantine go.
        rows: the whole manifest; of rows with one id, the first one counts.
        manifest: identity of the manifest.
        earlier: what was planned before.
        is_missing: whether a row's video is known not to exist; asked of rows whose id is taken.

    Raises:
        ConfigError: rows that were planned before are gone or say something else.
        ManifestError: too many splits.
    """
    with (
        Spill(seed) as spill,
        Quarantine(out, OF_MANIFEST) as quarantine,
        _Writer(out, earlier, shard_clips) as writer,
        Known([folder(out, plan.number) for plan in earlier if plan.kind == "rows"]) as known,
    ):
        num_rows = 0
        for num_rows, row in enumerate(rows, start=1):  # noqa: B007
            if isinstance(row, BadRow):
                quarantine.add(row)
            else:
                spill.add(row)
        for table, end in spill.sorted(in_pieces=not known.is_empty):
            first = _is_first(table)
            for row, head in _doubles(table, first):
                quarantine.add(_refused(row, head, is_missing))
            table = table.filter(first)
            writer.add(table.filter(pa.array(known.is_new(table, end))))
        known.enforce(out)
        generation = writer.finish("rows", manifest, num_rows, quarantine.reasons)
        quarantine.publish()
        return writer.publish(generation)


def plan_retry(
    out: str, rows: Iterable[ClipRow], earlier: Sequence[Generation], seed: int, shard_clips: int
) -> Generation | None:
    """Plan clips once more that were planned before and quarantined; None where there are none."""
    with Spill(seed) as spill, _Writer(out, earlier, shard_clips) as writer:
        for row in rows:
            spill.add(row)
        if not spill.num_rows:
            return None
        for table, _ in spill.sorted(in_pieces=False):
            writer.add(table)
        return writer.publish(writer.finish("retry", "", 0, Reasons()))


def forget_plans(out: str) -> None:
    """Make the next run plan anew."""
    storage.delete(storage.join(out, FOLDER))


def folder(out: str, number: int) -> str:
    """Where a generation lies."""
    return storage.join(out, FOLDER, f"{number:04d}")


def _is_first(table: pa.Table) -> pa.Array:
    """Of sorted rows, those whose id the row before does not have."""
    ids = table["clip_id"].combine_chunks()
    if len(ids) < 2:
        return pa.array(np.ones(len(ids), bool))
    return pa.concat_arrays([pa.array([True]), pc.call_function("not_equal", [ids[1:], ids[:-1]])])


def _doubles(table: pa.Table, first: pa.Array) -> Iterator[tuple[ClipRow, ClipRow]]:
    """The rows whose id an earlier row has, each with the first row of that id."""
    is_first, table = first.to_numpy(zero_copy_only=False), table.select(ROWS_SCHEMA.names)
    heads = np.maximum.accumulate(np.where(is_first, np.arange(len(first)), 0))
    places = np.flatnonzero(~is_first)
    rows, firsts = (table.take(chosen).to_pylist() for chosen in (places, heads[places]))
    for row, head in zip(rows, firsts, strict=True):
        yield _as_row(row), _as_row(head)


def _as_row(values: dict[str, Any]) -> ClipRow:
    return ClipRow(**values | {"extra": json.loads(values["extra"] or "{}")})


def _refused(row: ClipRow, head: ClipRow, is_missing: Callable[[ClipRow], bool]) -> BadRow:
    """A row whose id is taken. Where it names another video that does not exist, that is the reason to tell."""
    reason = Reason.DUPLICATE_ID
    detail = f"record {head.record}" + (f" of {head.source}" if head.source else "") + " has this id"
    if row.path != head.path and is_missing(row):
        reason, detail = Reason.MISSING_FILE, f"and {detail}"
    return BadRow(row.record, row.clip_id, reason, detail, row.split, public_uri(row.path), row.source)


class _Writer:
    """Cuts sorted rows into shards and writes a file of rows for each; holds less than a shard of each split."""

    def __init__(self, out: str, earlier: Sequence[Generation], shard_clips: int) -> None:
        self._out, self._number, self._shard_clips = out, len(earlier), shard_clips
        self._folder = folder(out, self._number)
        self._next: dict[str, int] = {}
        for shard in (shard for plan in earlier for shard in plan.shards):
            self._next[shard.split] = max(self._next.get(shard.split, 0), int(shard.name.rpartition("-")[2]) + 1)
        self._waiting: dict[str, pa.Table] = {}
        self._shards: dict[PlannedShard, str] = {}
        self._uploads: list[Future[None]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        storage.delete(self._folder)  # of an attempt to plan that was killed
        with contextlib.ExitStack() as stack:
            self._digest = stack.enter_context(storage.temporary(storage.join(self._folder, DIGEST)))
            self._entries = pq.ParquetWriter(self._digest, DIGEST_SCHEMA, compression="zstd", use_dictionary=False)
            stack.callback(self._entries.close)
            self._pool = stack.enter_context(ThreadPoolExecutor(_UPLOADS))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Take rows that come after all that were taken, in the order of their keys."""
        if not table.num_rows:
            return
        with storage.explained(self._digest):
            self._entries.write_table(table.select(DIGEST_SCHEMA.names).cast(DIGEST_SCHEMA))
        for split in sorted(table["split"].unique().to_pylist()):
            part = table.filter(pc.call_function("equal", [table["split"], pa.scalar(split)]))
            self._waiting[split] = pa.concat_tables([*filter(None, [self._waiting.get(split)]), part])
            if len(self._waiting) > _MOST_SPLITS:
                raise ManifestError(
                    f"the manifest has more than {_MOST_SPLITS} splits, e.g. {split!r}; name the right column with "
                    "--columns.split, or none with --columns.split ''"
                )
            while self._waiting[split].num_rows >= self._shard_clips:
                self._cut(split)

    def finish(self, kind: Kind, manifest: str, num_rows: int, reasons: Reasons) -> Generation:
        """Cut what is left."""
        for split in sorted(self._waiting):
            if self._waiting[split].num_rows:
                self._cut(split)
        self._wait_for(0)
        shards = sorted(self._shards, key=lambda shard: (shard.split, int(shard.name.rpartition("-")[2])))
        digest = hashlib.sha256()
        for shard in shards:
            digest.update(f"{shard.name} {self._shards[shard]}\n".encode())
        return Generation(self._number, kind, digest.hexdigest()[:16], manifest, num_rows, shards, reasons)

    def publish(self, generation: Generation) -> Generation:
        """From now on the generation is planned."""
        with storage.explained(self._digest):
            self._entries.close()
        storage.put_file(self._digest, storage.join(self._folder, DIGEST))
        storage.write_json(storage.join(self._folder, _PLAN), asdict(generation))
        return generation

    def _cut(self, split: str) -> None:
        """Write the next shard's rows."""
        waiting, number = self._waiting[split], self._next.get(split, 0)
        rows, self._waiting[split] = waiting.slice(0, self._shard_clips), waiting.slice(self._shard_clips)
        self._next[split] = number + 1
        name = f"{split}-{number:05d}"
        self._shards[PlannedShard(name, split, rows.num_rows)] = _digest_of(rows)
        uri = storage.join(self._folder, f"{name}.parquet")
        self._uploads.append(self._pool.submit(_write_rows, uri, rows.select(ROWS_SCHEMA.names)))
        self._wait_for(2 * _UPLOADS)

    def _wait_for(self, most: int) -> None:
        """Go on when at most so many files are on their way."""
        while len(self._uploads) > most:
            self._uploads.pop(0).result()


def _digest_of(rows: pa.Table) -> str:
    """Digest of which clips, with which captions and files, are in a shard."""
    digest = hashlib.sha256(rows["content"].to_numpy().astype(">u8").tobytes())
    for name in ("clip_id", "extra"):
        digest.update("\0".join(rows[name].to_pylist()).encode() + b"\0")
    return digest.hexdigest()


def _write_rows(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
