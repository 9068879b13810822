"""Which clips each step consumed: written by every worker, read back as one sequence, proved to be exactly once.

`<out>/audit/plan.json` says what an epoch should be. `<out>/audit/<attempt>/` holds one Parquet file per worker and
stretch of steps, written before the checkpoint that ends the stretch: steps that a kill threw away are either not
written or superseded, since a step counts as the attempt did it whose weights live on (`attempts.lineage`).

    python -m evilm.train.audit OUT
"""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evilm import storage
from evilm.errors import CheckpointError, EvilmError
from evilm.train.attempts import lineage

_FOLDER, _PLAN = "audit", "plan.json"
_FILE = re.compile(r"(\d{8,})-(\d{8,})-(\d+)\.parquet")
_SCHEMA = pa.schema([("step", pa.int64()), ("part", pa.int32()), ("clip_ids", pa.list_(pa.string()))])


class Audit:
    """What one worker consumed in one attempt. Does nothing where no audit is wanted."""

    def __init__(self, out: str, wanted: bool, attempt: int, rank: int) -> None:
        self._folder = storage.join(out, _FOLDER, f"{attempt:05d}") if wanted else ""
        self._rank = rank
        self._rows: list[dict[str, Any]] = []

    def note(self, step: int, parts: Sequence[int], batches: Sequence[Any]) -> None:
        """Remember the clips of this worker's parts of a step."""
        if self._folder:
            pairs = zip(parts, batches, strict=True)
            self._rows += [{"step": step, "part": part, "clip_ids": list(batch.clip_ids)} for part, batch in pairs]

    def write(self) -> None:
        """Write what was not written yet; called by every worker before the checkpoint of that step."""
        if not self._rows:
            return
        first, last = self._rows[0]["step"], self._rows[-1]["step"]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA), sink, compression="zstd")
        name = f"{first:08d}-{last:08d}-{self._rank}.parquet"
        storage.write_bytes(storage.join(self._folder, name), sink.getvalue())
        self._rows.clear()


def write_plan(out: str, num_clips: int, batch_clips: int, steps_per_epoch: int) -> None:
    """Say what an epoch should be, for whoever reads the audit."""
    plan = {"num_clips": num_clips, "batch_clips": batch_clips, "steps_per_epoch": steps_per_epoch}
    storage.write_json(storage.join(out, _FOLDER, _PLAN), plan)


def read_steps(out: str) -> dict[int, list[str]]:
    """The clips of every audited step of the weights that live on, in the step's order."""
    steps: dict[int, list[str]] = {}
    for attempt, first, end in lineage(out):
        parts = [row for row in _rows(out, attempt) if row["step"] >= first and (end is None or row["step"] < end)]
        for row in sorted(parts, key=lambda row: (row["step"], row["part"])):
            steps.setdefault(row["step"], []).extend(row["clip_ids"])
    return dict(sorted(steps.items()))


def read(out: str) -> list[list[str]]:
    """The clips of every epoch so far, in the order in which steps consumed them."""
    per_epoch = _plan(out)["steps_per_epoch"]
    epochs: list[list[str]] = []
    for step, clip_ids in read_steps(out).items():
        while len(epochs) <= step // per_epoch:
            epochs.append([])
        epochs[step // per_epoch].extend(clip_ids)
    return epochs


@dataclass(frozen=True)
class EpochReport:
    """What an audit found in one epoch."""

    epoch: int
    """Counted from 0."""
    finished: bool
    clips: int
    """Different clips consumed."""
    repeated: dict[str, int]
    """Clips consumed more often than once, and how often, the padding of the last step left out."""
    padded: int
    """Clips that filled up the epoch's last step, its first ones once more (`schedule.tail` = pad)."""
    missing: int
    """Clips of the split that a finished epoch did not consume; those that `schedule.tail` = drop leaves out not."""
    missing_steps: tuple[int, ...]
    """Steps without a record, or with fewer clips than a step has."""

    @property
    def exactly_once(self) -> bool:
        """Whether no clip was seen twice or missed."""
        return not (self.repeated or self.missing or self.missing_steps)


def check(out: str, clip_ids: Sequence[str] | None = None) -> list[EpochReport]:
    """Hold the audit of a training against its plan, epoch by epoch.

    Args:
        out: output folder of a training with `schedule.audit`.
        clip_ids: the clips of the split; without them they are taken from the plan's number alone.

    Raises:
        CheckpointError: there is no audit.
    """
    plan, steps = _plan(out), read_steps(out)
    if not steps:
        raise CheckpointError(f"{out} has no audited step; train with --schedule.audit")
    per_epoch = plan["steps_per_epoch"]
    return [_check_epoch(epoch, plan, steps, clip_ids) for epoch in range(max(steps) // per_epoch + 1)]


def _check_epoch(
    epoch: int, plan: dict[str, int], steps: dict[int, list[str]], clip_ids: Sequence[str] | None
) -> EpochReport:
    per_epoch, batch = plan["steps_per_epoch"], plan["batch_clips"]
    first, last = epoch * per_epoch, max(steps)
    finished = last >= first + per_epoch - 1
    wanted = range(first, first + per_epoch if finished else last + 1)
    consumed = [clip for step in wanted for clip in steps.get(step, [])]
    padded = max(0, per_epoch * batch - plan["num_clips"]) if finished else 0
    pad, consumed = (consumed[-padded:], consumed[:-padded]) if padded else ([], consumed)
    counts = Counter(consumed)
    repeated = {clip: count for clip, count in counts.items() if count > 1}
    if padded and pad != (consumed * -(-padded // max(1, len(consumed))))[:padded]:
        repeated |= dict(Counter(pad))  # not the first ones of the epoch, so not what padding would have taken
    missing = 0
    if finished:
        expected = min(plan["num_clips"], per_epoch * batch)
        missing = expected - len(counts)
        if clip_ids is not None and expected == plan["num_clips"]:
            missing = len(set(clip_ids) - set(counts))
    return EpochReport(
        epoch=epoch,
        finished=finished,
        clips=len(counts),
        repeated=repeated,
        padded=padded,
        missing=missing,
        missing_steps=tuple(step for step in wanted if len(steps.get(step, [])) != batch),
    )


def _plan(out: str) -> dict[str, int]:
    try:
        return storage.read_json(storage.join(out, _FOLDER, _PLAN))
    except FileNotFoundError:
        raise CheckpointError(f"{out} has no audit; train with --schedule.audit") from None


def _rows(out: str, attempt: int) -> Iterator[dict[str, Any]]:
    folder = storage.join(out, _FOLDER, f"{attempt:05d}")
    for name in storage.list_names(folder):
        if _FILE.fullmatch(name):
            table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, name))))
            yield from table.to_pylist()


def main(out: str) -> int:
    """Print a line per epoch; 0 where each consumed every clip exactly once."""
    try:
        reports = check(storage.absolute(out))
    except EvilmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        state = "finished" if report.finished else "so far"
        verdict = "each exactly once" if report.exactly_once else (
            f"{len(report.repeated)} repeated, {report.missing} missing, {len(report.missing_steps)} steps incomplete"
        )  # fmt: skip
        padding = f" (+{report.padded} to fill the last step)" if report.padded else ""
        print(f"epoch {report.epoch + 1}, {state}: {report.clips} clips{padding}, {verdict}")
    return 0 if all(report.exactly_once for report in reports) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m evilm.train.audit OUT")
    raise SystemExit(main(sys.argv[1]))
