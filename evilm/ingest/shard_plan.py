"""The plan of a sharding run: which clip goes into which shard, at which place.

A pure function of the manifest's rows and the seed: within each split, clips are sorted by a hash of (seed, clip_id)
and cut into shards. A plan grows by generations: the first one, then the rows that a manifest has gained, or
quarantined clips that are tried again. Shards of earlier generations stay as they are. A generation is planned once
`_plan/<number>.json` is put, only where none is; its rows lie in a folder of the run that wrote them.
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

from evilm.config.base import fingerprint
from evilm.config.secrets import public_uri, unsigned
from evilm.errors import ManifestError, OwnershipError
from evilm.ingest.external_sort import ROWS_SCHEMA, SORTED_SCHEMA, Sorter, Spill, content_digest
from evilm.ingest.planned_ids import DIGEST, DIGEST_SCHEMA, PlannedIds
from evilm.ingest.quarantine import OF_MANIFEST, Quarantine, RejectCounts
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs.commits import Unit
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.reasons import RejectReason

FOLDER = "_plan"
_BY_SOURCE = ("origin", "high", "low")
_MOST_SPLITS = 1000
_UPLOADS = 8
_URLS = ("path", "url")
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
    folder: str
    """Of its rows, below `_plan/`."""
    kind: Kind
    plan_id: str
    """Digest of the settings and of the rows in each shard."""
    manifest: str
    """Which rows of which manifest were planned; '' for a retry."""
    num_rows: int
    """Rows of the whole manifest, good and bad; 0 for a retry."""
    shards: list[PlannedShard]
    reasons: RejectCounts
    """Of the rows quarantined."""
    has_secrets: bool = False
    """Whether clips are fetched by URLs with signatures or passwords, which the plan does not hold."""
    has_offsets: bool = False
    """Whether clips lie in tars."""

    @property
    def num_planned(self) -> int:
        """Clips of all its shards."""
        return sum(shard.num_rows for shard in self.shards)

    def task(self, shard: PlannedShard) -> str:
        """Name the task of a job that makes one of its shards."""
        return f"{self.folder}/{shard.name}"

    def unit(self, shard: PlannedShard) -> Unit:
        """Return what a shard is committed as."""
        return Unit(shard.name, self.plan_id)


def read_generations(out: str) -> list[Generation]:
    """Return what was planned under `out`, in order; an attempt to plan that was killed is not there."""
    generations: list[Generation] = []
    names = storage.list_names(storage.join(out, FOLDER))
    while f"{len(generations):04d}.json" in names:
        data = storage.read_json(_place(out, len(generations)))
        shards = [PlannedShard(**shard) for shard in data.pop("shards")]
        generations.append(Generation(shards=shards, reasons=RejectCounts(**data.pop("reasons")), **data))
    return generations


def read_rows(out: str, task: str) -> list[ClipRow]:
    """The rows planned for the shard of a task, in order."""
    data = storage.read_bytes(storage.join(out, FOLDER, f"{task}.parquet"))
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [_as_row(row) for row in rows]


def plan_rows(
    output: Output,
    rows: Iterable[ClipRow | BadRow],
    manifest: str,
    earlier: Sequence[Generation],
    seed: int,
    shard_clips: int,
    is_missing: Callable[[ClipRow], bool],
    repeats: Literal["auto", "captions", "duplicates"] = "auto",
) -> Generation:
    """Plan the rows of a manifest that are in no earlier generation; memory does not grow with their number.

    Args:
        output: where plan and quarantine go.
        rows: the whole manifest; of rows with one id, the first one counts.
        manifest: identity of the manifest.
        earlier: what was planned before.
        is_missing: whether a row's video is known not to exist; asked of rows whose id is taken.
        repeats: what rows with the id and the video of another row are (`ColumnsConfig.repeats`).

    Raises:
        ConfigError: rows that were planned before are gone or say something else.
        ManifestError: too many splits.
        OwnershipError: another run has taken the output over.
    """
    out = output.out
    with (
        Spill(seed) as spill,
        Sorter(SORTED_SCHEMA, _BY_SOURCE) as by_source,
        Quarantine(out, OF_MANIFEST) as quarantine,
        _Writer(output, earlier, shard_clips) as writer,
        PlannedIds([folder(out, plan) for plan in earlier if plan.kind == "rows"]) as known,
    ):
        num_rows = 0
        for num_rows, row in enumerate(rows, start=1):  # noqa: B007
            if isinstance(row, BadRow):
                quarantine.add(row)
            else:
                spill.take(row)
        are_captions = repeats == "captions" or (repeats == "auto" and spill.repeats > 0.5)
        for table, end in spill.sorted(in_pieces=not known.is_empty):
            table, first = _merged(table) if are_captions else (table, _is_first(table))
            for row, head in _doubles(table, first):
                quarantine.add(_refused(row, head, is_missing))
            table = table.filter(first)
            table = table.filter(pa.array(known.is_new(table, end)))
            writer.note(table)
            if spill.has_spans:
                by_source.add(table)
            else:
                writer.add(table)
        known.enforce(out)
        for table, _ in by_source.sorted(in_pieces=False):
            writer.add(table)
        generation = writer.finish("rows", manifest, num_rows, quarantine.reasons)
        quarantine.publish()
        return writer.publish(generation)


def plan_retry(
    output: Output, rows: Iterable[ClipRow], earlier: Sequence[Generation], seed: int, shard_clips: int
) -> Generation | None:
    """Plan clips once more that were planned before and quarantined; None where there are none."""
    with (
        Spill(seed) as spill,
        Sorter(SORTED_SCHEMA, _BY_SOURCE) as by_source,
        _Writer(output, earlier, shard_clips) as writer,
    ):
        for row in rows:
            spill.take(row)
        if not spill.num_rows:
            return None
        for table, _ in spill.sorted(in_pieces=False):
            writer.note(table)
            by_source.add(table)
        for table, _ in by_source.sorted(in_pieces=False):
            writer.add(table)
        return writer.publish(writer.finish("retry", "", 0, RejectCounts()))


def forget_plans(output: Output) -> None:
    """Make this run plan anew."""
    output.check()
    storage.delete(storage.join(output.out, FOLDER))


def folder(out: str, generation: Generation) -> str:
    """Return the folder of a generation's rows."""
    return storage.join(out, FOLDER, generation.folder)


