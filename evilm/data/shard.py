"""From manifests and videos to frame shards, through Ray Data; one task makes one shard.

A run plans what no earlier run has planned, makes the shards that are not committed, and folds all commits into the
manifest. So the same command continues what was killed, and adds what the manifest gained.
"""

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

from evilm import storage
from evilm.config.base import fingerprint
from evilm.config.runs import ShardVideos
from evilm.data import job, plan, quarantine
from evilm.data.fold import OF_ROWS, Ledger, enforce, finalise, tell_retryable
from evilm.data.maker import Work, make_shards
from evilm.data.manifest import ClipRow
from evilm.data.plan import Generation
from evilm.data.sources import fingerprint_of_manifests, read_manifests, videos_root
from evilm.data.watch import Watch
from evilm.errors import ConfigError, SourceError, UsageError
from evilm.outputs import close_output, extend_output, open_output
from evilm.shards import MANIFEST, FrameManifest
from evilm.video.fetch import Fetcher
from evilm.video.reasons import Reason

logger = logging.getLogger(__name__)

_GROWS = ("manifest", "limit")
_SCRAPS = (plan.FOLDER, quarantine.FOLDER)


def shard_videos(config: ShardVideos) -> dict[str, Any]:
    """Make the frame shards that are missing under `config.out`.

    Returns:
        The summary: clips by split, quarantined rows by reason, fingerprint, seconds.

    Raises:
        UsageError: --manifest or --out is missing, or --retry names no reason.
        ConfigError: `config.out` was made with other settings, or from other rows than the manifest begins with.
        ManifestError: the manifest can't be used.
        ShardError: too many rows were quarantined.
    """
    for name, what in (("manifest", "a table of clips"), ("out", "a folder")):
        if not getattr(config, name):
            raise UsageError(f"--{name} is missing; name {what}")
    reasons = retry_reasons(config.retry)
    began, out = time.monotonic(), storage.absolute(config.out)
    inputs = {"manifest": fingerprint_of_manifests(config)} | ({"limit": str(config.limit)} if config.limit else {})
    videos = videos_root(config)
    if videos and not storage.exists(videos):
        raise ConfigError(f"--videos {config.videos or videos}: there is no such folder or bucket; mend the place")
    done = open_output(config, out, inputs, _GROWS, _SCRAPS)
    if done or storage.exists(storage.join(out, MANIFEST)):
        FrameManifest.load(out)  # refuses what another version of this package made
    if done and not any(reason in reasons for reason in done["reasons"]):
        tell_retryable(done["reasons"])
        return done | {"reused": True}
    ledger = Ledger(out, config.sampling.seed, plan.read_generations(out))
    _plan_rows(ledger, config, inputs, videos)
    made = _make_missing(ledger, config, videos)
    if reasons and _plan_retry(ledger, config, inputs, reasons, is_finished=bool(done)):
        made = _sum(made, _make_missing(ledger, config, videos))
    manifest, aside = finalise(ledger, config)
    spent = time.monotonic() - began
    summary = {
        "out": out,
        "inputs": inputs,
        "clips": manifest.splits,
        "num_clips": manifest.num_clips(),
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
        "seconds": round(spent, 1),
    }
    return close_output(out, summary)


def retry_reasons(names: str) -> frozenset[str]:
    """The reasons that --retry names; `all` means everything that was found in videos.

    Raises:
        UsageError: a name that is no such reason.
    """
    known = sorted(reason.value for reason in Reason if reason not in OF_ROWS)
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if "all" in wanted:
        return frozenset(known)
    if unknown := sorted(wanted - set(known)):
        raise UsageError(f"--retry {unknown[0]}: no such reason to try again; use all, or some of {', '.join(known)}")
    return frozenset(wanted)


