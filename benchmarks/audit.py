"""Check the clips consumed by each step of a training with --schedule.audit against its split.

`<out>/audit/plan.json` describes an epoch; for `<out>/audit/<attempt>/` see `evilm.train.attempts`.

    python benchmarks/audit.py OUT [FRAMES]

The expected clips are read from the frames of the training, or from the folder FRAMES.
"""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from evilm.dataloader.sampler import batch_sizes
from evilm.errors import CheckpointError, EvilmError
from evilm.io import storage
from evilm.io.outputs import CONFIG
from evilm.shards import FrameManifest, read_group
from evilm.train.attempts import AUDIT_FOLDER, AUDIT_PLAN, lineage

_FILE = re.compile(r"(\d{8,})-(\d{8,})-(\d+)\.parquet")


def read_steps(out: str) -> dict[int, list[str]]:
    """Read the clips of every audited step that contributed to the current weights, in the order of the step."""
    steps: dict[int, list[str]] = {}
    for attempt, first, end in lineage(out):
        parts = [row for row in _rows(out, attempt) if row["step"] >= first and (end is None or row["step"] < end)]
        for row in sorted(parts, key=lambda row: (row["step"], row["part"])):
            steps.setdefault(row["step"], []).extend(row["clip_ids"])
    return dict(sorted(steps.items()))


