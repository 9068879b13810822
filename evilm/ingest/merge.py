"""Merge the plans and commits of an output into the manifest that readers see."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from evilm.config.base import fingerprint
from evilm.config.stages import ShardVideos
from evilm.errors import ShardError
from evilm.ingest import quarantine, shard_plan
from evilm.ingest.failure_budget import LOST, bad_rows, where_hint
from evilm.ingest.quarantine import Quarantine, RejectCounts
from evilm.ingest.retried_clips import RetriedClips
from evilm.ingest.shard_plan import Generation, PlannedShard
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs import commits
from evilm.jobs.commits import Unit
from evilm.manifests.rows import ClipRow
from evilm.shards import FrameManifest, ShardInfo, publish_side
from evilm.video.reasons import RejectReason

logger = logging.getLogger(__name__)

OF_ROWS = frozenset(
    {
        RejectReason.BAD_ROW,
        RejectReason.MISSING_ID,
        RejectReason.DUPLICATE_ID,
        RejectReason.EMPTY_CAPTION,
        RejectReason.BAD_CAPTION,
    }
)
"""Reasons caused only by the manifest: there is no clip to try again."""
_SHARD_FIELDS = ("file", "split", "num_clips", "num_bytes", "sha256", "row_groups")


@dataclass
class CommitLog:
    """The generations of an output and the commit records of their shards."""

    out: str
    seed: int
    generations: list[Generation]

    @property
    def of_manifest(self) -> Generation:
        """Return the latest generation that was planned from the whole manifest."""
        return [generation for generation in self.generations if generation.kind == "rows"][-1]

    def records(self) -> Iterator[tuple[Generation, PlannedShard, dict[str, Any] | None]]:
        """Yield every planned shard with its commit record, in order; few records are held at a time."""
        shards = [(generation, shard) for generation in self.generations for shard in generation.shards]
        records = commits.read_records(self.out, [generation.unit(shard) for generation, shard in shards])
        for (generation, shard), (_, record) in zip(shards, records, strict=True):
            yield generation, shard, record

    def missing(self, or_damaged: bool) -> tuple[list[str], int, set[str]]:
        """Find the shards that are not committed or whose file is missing.

        `or_damaged` includes all other shards too, since their files may be damaged.

        Returns:
            Their tasks, the number of quarantined clips in the other shards, and those tasks that are committed.
        """
        todo, num_bad, known, retried = list[str](), 0, set[str](), self.retried()
        there = set(storage.list_names(self.out))
        for generation, shard, record in self.records():
            if record is None or or_damaged or record.get("file", "") not in there | {""}:
                todo.append(generation.task(shard))
                known.update([generation.task(shard)] if record else [])
            else:
                num_bad += sum(not retried.after(generation.number, row["clip_id"]) for row in record["bad"])
        return todo, num_bad, known

    def allowance(self, todo: Sequence[str], num_bad: int, max_failed_share: float) -> float:
        """Return the share of the clips in `todo` that may fail before too many rows are quarantined.

        Args:
            todo: tasks of shards that are not committed.
            num_bad: quarantined clips in the other shards.
            max_failed_share: allowed share of all rows of the manifest.
        """
        tasks, rows = set(todo), [each for each in self.generations if each.kind == "rows"]
        planned = [shard.num_rows for each in rows for shard in each.shards if each.task(shard) in tasks]
        if len(planned) < len(tasks):
            return 1.0  # clips that are tried again have failed before
        manifest = self.of_manifest
        return (max_failed_share * manifest.num_rows - manifest.reasons.total - num_bad) / max(sum(planned), 1)

    def retried(self) -> RetriedClips:
        """Return the clips that were planned again after they had been quarantined."""
        return RetriedClips(self.out, self.generations, self.seed)

    def rows_of(self, reasons: frozenset[str]) -> Iterator[ClipRow]:
        """Yield the planned rows of the clips that are quarantined for one of these reasons."""
        retried = self.retried()
        for generation, shard, record in self.records():
            bad = [row for row in bad_rows(record or {"bad": []}) if row.reason in reasons]
            wanted = {row.clip_id for row in bad if not retried.after(generation.number, row.clip_id)}
            if wanted:
                rows = shard_plan.read_rows(self.out, generation.task(shard))
                yield from (row for row in rows if row.clip_id in wanted)


@dataclass
class _Sum:
    """Totals of all commits."""

    shards: list[ShardInfo] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)
    files: dict[Unit, str | None] = field(default_factory=dict)
    """The valid file of each shard."""
    clips: dict[int, int] = field(default_factory=dict)
    """Number of clips by generation."""
    num_captions: int = 0
    empty: list[Unit] = field(default_factory=list)
    """Shards without a clip."""
    num_missing: int = 0
    """Shards that are not committed."""

    def add(self, generation: Generation, shard: PlannedShard, record: dict[str, Any]) -> None:
        for flag, count in record["flags"].items():
            self.flags[flag] = self.flags.get(flag, 0) + count
        self.num_captions += record["num_captions"]
        self.files[generation.unit(shard)] = record.get("file")
        self.clips[generation.number] = self.clips.get(generation.number, 0) + record["num_clips"]
        if record["num_clips"]:
            self.shards.append(ShardInfo(**{name: record[name] for name in _SHARD_FIELDS}))
        else:
            self.empty.append(generation.unit(shard))


def merge_commits(
    commit_log: CommitLog, config: ShardVideos, output: Output, is_partial: bool = False
) -> tuple[FrameManifest, RejectCounts]:
    """Merge the commits into the manifest and the quarantine table, and clean up.

    `is_partial` publishes the finished shards while others are still being made; nothing if none is finished.

    Raises:
        ShardError: a shard is missing, or too many rows were quarantined.
        OwnershipError: another run has taken the output over.
    """
    output.check()
    total, reasons, retried = _Sum(), RejectCounts(), commit_log.retried()
    reasons.merge(commit_log.of_manifest.reasons)
    with Quarantine(commit_log.out, quarantine.OF_CLIPS) as table:
        for generation, shard, record in commit_log.records():
            if record is None and is_partial:
                total.num_missing += 1
                continue
            if record is None:
                raise ShardError(
                    f"{commit_log.out} has no commit of {shard.name} for this plan; run the same command again"
                )
            table.extend(row for row in bad_rows(record) if not retried.after(generation.number, row.clip_id))
            total.add(generation, shard, record)
        table.publish(output)
        reasons.merge(table.reasons)
    manifest = _manifest_of(commit_log, config, total, reasons)
    if is_partial:
        if manifest.shards:
            manifest.save(output)
            clips, shards = manifest.num_clips(), len(total.shards)
            logger.info("published %d clips in %d shards; %d shards are missing", clips, shards, total.num_missing)
        return manifest, reasons
    output.check()
    enforce_failed_share(commit_log, config, reasons, total.empty, table.reasons)
    publish_side(manifest, again=config.repair)  # before readers see the shards
    manifest.save(output)
    commits.clean(output, total.files)
    _log_result(manifest, reasons)
    return manifest, reasons


def enforce_failed_share(
    commit_log: CommitLog,
    config: ShardVideos,
    reasons: RejectCounts,
    empty: Sequence[Unit] = (),
    of_clips: RejectCounts | None = None,
) -> None:
    """Fail if a larger share of rows than `config.max_failed_share` is quarantined, or all of them.

    Args:
        reasons: counts of all quarantined rows.
        empty: shards without a clip, to be written again next time; the others stay, as they may have taken days.
        of_clips: counts of the rows that were quarantined for their videos.

    Raises:
        ShardError: too many rows are quarantined; the message names the reasons.
    """
    num_rows, share = commit_log.of_manifest.num_rows, config.max_failed_share
    if reasons.total <= share * num_rows and reasons.total < num_rows:
        return
    for unit in empty:
        commits.revoke(commit_log.out, unit)
    top = next(iter(reasons.sorted()), "")
    where = where_hint(top, of_clips.examples[top][1]) if of_clips and top in of_clips.examples else ""
    may_help = ", with --retry all for videos" if reasons.total > commit_log.of_manifest.reasons.total else ""
    raise ShardError(
        f"{reasons.total} of {num_rows} rows were quarantined ({reasons.top()}{where}); max_failed_share = "
        f"{share:g} and at least one good clip are needed; see {commit_log.out}/quarantine, fix the input and run the "
        f"same command again{may_help}, or raise --max-failed-share"
    )


def tell_retryable(reasons: dict[str, int]) -> None:
    """Log which quarantined clips may succeed in another run."""
    passing = {reason: count for reason, count in reasons.items() if reason in LOST}
    if passing:
        retry = ",".join(passing)
        logger.info("%d quarantined clips may succeed on a retry: --retry %s", sum(passing.values()), retry)


def _manifest_of(commit_log: CommitLog, config: ShardVideos, total: _Sum, reasons: RejectCounts) -> FrameManifest:
    made = [each for each in commit_log.generations if each.shards]
    history = [
        {
            "plan_id": each.plan_id,
            "kind": each.kind,
            "num_planned": each.num_planned,
            "num_clips": total.clips.get(each.number, 0),
        }
        for each in made
    ]
    return FrameManifest(
        uri=commit_log.out,
        plan_id=made[0].plan_id if len(made) == 1 else fingerprint([each.plan_id for each in made]),
        num_frames=config.sampling.stored,
        frame_px=config.sampling.frame_px,
        shards=total.shards,
        sampling=config.sampling.identity,
        num_rows=commit_log.of_manifest.num_rows,
        reasons=reasons.sorted(),
        num_captions=total.num_captions,
        flags=dict(sorted(total.flags.items())),
        generations=history,
        num_missing=total.num_missing,
    )


def missing_val_note(manifest: FrameManifest) -> str:
    """Return a note about a data set without clips to evaluate trainings on; '' if it has some."""
    if manifest.num_clips("val"):
        return ""
    return (
        "no clips of the split val: trainings on these shards are not evaluated, and no best step can be chosen; "
        "--val-share 0.05 would set aside one in twenty source videos"
    )


def _log_result(manifest: FrameManifest, reasons: RejectCounts) -> None:
    if note := missing_val_note(manifest):
        logger.info("%s", note)
    if reasons.counts:
        logger.info("%d of %d rows quarantined, see %s/quarantine", reasons.total, manifest.num_rows, manifest.uri)
        for line in reasons.table():
            logger.info("  %s", line)
        tell_retryable(manifest.reasons)