def _plan_rows(ledger: Ledger, config: ShardVideos, inputs: dict[str, str], videos: str) -> None:
    """Plan the rows of the manifest that are not planned yet.

    Raises:
        ConfigError: rows that were planned before are gone or say something else.
        ShardError: too few rows can be used.
    """
    manifest, planned = fingerprint(inputs), [each for each in ledger.generations if each.kind == "rows"]
    if not planned or planned[-1].manifest != manifest:
        if planned and not job.any_committed(ledger.out):
            plan.forget_plans(ledger.out)  # nothing was made of them
            ledger.generations = []
        sampling, earlier = config.sampling, ledger.generations
        rows, seed, size = read_manifests(config), sampling.seed, sampling.shard_clips
        found = plan.plan_rows(ledger.out, rows, manifest, earlier, seed, size, _finder(videos, config))
        ledger.generations = [*earlier, found]
        _tell(found, "that the manifest gained" if earlier else "of the manifest")
        extend_output(config, ledger.out, inputs)
    enforce(ledger, config, ledger.of_manifest.reasons)


def _plan_retry(
    ledger: Ledger, config: ShardVideos, inputs: dict[str, str], reasons: frozenset[str], is_finished: bool
) -> bool:
    """Plan the clips once more that were quarantined for some of these reasons; whether there are any."""
    if ledger.generations[-1].kind == "retry" and not is_finished:
        return False  # this run has just done what was left of such a plan
    extend_output(config, ledger.out, inputs)
    rows, size = ledger.rows_of(reasons), config.sampling.shard_clips
    found = plan.plan_retry(ledger.out, rows, ledger.generations, ledger.seed, size)
    if found is not None:
        ledger.generations.append(found)
        _tell(found, "once more")
    return found is not None


def _make_missing(ledger: Ledger, config: ShardVideos, videos: str) -> job.Tally:
    """Run the tasks of all shards that are not committed."""
    (todo, num_bad), done = ledger.missing_units(), job.Tally(0)
    num_shards = sum(len(generation.shards) for generation in ledger.generations)
    if not todo:
        return done
    if len(todo) < num_shards:
        logger.info("%d of %d shards are there; making the rest", num_shards - len(todo), num_shards)
    from ray.data import TaskPoolStrategy

    work = Work(
        out=ledger.out,
        videos=videos,
        plan_ids=tuple(generation.plan_id for generation in ledger.generations),
        sampling=config.sampling,
        fetch=config.fetch,
        max_failed_share=config.max_failed_share,
        job=uuid.uuid4().hex[:8],
        max_failures=config.cluster.max_failures,
    )
    workers = min(config.cluster.num_workers, len(todo))
    options = {"fn_args": (work,), "compute": TaskPoolStrategy(size=workers), "num_cpus": 1}
    share = config.max_failed_share
    allowance = 1.0 if config.retry else ledger.allowance(todo, num_bad, share)
    watch = Watch(ledger.out, work.job, share, allowance)
    try:
        with closing(job.run(todo, make_shards, workers, options, "frames")) as rows:
            for row in rows:
                tally = job.Tally(*(int(row[name]) for name in job.Tally._fields))
                done = _sum(done, tally)
                watch.add(str(row["name"]), tally)
    except SourceError:
        watch.take_back(todo)
        raise
    return done


def _finder(videos: str, config: ShardVideos) -> Callable[[ClipRow], bool]:
    """A function that says whether the video of a row is surely not there. It asks no server: the plan waits for it."""
    fetcher = Fetcher(videos, config.fetch)
    return lambda row: fetcher.is_missing(row.path, row.needs_ending, row.offset, row.url)


def _sum(one: job.Tally, other: job.Tally) -> job.Tally:
    return job.Tally(*(old + new for old, new in zip(one, other, strict=True)))


def _tell(generation: Generation, which: str) -> None:
    aside = f"; {generation.reasons.total} rows quarantined" if generation.reasons.counts else ""
    logger.info("planned %d clips %s in %d shards%s", generation.num_planned, which, len(generation.shards), aside)