def read(out: str) -> list[list[str]]:
    """Read the clips of every epoch so far, in the order in which steps consumed them."""
    per_epoch = _plan(out)["steps_per_epoch"]
    epochs: list[list[str]] = []
    for step, clip_ids in read_steps(out).items():
        while len(epochs) <= step // per_epoch:
            epochs.append([])
        epochs[step // per_epoch].extend(clip_ids)
    return epochs


@dataclass(frozen=True)
class EpochReport:
    """Result of an audit in one epoch."""

    epoch: int
    """Counted from 0."""
    finished: bool
    clips: int
    """Distinct clips consumed."""
    repeated: dict[str, int]
    """Clips consumed more than once, with their counts, not counting the padding of the last step."""
    padded: int
    """Clips repeated from the epoch's start to fill its last step (`schedule.tail` = pad)."""
    left_out: int
    """Clips left out by a finished epoch (`schedule.tail` = drop)."""
    missing: int
    """Clips of the split that a finished epoch did not consume, not counting `left_out`."""
    foreign: int
    """Consumed clips that are not in the split; 0 if its clips are unknown."""
    missing_steps: tuple[int, ...]
    """Steps without a record, or with another number of clips than planned."""

    @property
    def as_planned(self) -> bool:
        """Check that no clip was seen twice or missed, except as `schedule.tail` specifies."""
        return not (self.repeated or self.missing or self.foreign or self.missing_steps)

    @property
    def exactly_once(self) -> bool:
        """Check that no clip was seen twice or missed for any reason."""
        return self.as_planned and not (self.padded or self.left_out)

    def __str__(self) -> str:
        twice = len(self.repeated) + min(self.padded, self.clips)
        faults = {
            "consumed more than once": len(self.repeated),
            "missing": self.missing,
            "not of the split": self.foreign,
            "steps incomplete": len(self.missing_steps),
        }
        if self.exactly_once:
            said = ["each exactly once"]
        else:
            planned = {
                "again, to fill the last step (schedule.tail = pad)": self.padded,
                "left out (schedule.tail = drop)": self.left_out,
            }
            said = [f"{max(0, self.clips - twice)} once"]
            said += [f"{count} {what}" for what, count in (planned | faults).items() if count]
        state = "finished" if self.finished else "so far"
        return f"epoch {self.epoch + 1}, {state}: {self.clips} clips, {', '.join(said)}"


def check(out: str, clip_ids: Sequence[str] | None = None) -> list[EpochReport]:
    """Compare the audit of a training with its plan, epoch by epoch.

    Args:
        out: output folder of a training with `schedule.audit`.
        clip_ids: the clips of the split (`split_clips`); without them, only their number is compared with the plan.

    Raises:
        CheckpointError: there is no audit.
    """
    plan, steps = _plan(out), read_steps(out)
    if not steps:
        raise CheckpointError(f"{out} has no audited step; train with --schedule.audit")
    per_epoch = plan["steps_per_epoch"]
    return [_check_epoch(epoch, plan, steps, clip_ids) for epoch in range(max(steps) // per_epoch + 1)]


def split_clips(out: str, frames: str = "") -> list[str]:
    """Read the clips that a training should have seen from its frames.

    Args:
        out: output folder of a training with `schedule.audit`.
        frames: folder of the frames, if they were moved since the training.

    Raises:
        EvilmError: the frames are missing, or were changed.
    """
    frames = storage.absolute(frames) if frames else str(_plan(out).get("frames", ""))
    if not frames:
        raise CheckpointError("the audit does not name its frames; give their folder after OUT")
    manifest = FrameManifest.load(frames)
    wanted = dict(storage.read_json(storage.join(out, CONFIG)).get("inputs") or {}).get("frames")
    if wanted not in (None, manifest.fingerprint):
        raise CheckpointError(f"{frames} holds other frames now: fingerprint {manifest.fingerprint}, not {wanted}")
    return [
        str(clip)
        for shard in manifest.of_split("train")
        for group in range(len(shard.row_groups))
        for clip in read_group(storage.join(manifest.uri, shard.file), group, ["clip_id"])["clip_id"].to_pylist()
    ]


def _check_epoch(
    epoch: int, plan: dict[str, Any], steps: dict[int, list[str]], clip_ids: Sequence[str] | None
) -> EpochReport:
    per_epoch, num_clips = plan["steps_per_epoch"], plan["num_clips"]
    tail = plan.get("tail") or ("pad" if per_epoch * plan["batch_clips"] >= num_clips else "drop")
    sizes = batch_sizes(num_clips, plan["batch_clips"], tail)
    first, last = epoch * per_epoch, max(steps)
    finished = last >= first + per_epoch - 1
    wanted = range(first, first + per_epoch if finished else last + 1)
    consumed = [clip for step in wanted for clip in steps.get(step, [])]
    padded = max(0, int(sizes.sum()) - num_clips) if finished else 0
    left_out = max(0, num_clips - int(sizes.sum())) if finished else 0
    pad, consumed = (consumed[-padded:], consumed[:-padded]) if padded else ([], consumed)
    counts = Counter(consumed)
    repeated = {clip: count for clip, count in counts.items() if count > 1}
    if padded and pad != (consumed * -(-padded // max(1, len(consumed))))[:padded]:
        repeated |= dict(Counter(pad))  # padding would repeat the first clips of the epoch
    missing = max(0, num_clips - len(counts)) if finished else 0
    split = set(counts) if clip_ids is None else set(clip_ids)
    if clip_ids is not None and finished:
        missing = len(split - set(counts))
    return EpochReport(
        epoch=epoch,
        finished=finished,
        clips=len(counts),
        repeated=repeated,
        padded=padded,
        left_out=left_out,
        missing=max(0, missing - left_out),
        foreign=len(set(counts) - split),
        missing_steps=tuple(step for step in wanted if len(steps.get(step, [])) != sizes[step - first]),
    )


def _plan(out: str) -> dict[str, Any]:
    try:
        return storage.read_json(storage.join(out, AUDIT_FOLDER, AUDIT_PLAN))
    except FileNotFoundError:
        raise CheckpointError(f"{out} has no audit; train with --schedule.audit") from None


def _rows(out: str, attempt: int) -> Iterator[dict[str, Any]]:
    folder = storage.join(out, AUDIT_FOLDER, f"{attempt:05d}")
    for name in storage.list_names(folder):
        if _FILE.fullmatch(name):
            table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, name))))
            yield from table.to_pylist()


def main(out: str, frames: str = "") -> int:
    """Print a line per epoch; return 0 if each consumed its clips as `schedule.tail` specifies (even: exactly once)."""
    out = storage.absolute(out)
    try:
        clip_ids: list[str] | None = None
        try:
            clip_ids = split_clips(out, frames)
        except (EvilmError, OSError) as error:
            if frames:
                raise
            print(f"clips are counted, their ids held against no split: {error}")
        reports = check(out, clip_ids)
    except EvilmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        print(report)
    return 0 if all(report.as_planned for report in reports) else 1


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python benchmarks/audit.py OUT [FRAMES]")
    raise SystemExit(main(*sys.argv[1:]))
