"""Reading all shards once, here or in Ray Data tasks, and putting together what is in them."""

import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilm.errors import ShardError
from evilm.ingest.quarantine import FOLDER as QUARANTINE
from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.cross_checks import CrossChecks, cross_check, ids_at
from evilm.inspect.shard_stats import DUPLICATES, Stats, jpeg_groups, shard_stats
from evilm.inspect.verify_shards import ShardCheck, check_shard
from evilm.io import storage
from evilm.jobs import runner
from evilm.manifests.rows import BadRow
from evilm.shards import CodeShardInfo, CodesManifest, FrameManifest, ShardInfo, read_columns

logger = logging.getLogger(__name__)

_EXAMPLES = 3
_LOG_EVERY_S = 5.0


@dataclass
class Inspection:
    """All that was found, for the texts and pictures about it."""

    frames: FrameManifest
    codes: CodesManifest | None
    stats: Stats
    reasons: RejectCounts
    """Quarantined rows, from the quarantine tables."""
    repeated: dict[str, list[list[str]]]
    """By kind of duplicate, ids of clips that are alike; the largest groups."""
    num_repeated: dict[str, int]
    """By kind of duplicate, clips that are like an earlier one."""
    verify: str
    verdict: CrossChecks
    """Result of `verify`; only notes where that is 'no'."""


def inspect_all(frames: FrameManifest, codes: CodesManifest | None, verify: str, num_workers: int) -> Inspection:
    """Read all shards, by Ray Data where several workers are asked for.

    Raises:
        ShardError: a shard can't be read and `verify` is 'no'.
    """
    verdict, reasons = CrossChecks(), read_reasons(frames.uri)
    parts, checks = dict[int, Stats](), dict[int, ShardCheck]()
    histograms: dict[str, np.ndarray] = {}
    for number, found, checked, error in _results(
        _InspectJob.of(frames, codes, verify), len(frames.shards), num_workers
    ):
        if error and verify == "no":
            raise ShardError(f"{error}; run again with --verify to list all damage")
        if found is None:
            verdict.notes.append(f"left out of the statistics: {error}")
        else:
            parts[number] = found
        if checked.histogram is not None:
            split = frames.shards[number].split
            histograms[split] = histograms.get(split, 0) + checked.histogram
        checks[number] = replace(checked, histogram=None)
    stats = Stats.joined([parts[number] for number in sorted(parts)])  # in the order of the manifest
    if verify != "no":
        cross_check(verdict, frames, codes, reasons, [checks[number] for number in sorted(checks)], histograms)
    look = Inspection(frames, codes, stats, reasons, {}, {}, verify, verdict)
    _find_repeated(look, [frames.shards[number] for number in sorted(parts)])
    return look


@dataclass(frozen=True)
class _InspectJob:
    """Settings that all tasks share; manifests without their lists of shards, which are kept apart by number."""

    frames: FrameManifest
    codes: CodesManifest | None
    verify: str
    shards: list[tuple[ShardInfo, CodeShardInfo | None]]
    jpeg_groups: dict[str, list[int]]

    @classmethod
    def of(cls, frames: FrameManifest, codes: CodesManifest | None, verify: str) -> "_InspectJob":
        coded = {shard.frames_file: shard for shard in codes.shards} if codes else {}
        shards = [(shard, coded.get(shard.file)) for shard in frames.shards]
        bare = replace(codes, shards=[], histograms={}) if codes else None
        return cls(replace(frames, shards=[]), bare, verify, shards, jpeg_groups(frames))


def _inspect_shard(work: _InspectJob, number: int) -> tuple[Stats | None, ShardCheck, str]:
    """Return statistics and checks of a shard, or why there are no statistics."""
    shard, coded = work.shards[number]
    checked, stats, error = ShardCheck(), None, ""
    if work.verify != "no":
        checked = check_shard(work.frames, shard, work.codes, coded, full=work.verify == "full")
    try:
        stats = shard_stats(work.frames.uri, shard, work.jpeg_groups.get(shard.file, ()))
    except ShardError as failed:
        error = str(failed).removesuffix("; write the shards again")
    if stats and checked.jpeg_bytes:
        stats.jpeg_bytes = np.array(checked.jpeg_bytes)  # all of them, instead of those of a few row groups
    return stats, replace(checked, jpeg_bytes=[]), error


def _task(batch: dict[str, np.ndarray], work: _InspectJob) -> dict[str, np.ndarray]:
    """Inspect one shard, in a Ray task; what was found travels as bytes."""
    results = []

    def inspect(name: str) -> tuple[int, int]:
        results.append(_inspect_shard(work, int(name)))
        return work.shards[int(name)][0].num_clips, 0

    row = runner.outcome(inspect, batch)
    return row | {"found": np.array([pickle.dumps(results)], dtype=object)}


def _results(
    work: _InspectJob, num_shards: int, num_workers: int
) -> Iterator[tuple[int, Stats | None, ShardCheck, str]]:
    """Yield the results of each shard by number, in any order."""
    if num_workers > 1 and num_shards > 1:
        from ray.data import TaskPoolStrategy

        workers = min(num_workers, num_shards)
        options = {"fn_args": (work,), "compute": TaskPoolStrategy(size=workers), "num_cpus": 1}
        for row in runner.run([str(number) for number in range(num_shards)], _task, workers, options, "inspection"):
            yield int(row["name"]), *pickle.loads(row["found"])[0]
        return
    reported = time.monotonic()
    for number in range(num_shards):
        yield number, *_inspect_shard(work, number)
        if time.monotonic() - reported > _LOG_EVERY_S:
            reported = time.monotonic()
            logger.info("inspection: shard %d of %d", number + 1, num_shards)


def read_reasons(uri: str) -> RejectCounts:
    """Return quarantined rows by reason, from the tables below a folder of frame shards."""
    reasons = RejectCounts()
    for name in storage.list_names(storage.join(uri, QUARANTINE)):
        if name.endswith(".parquet"):
            columns = ["record", "clip_id", "reason", "detail"]
            for row in read_columns(storage.join(uri, QUARANTINE, name), columns).to_pylist():
                reasons.add(BadRow(row["record"], row["clip_id"] or "", row["reason"], row["detail"] or ""))
    return reasons


def _find_repeated(look: Inspection, shards: Sequence[ShardInfo]) -> None:
    """Return the clips that are alike; `shards` are those that the digests come from, in order."""
    ends = np.cumsum([shard.num_clips for shard in shards])
    for what in DUPLICATES:
        groups = look.stats.repeated(what)
        look.num_repeated[what] = sum(len(rows) - 1 for rows in groups)
        look.repeated[what] = [ids_at(look.frames, shards, ends, rows[:_EXAMPLES]) for rows in groups[:_EXAMPLES]]
