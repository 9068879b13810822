"""Check all shards together: duplicate clips, counts that disagree, files that no manifest lists."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evilm.ingest import shard_plan
from evilm.ingest.quarantine import FOLDER as QUARANTINE
from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.verify_shards import Issue, ShardCheck, twice
from evilm.io import storage
from evilm.jobs import commits
from evilm.shards import MANIFEST, CodesManifest, FrameManifest, ShardInfo, read_columns

_MOST_PROBLEMS = 1000
_MOST_ORPHANS = 20


@dataclass
class CrossChecks:
    """Result of checking frame shards and codes together."""

    num_problems: int = 0
    problems: list[Issue] = field(default_factory=list)
    """The first ones."""
    notes: list[str] = field(default_factory=list)
    """Remarkable, and no fault."""
    num_jpegs: int = 0
    num_bytes: int = 0
    """Read from files."""


def cross_check(
    verdict: CrossChecks,
    frames: FrameManifest,
    codes: CodesManifest | None,
    reasons: RejectCounts,
    checks: Sequence[ShardCheck],
    histograms: Mapping[str, np.ndarray],
) -> None:
    """Put together what is wrong with single shards, and see what only all of them show.

    Args:
        reasons: what the quarantine tables hold.
        histograms: by split, how often each code was met; empty where codes were not read.
    """
    verdict.num_jpegs = sum(checked.num_jpegs for checked in checks)
    verdict.num_bytes = sum(checked.num_bytes for checked in checks)
    of_shards = sum(checked.num_problems for checked in checks)
    of_all = list(_of_counts(frames, reasons))
    if not of_shards:  # else rows may be missing, and what follows would mislead
        of_all += _of_ids(frames, np.concatenate([checked.ids for checked in checks]))
        of_all += _of_histograms(codes, histograms) if codes else []
    found = [problem for checked in checks for problem in checked.problems]
    verdict.problems = [*of_all, *found][:_MOST_PROBLEMS]
    verdict.num_problems = len(of_all) + of_shards
    for manifest in (frames, codes) if codes else (frames,):
        verdict.notes += _orphans(manifest.uri, {shard.file for shard in manifest.shards})
    done, planned = progress(frames.uri)
    if done < planned:
        verdict.notes.append(
            f"a run adds clips: {done} of {planned} shards are committed; the manifest lists them when all are there"
        )


def _of_counts(frames: FrameManifest, reasons: RejectCounts) -> Iterator[Issue]:
    """Return whether the counts of a manifest agree with each other and with the quarantine."""
    accounted = frames.num_clips() + sum(frames.reasons.values())
    if accounted != frames.num_rows:
        what = (
            f"{frames.num_clips()} clips and {sum(frames.reasons.values())} rows quarantined, of {frames.num_rows} rows"
        )
        yield Issue(MANIFEST, "", what)
    for reason in sorted({*frames.reasons, *reasons.counts}):
        listed, there = frames.reasons.get(reason, 0), reasons.counts.get(reason, 0)
        if listed != there:
            yield Issue(QUARANTINE, reason, f"{there} rows in the tables, {listed} in the manifest")


def _of_ids(frames: FrameManifest, ids: np.ndarray) -> list[Issue]:
    """Return the clips that are stored twice."""
    ends = np.cumsum([shard.num_clips for shard in frames.shards])
    places = twice(ids)
    problems = []
    for place in places[:_MOST_PROBLEMS]:
        shard = frames.shards[int(np.searchsorted(ends, place, side="right"))]
        clip_id = ids_at(frames, frames.shards, ends, np.array([place]))[0]
        problems.append(Issue(shard.file, f"clip {clip_id!r}", "is in the data set more than once"))
    return problems


def _of_histograms(codes: CodesManifest, histograms: Mapping[str, np.ndarray]) -> list[Issue]:
    """Return the splits whose codes are counted otherwise in the manifest."""
    wrong = [split for split, found in histograms.items() if codes.histograms.get(split) != found.tolist()]
    return [Issue(f"codes {MANIFEST}", f"histogram of {split}", "is not that of the stored codes") for split in wrong]


def _orphans(uri: str, listed: set[str]) -> list[str]:
    """Return the shard files that the manifest does not list: readers never see them."""
    folders = {file.rpartition("/")[0] for file in listed} | {""}
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in storage.list_names(f"{uri}/{folder}")]
    lost = sorted(name for name in names if name.endswith((".parquet", ".tmp")) and name not in listed)
    more = [f"{uri}: and {len(lost) - _MOST_ORPHANS} more files that no manifest lists"]
    lines = [f"{storage.join(uri, name)} is in no manifest, left by a run that was killed" for name in lost]
    return lines[:_MOST_ORPHANS] + (more if len(lost) > _MOST_ORPHANS else [])


def progress(uri: str) -> tuple[int, int]:
    """Count the shards committed and planned by sharding runs under `uri`."""
    units = [generation.unit(shard) for generation in shard_plan.read_generations(uri) for shard in generation.shards]
    return sum(record is not None for _, record in commits.read_records(uri, units)), len(units)


def ids_at(frames: FrameManifest, shards: Sequence[ShardInfo], ends: np.ndarray, rows: np.ndarray) -> list[str]:
    """Return the ids of clips by their place among all clips of some shards."""
    ids = []
    for row in rows:
        at = int(np.searchsorted(ends, row, side="right"))
        column = read_columns(storage.join(frames.uri, shards[at].file), ["clip_id"])["clip_id"]
        ids.append(column[int(row - (ends[at] - shards[at].num_clips))].as_py())
    return ids
