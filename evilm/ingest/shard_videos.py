"""Make frame shards from manifests and videos with Ray Data; one task makes one shard.

A run plans the rows that no earlier run has planned, makes the shards that are not committed, and merges all commits
into the manifest. So the same command continues a job that was killed, and adds rows that the manifest has gained.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any

from evilm.cluster import task_options
from evilm.config.base import fingerprint
from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, SourceError, UnfinishedError, UsageError
from evilm.ingest import quarantine, shard_plan
from evilm.ingest.changed_sources import warn_of_changed_sources
from evilm.ingest.failure_budget import FailureBudget
from evilm.ingest.locations import VideoLocations
from evilm.ingest.merge import OF_ROWS, CommitLog, enforce_failed_share, merge_commits, missing_val_note, tell_retryable
from evilm.ingest.shard_plan import Generation
from evilm.ingest.shard_writer import ShardJob, make_shards, unit_of
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs import commits, runner
from evilm.manifests.reader import fingerprint_of_manifests, read_manifests, videos_root
from evilm.manifests.rows import ClipRow
from evilm.shards import MANIFEST, SCHEMA_VERSION, FrameManifest, find_lost
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason

logger = logging.getLogger(__name__)

_GROWS = ("manifest", "limit")
_SCRAPS = (shard_plan.FOLDER, quarantine.FOLDER)


def shard_videos(config: ShardVideos, run: Any = runner.run) -> dict[str, Any]:
    """Make the frame shards that are missing under `config.out`.

    `run` maps the worker over the shards, as `runner.run` does through Ray Data.

    Returns:
        The summary: clips by split, quarantined rows by reason, fingerprint, seconds.

    Raises:
        UsageError: --manifest or --out is missing, or --retry names no reason.
        ConfigError: `config.out` was made with other settings, or from rows that the manifest no longer has.
        ManifestError: the manifest can't be used.
        ShardError: too many rows were quarantined.
    """
    for name, what in (("manifest", "a table of clips"), ("out", "a folder")):
        if not getattr(config, name):
            raise UsageError(f"--{name} is missing; name {what}")
    period(config.publish_every)
    if config.sampling.decoder == "decord" and not find_spec("decord"):
        raise ConfigError(
            "sampling.decoder = 'decord': it is not installed here, as it has no wheels for arm64; use auto"
        )
    reasons = retry_reasons(config.retry)
    out = storage.absolute(config.out)
    inputs = {"manifest": fingerprint_of_manifests(config)} | ({"limit": str(config.limit)} if config.limit else {})
    videos = videos_root(config)
    if videos and not storage.exists(videos):
        raise ConfigError(f"--videos {config.videos or videos}: no such folder or bucket; fix --videos")
    with Output(config, out, inputs, _GROWS, _SCRAPS) as output:
        done, found = output.done, None
        if done or storage.exists(storage.join(out, MANIFEST)):
            found = FrameManifest.load(out)
        changed = warn_of_changed_sources(out, _files(out, found), videos)
        facts = {"changed_sources": changed} if changed else {}
        is_whole = done and found and not config.repair and not find_lost(found)
        if done and is_whole and not any(reason in reasons for reason in done["reasons"]):
            tell_retryable(done["reasons"])
            return done | {"reused": True} | facts
        if found and found.schema_version < SCHEMA_VERSION:
            raise ConfigError(
                f"{out} was made by an earlier version (schema {found.schema_version}): it can be read, but not added "
                "to or repaired; use another --out, or --overwrite to write all shards again"
            )
        output.claim()
        return output.close(_make(config, output, videos, reasons, run)) | facts


def _files(out: str, found: FrameManifest | None) -> list[str]:
    """List the shards that exist, published or not; none of a version that says too little of its videos."""
    if found and found.schema_version < SCHEMA_VERSION:
        return []
    return [name for name in storage.list_names(out) if name.endswith(".parquet")]


def _make(config: ShardVideos, output: Output, videos: str, reasons: frozenset[str], run: Any) -> dict[str, Any]:
    """Plan new rows, make missing shards, publish the manifest, and return the summary."""
    began, out = time.monotonic(), output.out
    commit_log = CommitLog(out, config.sampling.seed, shard_plan.read_generations(out))
    _plan_rows(commit_log, config, output, videos)
    try:
        made = _make_missing(commit_log, config, output, videos, run)
        if reasons and _plan_retry(commit_log, config, output, reasons):
            made = _sum(made, _make_missing(commit_log, config, output, videos, run))
    except UnfinishedError:
        merge_commits(commit_log, config, output, is_partial=True)  # finished shards can be used
        raise
    manifest, aside = merge_commits(commit_log, config, output)
    spent = time.monotonic() - began
    return {
        "out": out,
        "inputs": output.inputs,
        "clips": manifest.splits,
        "num_clips": manifest.num_clips(),
        "num_captions": manifest.num_captions,
        "num_rows": manifest.num_rows,
        "num_quarantined": aside.total,
        "reasons": manifest.reasons,
        "examples": {reason: aside.examples[reason] for reason in manifest.reasons},
        "flags": manifest.flags,
        "num_shards": len(manifest.shards),
        "generations": len(manifest.generations),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "bytes_read": made.num_bytes,
        "clips_per_s": round((made.num_clips + made.num_failed) / max(spent, 1e-9), 2),
        "fingerprint": manifest.fingerprint,
        **({"num_repaired": made.num_repaired} if made.num_repaired else {}),
        **({"note": note} if (note := missing_val_note(manifest)) else {}),
        "seconds": round(spent, 1),
    }


def retry_reasons(names: str) -> frozenset[str]:
    """Return the reasons that --retry names; `all` means every reason found in videos.

    Raises:
        UsageError: a name is not such a reason.
    """
    known = sorted(reason.value for reason in RejectReason if reason not in OF_ROWS)
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if "all" in wanted:
        return frozenset(known)
    if unknown := sorted(wanted - set(known)):
        raise UsageError(f"--retry {unknown[0]}: no such reason to try again; use all, or some of {', '.join(known)}")
    return frozenset(wanted)


def _plan_rows(commit_log: CommitLog, config: ShardVideos, output: Output, videos: str) -> None:
    """Plan the rows of the manifest that are not planned yet.

    Raises:
        ConfigError: rows that were planned before are gone or have changed.
        ShardError: too few rows can be used.
    """
    manifest, planned = fingerprint(output.inputs), [each for each in commit_log.generations if each.kind == "rows"]
    if not planned or planned[-1].manifest != manifest:
        if planned and not commits.any_committed(commit_log.out):
            shard_plan.forget_plans(output)  # no shard was made from them
            commit_log.generations = []
        sampling, earlier = config.sampling, commit_log.generations
        rows, seed, size = read_manifests(config), sampling.seed, sampling.shard_clips
        finder, repeats = _finder(videos, config), config.columns.repeats
        found = shard_plan.plan_rows(output, rows, manifest, earlier, seed, size, finder, repeats)
        commit_log.generations = [*earlier, found]
        _log_plan(found, "that the manifest gained" if earlier else "of the manifest")
        output.extend()
    enforce_failed_share(commit_log, config, commit_log.of_manifest.reasons)


def _plan_retry(commit_log: CommitLog, config: ShardVideos, output: Output, reasons: frozenset[str]) -> bool:
    """Plan the clips that were quarantined for one of these reasons once more, and return whether there are any."""
    if commit_log.generations[-1].kind == "retry" and not output.done:
        return False  # this run has just finished such a plan
    output.extend()
    rows, size = commit_log.rows_of(reasons), config.sampling.shard_clips
    found = shard_plan.plan_retry(output, rows, commit_log.generations, commit_log.seed, size)
    if found is not None:
        commit_log.generations.append(found)
        _log_plan(found, "once more")
    return found is not None


def _make_missing(commit_log: CommitLog, config: ShardVideos, output: Output, videos: str, run: Any) -> commits.Tally:
    """Run the tasks of all shards that are not committed."""
    (todo, num_bad, known), done = commit_log.missing(config.repair), commits.Tally(0)
    num_shards = sum(len(generation.shards) for generation in commit_log.generations)
    if not todo:
        return done
    if len(todo) < num_shards:
        logger.info("%d of %d shards exist; writing the others", num_shards - len(todo), num_shards)
    work = ShardJob(
        out=commit_log.out,
        run=output.run,
        videos=videos,
        plan_ids={generation.folder: generation.plan_id for generation in commit_log.generations},
        sampling=config.sampling,
        fetch=config.fetch,
        max_failed_share=config.max_failed_share,
        max_failures=config.cluster.max_failures,
        repair=config.repair,
    )
    options, needed = task_options(config.cluster, len(todo))
    options["fn_args"] = (work,)
    num_clips = {each.task(shard): shard.num_rows for each in commit_log.generations for shard in each.shards}
    is_due, share = _Due(*period(config.publish_every)), config.max_failed_share
    allowance = 1.0 if config.retry else commit_log.allowance(todo, num_bad, share)
    watch = FailureBudget(commit_log.out, output.run, lambda task: unit_of(work, task), share, allowance)
    try:
        with (
            _locations(commit_log, todo, config, output) as private,
            closing(run(todo, make_shards, needed, options, "frames", num_clips, private)) as rows,
        ):
            for row in rows:
                tally = commits.Tally(*(int(row[name]) for name in commits.Tally._fields))
                done = _sum(done, tally)
                watch.add(str(row["name"]), tally)
                if is_due():
                    merge_commits(commit_log, config, output, is_partial=True)
                    watch.keep()
    except SourceError:
        watch.take_back([task for task in todo if task not in known])
        raise
    return done


def period(text: str) -> tuple[int, float]:
    """Read --publish-every: shards, or else seconds, between two publications; 0 for never.

    Raises:
        UsageError: the text has another form.
    """
    match = re.fullmatch(r"(\d+)([mh]?)", text.strip())
    if not match:
        raise UsageError(f"--publish-every {text}: give a number of shards (200), minutes (30m) or hours (2h), or 0")
    number, unit = int(match[1]), match[2]
    return (0, number * {"m": 60.0, "h": 3600.0}[unit]) if unit else (number, 0.0)


class _Due:
    """Decides after each shard whether to publish."""

    def __init__(self, shards: int, seconds: float) -> None:
        self._shards, self._seconds = shards, seconds
        self._num_made, self._began = 0, time.monotonic()

    def __call__(self) -> bool:
        self._num_made += 1
        spent = time.monotonic() - self._began
        is_due = 0 < self._shards <= self._num_made or 0 < self._seconds <= spent
        if is_due:
            self._num_made, self._began = 0, time.monotonic()
        return is_due


@contextmanager
def _locations(
    commit_log: CommitLog, todo: Sequence[str], config: ShardVideos, output: Output
) -> Iterator[runner.PrivateData | None]:
    """Look up videos that the plan can't locate: behind signed URLs, or in tars that have changed since."""
    manifest = fingerprint(output.inputs)
    stale = [
        each for each in commit_log.generations if each.has_secrets or (each.has_offsets and each.manifest != manifest)
    ]
    tasks = {each.task(shard) for each in stale for shard in each.shards}
    wanted = [task for task in todo if task in tasks]
    if not wanted:
        yield None
        return
    with VideoLocations(commit_log.out, wanted, read_manifests(config)) as locations:
        yield runner.PrivateData(locations.path, locations.records)


def _finder(videos: str, config: ShardVideos) -> Callable[[ClipRow], bool]:
    """Build a test for rows whose video certainly does not exist. It asks no server, which would slow planning down."""
    fetcher = Fetcher(videos, config.fetch)
    return lambda row: fetcher.is_missing(row.path, row.needs_ending, row.offset, row.url)


def _sum(one: commits.Tally, other: commits.Tally) -> commits.Tally:
    return commits.Tally(*(old + new for old, new in zip(one, other, strict=True)))


def _log_plan(generation: Generation, which: str) -> None:
    aside = f"; {generation.reasons.total} rows quarantined" if generation.reasons.counts else ""
    logger.info("planned %d clips %s in %d shards%s", generation.num_planned, which, len(generation.shards), aside)
