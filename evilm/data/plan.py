"""The plan of a sharding run: which clip goes into which shard, at which place.

A pure function of the manifest's rows and the seed: within each split, clips are sorted by a hash of (seed, clip_id)
and cut into shards. Written before the first shard and read again by every restart.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evilm import storage
from evilm.data.manifest import BadRow, ClipRow
from evilm.video.reasons import Reason

FOLDER = "_plan"
_PLAN = "plan.json"
_ROWS_SCHEMA = pa.schema(
    [
        ("record", pa.int64()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("folder", pa.string()),
        ("path", pa.string()),
        ("extra", pa.map_(pa.string(), pa.string())),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("record", pa.int64()),  # of the CSV, counted from 1 after the header
        ("clip_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),  # below the video root
    ]
)


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be made."""

    name: str
    split: str
    num_rows: int


@dataclass(frozen=True)
class Plan:
    """All shards to be made, and the rows that are in none of them."""

    plan_id: str
    num_rows: int
    """Rows of the manifest, good and bad."""
    shards: list[PlannedShard]
    bad: list[BadRow]


def order_key(seed: int, clip_id: str) -> bytes:
    """Where a clip comes in the order of its split."""
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def cut(rows: Sequence[ClipRow], seed: int, shard_clips: int) -> dict[str, list[ClipRow]]:
    """The rows of each shard, by the shard's name, whatever order the rows come in."""
    by_split: dict[str, list[ClipRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    shards = {}
    for split, members in sorted(by_split.items()):
        members.sort(key=lambda row: (order_key(seed, row.clip_id), row.clip_id))
        for number, start in enumerate(range(0, len(members), shard_clips)):
            shards[f"{split}-{number:05d}"] = members[start : start + shard_clips]
    return shards


def plan_id(shards: dict[str, list[ClipRow]]) -> str:
    """Digest of which clips, with which captions and files, go where."""
    digest = hashlib.sha256()
    for name, rows in shards.items():
        for row in rows:
            fields = [name, row.clip_id, row.split, row.caption, row.path, sorted(row.extra.items())]
            digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()[:16]


def write_plan(out: str, rows: Sequence[ClipRow], bad: Sequence[BadRow], seed: int, shard_clips: int) -> Plan:
    """Plan all shards under `out`: one file of rows per shard, the list of shards last."""
    shards = cut(rows, seed, shard_clips)
    planned = [PlannedShard(name, members[0].split, len(members)) for name, members in shards.items()]
    plan = Plan(plan_id(shards), len(rows) + len(bad), planned, list(bad))
    for name, members in shards.items():
        table = pa.Table.from_pylist([_as_dict(row) for row in members], schema=_ROWS_SCHEMA)
        _write_table(storage.join(out, FOLDER, f"{name}.parquet"), table)
    storage.write_json(storage.join(out, FOLDER, _PLAN), asdict(plan))
    return plan


def read_plan(out: str) -> Plan | None:
    """The plan of an earlier, unfinished run under `out`."""
    try:
        data = storage.read_json(storage.join(out, FOLDER, _PLAN))
    except FileNotFoundError:
        return None
    shards = [PlannedShard(**shard) for shard in data["shards"]]
    bad = [BadRow(**{**row, "reason": Reason(row["reason"])}) for row in data["bad"]]
    return Plan(data["plan_id"], data["num_rows"], shards, bad)


def forget_plan(out: str) -> None:
    """Make the next run plan anew."""
    storage.delete(storage.join(out, FOLDER, _PLAN))


def read_rows(out: str, shard: str) -> list[ClipRow]:
    """The rows planned for a shard, in order."""
    data = storage.read_bytes(storage.join(out, FOLDER, f"{shard}.parquet"))
    rows = pq.read_table(io.BytesIO(data)).to_pylist(maps_as_pydicts="strict")
    return [ClipRow(**row) for row in rows]


def write_quarantine(out: str, name: str, rows: Sequence[BadRow]) -> None:
    """Rows put aside, as `quarantine/<name>.parquet`; no file for none."""
    if rows:
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=QUARANTINE_SCHEMA)
        _write_table(storage.join(out, "quarantine", f"{name}.parquet"), table)


def _as_dict(row: ClipRow) -> dict[str, Any]:
    return asdict(row) | {"extra": list(row.extra.items())}


def _write_table(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
