"""Plan a sharding run: assign each clip to a shard and a row.

The plan depends only on the manifest's rows and the seed: within each split, clips are sorted by a hash of (seed,
clip_id) and cut into shards. A plan grows by generations: the first one, then rows that were added to the manifest, or
quarantined clips that are tried again. Shards of earlier generations do not change. A generation is planned once
`_plan/<number>-<run>.json` is written, beside the folder of its rows, `_plan/<number>-<run>`. The newest run's counts:
one that was taken over may write its own late.
"""

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilm.config.base import fingerprint
from evilm.config.secrets import stored_url
from evilm.errors import ManifestError
from evilm.ingest.clip_table import ClipTable, PlacedClip
from evilm.ingest.quarantine import OF_MANIFEST, Quarantine, RejectCounts, repeated_row
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs.commits import Unit
from evilm.manifests.rows import BadRow, ClipRow
from evilm.prefetch import map_ahead

FOLDER = "_plan"
_DIGEST = "digest.parquet"
"""File next to the rows of a generation: the ids of all its clips and digests of their contents."""
_MOST_SPLITS = 1000
_UPLOADS = 8
_SCHEMA = pa.schema(
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
_FIELDS = attrgetter(*_SCHEMA.names)
Kind = Literal["rows", "retry"]


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be made."""

    name: str
    split: str
    num_rows: int

    @property
    def number(self) -> int:
        """Return its number among the shards of its split."""
        return int(self.name.rpartition("-")[2])


@dataclass(frozen=True)
class Generation:
    """Shards that were planned together, and counts of the rows of the manifest that were rejected."""

    number: int
    folder: str
    """Folder of its rows, below `_plan/`."""
    kind: Kind
    plan_id: str
    """Digest of the settings and of the rows in each shard."""
    manifest: str
    """Fingerprint of the manifest and of the rows read; '' for a retry."""
    num_rows: int
    """Rows of the whole manifest, good and bad; 0 for a retry."""
    shards: list[PlannedShard]
    reasons: RejectCounts
    """Counts of the quarantined rows."""
    has_secrets: bool = False
    """True if clips are fetched by URLs with signatures or passwords, which the plan does not hold."""
    has_offsets: bool = False
    """True if clips lie in tars."""

    @property
    def num_planned(self) -> int:
        """Count the clips of all its shards."""
        return sum(shard.num_rows for shard in self.shards)

    def task(self, shard: PlannedShard) -> str:
        """Name the task of a job that makes one of its shards."""
        return f"{self.folder}/{shard.name}"

    def unit(self, shard: PlannedShard) -> Unit:
        """Return the unit that a shard is committed as."""
        return Unit(shard.name, self.plan_id)


def read_generations(out: str) -> list[Generation]:
    """Return the generations planned under `out`, in order; one that was killed while planning is not included."""
    generations: list[Generation] = []
    names = set(storage.list_names(storage.join(out, FOLDER)))
    while name := _newest_plan(names, len(generations)):
        data = storage.read_json(storage.join(out, FOLDER, f"{name}.json"))
        shards = [PlannedShard(**shard) for shard in data.pop("shards")]
        generations.append(Generation(shards=shards, reasons=RejectCounts(**data.pop("reasons")), **data))
    return generations


def _newest_plan(names: Collection[str], number: int) -> str:
    """Return the name of a generation's newest plan whose rows exist; '' if the generation is not planned."""
    earlier = f"{number:04d}"  # as versions before named it
    planned = [name for name in names if name.startswith(f"{earlier}-") and f"{name}.json" in names]
    newest = max(planned, key=lambda name: int(name.partition("-")[2]), default=earlier)
    return newest if f"{newest}.json" in names else ""


def read_rows(out: str, task: str) -> list[ClipRow]:
    """Read the rows planned for the shard of a task, in order."""
    data = storage.read_bytes(storage.join(out, FOLDER, f"{task}.parquet"))
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [
        ClipRow(**row | {"captions": tuple(row["captions"]), "extra": json.loads(row["extra"] or "{}")}) for row in rows
    ]


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
        output: the output, for the plan and the quarantine table.
        rows: the whole manifest; the first row of an id counts.
        manifest: identity of the manifest.
        is_missing: returns whether a row's video is known not to exist; called for rows whose id is taken.
        repeats: meaning of rows with the id and the video of another row (`ColumnsConfig.repeats`).

    Raises:
        ConfigError: rows that were planned before are gone or have changed.
        ManifestError: too many splits.
        OwnershipError: another run has taken the output over.
    """
    out, num_rows = output.out, 0
    with ClipTable(seed) as clips, Quarantine(out, OF_MANIFEST) as quarantine:
        for num_rows, row in enumerate(rows, start=1):  # noqa: B007
            if isinstance(row, BadRow):
                quarantine.add(row)
            else:
                clips.take(row)
        for row, first, is_caption in clips.take_repeats(repeats):
            quarantine.add(repeated_row(row, first, is_caption, is_missing))
        clips.drop_planned([digest_uri(out, plan) for plan in earlier if plan.kind == "rows"], out)
        generation = _write(output, clips, earlier, shard_clips, "rows", manifest, num_rows, quarantine.reasons)
        quarantine.publish(output)
        return _publish(output, generation)


def plan_retry(
    output: Output, rows: Iterable[ClipRow], earlier: Sequence[Generation], seed: int, shard_clips: int
) -> Generation | None:
    """Plan quarantined clips again; return None without such clips."""
    with ClipTable(seed) as clips:
        for row in rows:
            clips.take(row)
        if not clips.num_rows:
            return None
        return _publish(output, _write(output, clips, earlier, shard_clips, "retry", "", 0, RejectCounts()))


def forget_plans(output: Output) -> None:
    """Delete all plans, so that this run plans from the start."""
    output.check()
    storage.delete(storage.join(output.out, FOLDER))


def digest_uri(out: str, generation: Generation) -> str:
    """Return the URI of a generation's digest: the ids of its clips and digests of their contents."""
    return storage.join(out, FOLDER, generation.folder, _DIGEST)


class _Written(NamedTuple):
    shard: PlannedShard
    digest: str
    has_secrets: bool
    has_offsets: bool


def _write(
    output: Output,
    clips: ClipTable,
    earlier: Sequence[Generation],
    shard_clips: int,
    kind: Kind,
    manifest: str,
    num_rows: int,
    reasons: RejectCounts,
) -> Generation:
    """Cut the clips into shards, and write a file of rows for each; only a few shards are held."""
    number = len(earlier)
    name = f"{number:04d}-{output.run:05d}"
    folder = storage.join(output.out, FOLDER, name)
    cut = _cut(clips, earlier, shard_clips)
    written = list(map_ahead(partial(_write_shard, folder), cut, _UPLOADS, ahead=2 * _UPLOADS))
    clips.publish_digest(storage.join(folder, _DIGEST))
    digest = hashlib.sha256(fingerprint(output.config.identity).encode())
    for each in written:
        digest.update(f"{each.shard.name} {each.digest}\n".encode())
    # Rows to retry come from earlier plans, which hold no secrets.
    has_secrets = any(each.has_secrets for each in (earlier if kind == "retry" else written))
    return Generation(
        number=number,
        folder=name,
        kind=kind,
        plan_id=digest.hexdigest()[:16],
        manifest=manifest,
        num_rows=num_rows,
        shards=[each.shard for each in written],
        reasons=reasons,
        has_secrets=has_secrets,
        has_offsets=any(each.has_offsets for each in written),
    )


def _cut(clips: ClipTable, earlier: Sequence[Generation], size: int) -> Iterator[tuple[PlannedShard, list[PlacedClip]]]:
    """Cut each split into shards, numbered after those of earlier generations.

    A shard ends at the end of a source video, so that no other shard fetches it, but at twice its size at the latest.
    """
    splits = clips.splits(_MOST_SPLITS + 1)
    if len(splits) > _MOST_SPLITS:
        raise ManifestError(
            f"the manifest has more than {_MOST_SPLITS} splits, e.g. {splits[-1]!r}; name the right column with "
            "--columns.split, or none with --columns.split ''"
        )
    for split in splits:
        planned = [shard.number for plan in earlier for shard in plan.shards if shard.split == split]
        number, shard = max(planned, default=-1) + 1, list[PlacedClip]()
        for clip in clips.of_split(split):
            if len(shard) >= size and (clip.origin != shard[-1].origin or len(shard) == 2 * size):
                yield PlannedShard(f"{split}-{number:05d}", split, len(shard)), shard
                number, shard = number + 1, []
            shard.append(clip)
        yield PlannedShard(f"{split}-{number:05d}", split, len(shard)), shard


def _write_shard(folder: str, planned: tuple[PlannedShard, list[PlacedClip]]) -> _Written:
    """Write the rows of a shard. URLs are stored without secrets: clips are fetched by the manifest's."""
    shard, clips = planned
    rows = [clip.row for clip in clips]
    public = [replace(row, path=stored_url(row.path), url=stored_url(row.url)) for row in rows]
    columns = dict(zip(_SCHEMA.names, zip(*map(_FIELDS, public), strict=True), strict=True))
    columns["extra"] = tuple(json.dumps(extra, ensure_ascii=False) if extra else "" for extra in columns["extra"])
    digest = hashlib.sha256(np.array([clip.content for clip in clips], ">u8").tobytes())
    for name in ("clip_id", "extra"):
        digest.update("\0".join(columns[name]).encode() + b"\0")
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, _SCHEMA), sink, compression="zstd")
    storage.write_bytes(storage.join(folder, f"{shard.name}.parquet"), sink.getvalue())
    return _Written(shard, digest.hexdigest(), public != rows, any(row.offset >= 0 for row in rows))


def _publish(output: Output, generation: Generation) -> Generation:
    """Publish a generation, which makes it part of the plan."""
    output.check()
    out, data = output.out, json.dumps(asdict(generation), sort_keys=True, ensure_ascii=False)
    storage.write_bytes(storage.join(out, FOLDER, f"{generation.folder}.json"), data.encode())
    for name in storage.list_names(storage.join(out, FOLDER)):
        if name < generation.folder and name.startswith(f"{generation.number:04d}-"):  # from a run that was killed
            storage.delete(storage.join(out, FOLDER, name))
    return generation
