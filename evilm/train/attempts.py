"""The starts of a training, and the clips that each consumed.

Each start writes a numbered record of where it went on from, with how many workers. With `schedule.audit` every worker
also writes `<out>/audit/<attempt>/`, one Parquet file per stretch of steps, before the checkpoint that ends the
stretch: steps that a kill threw away are either not written or superseded, since a step counts as the attempt did it
whose weights live on (`lineage`). `benchmarks/audit.py` reads them back as one sequence and compares it with the split.
"""

import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evilm.dataloader.sampler import TrainSampler
from evilm.io import storage

AUDIT_FOLDER, AUDIT_PLAN = "audit", "plan.json"
_FOLDER = "attempts"
_RECORD = re.compile(r"(\d{5,})\.json")
_CLIPS = pa.schema([("step", pa.int64()), ("part", pa.int32()), ("clip_ids", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Attempt:
    """One start of the workers of a training."""

    number: int
    start_step: int
    parent: int
    """The attempt whose checkpoint it began from; 0 for a fresh start."""
    world: int


def begin_attempt(out: str, start_step: int, restored: str, world: int) -> int:
    """Record a start from the checkpoint named `restored`, '' for none, and give it the next number."""
    number = max((attempt.number for attempt in attempts(out)), default=0) + 1
    record = {"start_step": start_step, "restored": restored, "world": world, "began": round(time.time(), 3)}
    while not storage.put_if_absent(_place(out, number), (json.dumps(record, sort_keys=True) + "\n").encode()):
        number += 1
    return number


def attempts(out: str) -> list[Attempt]:
    """Return all starts so far, in order."""
    numbers = sorted(int(m[1]) for n in storage.list_names(storage.join(out, _FOLDER)) if (m := _RECORD.fullmatch(n)))
    return [_read(out, number) for number in numbers]


def lineage(out: str) -> list[tuple[int, int, int | None]]:
    """Return which attempt each step of the newest attempt's weights comes from.

    Returns:
        (attempt, first step, step after the last) in order of steps; the last one is open, None.
    """
    known = {attempt.number: attempt for attempt in attempts(out)}
    stretches: list[tuple[int, int, int | None]] = []
    number, end = max(known, default=0), None
    while number in known:
        attempt = known[number]
        if end is None or attempt.start_step < end:
            stretches.append((number, attempt.start_step, end))
            end = attempt.start_step
        number = attempt.parent
    return stretches[::-1]


def _place(out: str, number: int) -> str:
    return storage.join(out, _FOLDER, f"{number:05d}.json")


def _read(out: str, number: int) -> Attempt:
    record: dict[str, Any] = storage.read_json(_place(out, number))
    parent = int(record["restored"].rsplit("-", 1)[1]) if record["restored"] else 0
    return Attempt(number, record["start_step"], parent, record["world"])


class Audit:
    """Record of the clips that one worker consumed in one attempt. Does nothing where no audit is wanted."""

    def __init__(self, out: str, wanted: bool, attempt: int, rank: int) -> None:
        self._folder = storage.join(out, AUDIT_FOLDER, f"{attempt:05d}") if wanted else ""
        self._rank = rank
        self._rows: list[dict[str, Any]] = []

    def note(self, step: int, micro_batches: Sequence[int], batches: Sequence[Any]) -> None:
        """Remember the clips of this worker's micro-batches of a step."""
        if self._folder:
            pairs = zip(micro_batches, batches, strict=True)
            self._rows += [{"step": step, "part": part, "clip_ids": list(batch.clip_ids)} for part, batch in pairs]

    def write(self) -> None:
        """Write what was not written yet; called by every worker before the checkpoint of that step."""
        if not self._rows:
            return
        first, last = self._rows[0]["step"], self._rows[-1]["step"]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=_CLIPS), sink, compression="zstd")
        name = f"{first:08d}-{last:08d}-{self._rank}.parquet"
        storage.write_bytes(storage.join(self._folder, name), sink.getvalue())
        self._rows.clear()


def write_plan(out: str, order: TrainSampler, frames: str) -> None:
    """Say what an epoch should be, and of which frames, for whoever reads the audit."""
    plan = {"num_clips": order.num_clips, "batch_clips": order.batch_clips, "steps_per_epoch": order.num_steps}
    storage.write_json(storage.join(out, AUDIT_FOLDER, AUDIT_PLAN), plan | {"tail": order.tail, "frames": frames})