def _place(out: str, number: int) -> str:
    return storage.join(out, FOLDER, f"{number:04d}.json")


def _merged(table: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Join sorted rows that are one clip with several captions: of one id, video, span and split.

    Returns:
        The rows that are left, and which of them are the first of their id.
    """
    first = _is_first(table).to_numpy(zero_copy_only=False)
    heads = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    video = table["video"].to_numpy()
    more = np.flatnonzero(~first & (video == video[heads])) if len(first) else heads
    if not len(more):
        return table, pa.array(first)
    captions, contents = table["captions"].to_pylist(), table["content"].to_numpy().copy()
    kept = np.ones(len(first), bool)
    for row in more:
        own = captions[heads[row]]
        fresh = [caption for caption in captions[row] if caption not in own]
        own += fresh
        kept[row] = not fresh  # a row that says nothing new is a double
    for head in np.unique(heads[~kept]):
        contents[head] = int.from_bytes(content_digest(int(video[head]).to_bytes(8, "big"), captions[head]))
    for name, values in (("captions", pa.array(captions, pa.list_(pa.string()))), ("content", pa.array(contents))):
        table = table.set_column(table.column_names.index(name), name, values)
    return table.filter(pa.array(kept)).combine_chunks(), pa.array(first[kept])


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
    parsed = {"captions": tuple(values["captions"]), "extra": json.loads(values["extra"] or "{}")}
    return ClipRow(**values | parsed)


def _refused(row: ClipRow, head: ClipRow, is_missing: Callable[[ClipRow], bool]) -> BadRow:
    """A row whose id is taken. Where it names another video that does not exist, that is the reason to tell."""
    reason = RejectReason.DUPLICATE_ID
    detail = f"record {head.record}" + (f" of {head.source}" if head.source else "") + " has this id"
    if row.path != head.path and is_missing(row):
        reason, detail = RejectReason.MISSING_FILE, f"and {detail}"
    return BadRow(row.record, row.clip_id, reason, detail, row.split, public_uri(row.path), row.source)


class _Writer:
    """Cuts sorted rows into shards and writes a file of rows for each; holds less than a shard of each split."""

    def __init__(self, output: Output, earlier: Sequence[Generation], shard_clips: int) -> None:
        self._output, self._earlier, self._number, self._shard_clips = output, earlier, len(earlier), shard_clips
        self._name = f"{self._number:04d}-{output.run:05d}"
        self._folder = storage.join(output.out, FOLDER, self._name)
        self._next: dict[str, int] = {}
        for shard in (shard for plan in earlier for shard in plan.shards):
            self._next[shard.split] = max(self._next.get(shard.split, 0), int(shard.name.rpartition("-")[2]) + 1)
        self._waiting: dict[str, pa.Table] = {}
        self._shards: dict[PlannedShard, str] = {}
        self._has_secrets = self._has_offsets = False
        self._uploads: list[Future[None]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._digest = stack.enter_context(storage.temporary(storage.join(self._folder, DIGEST)))
            self._entries = pq.ParquetWriter(self._digest, DIGEST_SCHEMA, compression="zstd", use_dictionary=False)
            stack.callback(self._entries.close)
            self._pool = stack.enter_context(ThreadPoolExecutor(_UPLOADS))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def note(self, table: pa.Table) -> None:
        """Add rows to the digest, in the order of their ids' keys."""
        if table.num_rows:
            with storage.storage_errors(storage.join(self._folder, DIGEST)):
                self._entries.write_table(table.select(DIGEST_SCHEMA.names).cast(DIGEST_SCHEMA))

    def add(self, table: pa.Table) -> None:
        """Take rows that come after all that were taken, clips of one source after the other."""
        for split in sorted(table["split"].unique().to_pylist()):
            part = table.filter(pc.call_function("equal", [table["split"], pa.scalar(split)]))
            self._waiting[split] = pa.concat_tables([*filter(None, [self._waiting.get(split)]), part])
            if len(self._waiting) > _MOST_SPLITS:
                raise ManifestError(
                    f"the manifest has more than {_MOST_SPLITS} splits, e.g. {split!r}; name the right column with "
                    "--columns.split, or none with --columns.split ''"
                )
            while size := self._shard_size(self._waiting[split]):
                self._cut(split, size)

    def _shard_size(self, waiting: pa.Table) -> int:
        """Clips of the next shard, which ends where a source video does so that no other fetches it; 0 for too few."""
        if waiting.num_rows <= self._shard_clips:
            return 0
        origin = waiting["origin"].to_numpy()[self._shard_clips - 1 : 2 * self._shard_clips + 1]
        ends = np.flatnonzero(origin[1:] != origin[:-1])
        if len(ends):
            return self._shard_clips + int(ends[0])
        return 2 * self._shard_clips if waiting.num_rows > 2 * self._shard_clips else 0

    def finish(self, kind: Kind, manifest: str, num_rows: int, reasons: RejectCounts) -> Generation:
        """Cut what is left."""
        for split in sorted(self._waiting):
            if self._waiting[split].num_rows:
                self._cut(split, self._waiting[split].num_rows)
        self._wait_for(0)
        shards = sorted(self._shards, key=lambda shard: (shard.split, int(shard.name.rpartition("-")[2])))
        digest = hashlib.sha256(fingerprint(self._output.config.identity).encode())
        for shard in shards:
            digest.update(f"{shard.name} {self._shards[shard]}\n".encode())
        plan_id = digest.hexdigest()[:16]
        if kind == "retry":  # of rows of earlier plans
            self._has_secrets = any(plan.has_secrets for plan in self._earlier)
        found = (self._has_secrets, self._has_offsets)
        return Generation(self._number, self._name, kind, plan_id, manifest, num_rows, shards, reasons, *found)

    def publish(self, generation: Generation) -> Generation:
        """From now on the generation is planned.

        Raises:
            OwnershipError: another run has taken the output over.
        """
        with storage.storage_errors(storage.join(self._folder, DIGEST)):
            self._entries.close()
        storage.put_file(self._digest, storage.join(self._folder, DIGEST))
        self._output.check()
        out, data = self._output.out, json.dumps(asdict(generation), sort_keys=True, ensure_ascii=False)
        if not storage.put_if_absent(_place(out, self._number), data.encode()):
            raise OwnershipError(f"another run planned {out} at the same time; run the same command again")
        for name in storage.list_names(storage.join(out, FOLDER)):
            if name < self._name and name.startswith(f"{self._number:04d}-"):  # of a run that was killed
                storage.delete(storage.join(out, FOLDER, name))
        return generation

    def _cut(self, split: str, size: int) -> None:
        """Write the next shard's rows."""
        waiting, number = self._waiting[split], self._next.get(split, 0)
        rows, self._waiting[split] = waiting.slice(0, size), waiting.slice(size)
        self._next[split] = number + 1
        name = f"{split}-{number:05d}"
        self._shards[PlannedShard(name, split, rows.num_rows)] = _digest_of(rows)
        uri = storage.join(self._folder, f"{name}.parquet")
        public = _without_secrets(rows.select(ROWS_SCHEMA.names))
        self._has_secrets |= any(public[name] != rows[name] for name in _URLS)
        self._has_offsets |= any(offset >= 0 for offset in rows["offset"].to_pylist())
        self._uploads.append(self._pool.submit(_write_rows, uri, public))
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


def _without_secrets(rows: pa.Table) -> pa.Table:
    """Rows whose URLs lack what signs them; a clip is fetched by its URL in the manifest."""
    for name in _URLS:
        public = pa.array([unsigned(url) for url in rows[name].to_pylist()], pa.string())
        rows = rows.set_column(rows.column_names.index(name), name, public)
    return rows


def _write_rows(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
