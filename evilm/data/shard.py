"""From a manifest and a folder of videos to frame shards, through Ray Data; one task makes one shard."""

import hashlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from evilm import storage
from evilm.config.data import FramesConfig
from evilm.config.runs import ShardVideos
from evilm.data import job
from evilm.data.manifest import BadRow, ClipRow, count_reasons, find_files, is_inside, read_manifest
from evilm.data.plan import Plan, forget_plan, read_plan, read_rows, write_plan, write_quarantine
from evilm.errors import ConfigError, DecodeError, ManifestError, ShardError
from evilm.outputs import close_output, open_output
from evilm.shards import FrameManifest, ShardInfo, write_frames
from evilm.video.child import Decoder
from evilm.video.decode import DecodedClip
from evilm.video.reasons import Flag, Reason

logger = logging.getLogger(__name__)

_FETCH_ATTEMPTS = 3


def shard_videos(config: ShardVideos) -> dict[str, Any]:
    """Make the frame shards that are missing under `config.out`.

    Returns:
        The summary: clips by split, quarantined rows by reason, fingerprint, seconds.

    Raises:
        ManifestError: the CSV can't be used.
        ShardError: too many rows were quarantined.
    """
    for name in ("manifest", "videos", "out"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; name {'a CSV' if name == 'manifest' else 'a folder'}")
    began = time.monotonic()
    out, videos = storage.absolute(config.out), storage.absolute(config.videos)
    try:
        data = storage.read_bytes(config.manifest)
    except OSError as error:
        raise ManifestError(f"cannot read {config.manifest} ({error.strerror or error}); give a CSV file") from None
    inputs = {"manifest": hashlib.sha256(data).hexdigest()[:16]}
    if done := open_output(config, out, inputs):
        return done | {"reused": True}
    plan = read_plan(out) or _plan(config, data, videos, out)
    write_quarantine(out, "manifest", plan.bad)
    _enforce(config, plan, plan.bad, [])
    _make_shards(config, plan, videos, out)
    manifest = _finalise(config, plan, out)
    summary = {
        "out": out,
        "inputs": inputs,
        "clips": manifest.splits,
        "num_clips": manifest.num_clips(),
        "num_rows": manifest.num_rows,
        "num_quarantined": manifest.num_rows - manifest.num_clips(),
        "reasons": manifest.reasons,
        "flags": manifest.flags,
        "num_shards": len(manifest.shards),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
        "seconds": round(time.monotonic() - began, 1),
    }
    return close_output(out, summary)


def _plan(config: ShardVideos, data: bytes, videos: str, out: str) -> Plan:
    """Read the CSV, look for the files, decide which clip goes where."""
    rows, bad = read_manifest(data, config.manifest, config.columns, config.split, config.limit)
    found, lost = find_files(rows, videos)
    bad = sorted([*bad, *lost], key=lambda row: row.record)
    plan = write_plan(out, found, bad, config.sampling.seed, config.sampling.shard_clips)
    logger.info("planned %d clips in %d shards; %d rows quarantined", len(found), len(plan.shards), len(bad))
    return plan


def _make_shards(config: ShardVideos, plan: Plan, videos: str, out: str) -> None:
    """Run the tasks of all shards that are not committed."""
    names = [shard.name for shard in plan.shards]
    done = job.committed(out, names)
    for name in [name for name, record in done.items() if record["plan_id"] != plan.plan_id]:
        job.revoke(out, name)  # of a plan that was given up
        del done[name]
    todo = [name for name in names if name not in done]
    if not todo:
        return
    if done:
        logger.info("%d of %d shards are there; making the rest", len(done), len(names))
    from ray.data import TaskPoolStrategy

    work = _Work(out, videos, plan.plan_id, config.sampling, uuid.uuid4().hex[:8], config.cluster.max_failures)
    workers = min(config.cluster.num_workers, len(todo))
    options = {"fn_args": (work,), "compute": TaskPoolStrategy(size=workers), "num_cpus": 1}
    for _ in job.run(todo, _task, workers, options, "frames"):
        pass


@dataclass(frozen=True)
class _Work:
    """What all tasks of a run need."""

    out: str
    videos: str
    plan_id: str
    sampling: FramesConfig
    job: str
    max_failures: int


def _task(batch: dict[str, np.ndarray], work: _Work) -> dict[str, np.ndarray]:
    """Make one shard and commit it."""
    return job.outcome(partial(_make_shard, work), batch)


def _make_shard(work: _Work, name: str) -> tuple[int, int]:
    job.begin_attempt(work.out, work.job, name, work.max_failures)
    rows = read_rows(work.out, name)
    maker = _Maker(work)
    with Decoder(work.sampling) as maker.decoder:
        size = work.sampling.row_group_clips
        data = write_frames(_groups(maker.clips(rows), size), {"plan_id": work.plan_id, "shard": name})
    record = {
        "plan_id": work.plan_id,
        "split": rows[0].split,
        "num_clips": maker.num_clips,
        "row_groups": [min(size, maker.num_clips - start) for start in range(0, maker.num_clips, size)],
        "flags": maker.flags,
        "bad": [asdict(row) for row in maker.bad],
    }
    job.commit(work.out, name, data if maker.num_clips else None, record)
    return maker.num_clips, len(maker.bad)


class _Maker:
    """Turns planned rows into shard rows, one after the other, and counts."""

    decoder: Decoder

    def __init__(self, work: _Work) -> None:
        self._videos = work.videos
        self.num_clips = 0
        self.bad: list[BadRow] = []
        self.flags: dict[str, int] = {}

    def clips(self, rows: Sequence[ClipRow]) -> Iterator[dict[str, Any]]:
        """Shard rows of the clips that can be decoded, numbered without gaps."""
        for row in rows:
            try:
                with _local_copy(self._videos, row.path) as path:
                    clip = self.decoder.decode(path, row.clip_id)
                    source = {"source_bytes": os.path.getsize(path), "source_hash": _sha256(path)}
            except DecodeError as error:
                detail = error.detail.replace(self._videos, "")[:500]
                self.bad.append(BadRow(row.record, row.clip_id, Reason(error.reason), detail, row.split, row.path))
                continue
            yield self._row(row, clip) | source
            self.num_clips += 1

    def _row(self, row: ClipRow, clip: DecodedClip) -> dict[str, Any]:
        for flag in Flag.names(clip.flags):
            self.flags[flag] = self.flags.get(flag, 0) + 1
        return asdict(clip) | {
            "clip_id": row.clip_id,
            "row": self.num_clips,
            "split": row.split,
            "caption": row.caption,
            "source_uri": row.path,
            "extra": list(row.extra.items()),
        }


def _groups(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of `size`, the last one shorter; only one list is held at a time."""
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _local_copy(videos: str, path: str) -> Iterator[str]:
    """A video as a local file: itself, or fetched from an object store for as long as the block lasts."""
    uri = storage.join(videos, path)
    if storage.is_local(uri):
        if not is_inside(uri, videos):
            raise DecodeError(Reason.PATH_UNSAFE, "a link that leaves the video root")
        yield uri
        return
    data = _fetch(uri)
    with tempfile.NamedTemporaryFile(prefix="evilm-", suffix=os.path.splitext(path)[1]) as file:
        file.write(data)
        file.flush()
        yield file.name


def _fetch(uri: str) -> bytes:
    """A remote file, asked for a few times."""
    error: OSError | None = None
    for attempt in range(_FETCH_ATTEMPTS):
        try:
            return storage.read_bytes(uri)
        except FileNotFoundError:
            raise DecodeError(Reason.MISSING_FILE) from None
        except IsADirectoryError:
            raise DecodeError(Reason.NOT_A_FILE) from None
        except OSError as failed:
            error = failed
            time.sleep(2.0**attempt)
    raise DecodeError(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}")


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finalise(config: ShardVideos, plan: Plan, out: str) -> FrameManifest:
    """Fold the commits into the manifest and the quarantine table, and clean up."""
    records = job.committed(out, [shard.name for shard in plan.shards])
    shards, bad, flags = [], list(plan.bad), dict[str, int]()
    for shard in plan.shards:
        record = records.get(shard.name)
        if record is None or record["plan_id"] != plan.plan_id:
            raise ShardError(f"{out} has no commit of {shard.name} for this plan; run the same command again")
        rejected = [BadRow(**{**row, "reason": Reason(row["reason"])}) for row in record["bad"]]
        write_quarantine(out, shard.name, rejected)
        bad += rejected
        for flag, count in record["flags"].items():
            flags[flag] = flags.get(flag, 0) + count
        if record["num_clips"]:
            names = ("file", "split", "num_clips", "num_bytes", "sha256", "row_groups")
            shards.append(ShardInfo(**{name: record[name] for name in names}))
    _enforce(config, plan, bad, [name for name, record in records.items() if record["bad"]])
    job.clean(out, records)
    manifest = FrameManifest(
        uri=out,
        plan_id=plan.plan_id,
        num_frames=config.sampling.num_frames,
        frame_px=config.sampling.frame_px,
        shards=shards,
        sampling=config.sampling.model_dump(mode="json"),
        num_rows=plan.num_rows,
        reasons=count_reasons(bad),
        flags=dict(sorted(flags.items())),
    )
    manifest.save()
    return manifest


def _enforce(config: ShardVideos, plan: Plan, bad: Sequence[BadRow], bad_shards: Sequence[str]) -> None:
    """Fail where more rows than allowed are quarantined, or all; the same command then looks at them anew.

    Raises:
        ShardError: says for which reasons.
    """
    if len(bad) <= config.max_failed_share * plan.num_rows and len(bad) < plan.num_rows:
        return
    out = storage.absolute(config.out)
    for name in bad_shards:
        job.revoke(out, name)
    forget_plan(out)
    raise ShardError(
        f"{len(bad)} of {plan.num_rows} rows were quarantined ({_top(bad)}); max_failed_share = "
        f"{config.max_failed_share:g} and at least one good clip are needed; see {out}/quarantine, mend the input and "
        "run the same command again"
    )


def _top(bad: Sequence[BadRow], most: int = 3) -> str:
    """The most frequent reasons, with how often and an example."""
    examples = {row.reason.value: row.clip_id for row in reversed(bad)}
    counts = list(count_reasons(bad).items())[:most]
    return ", ".join(f"{reason} {count}, e.g. {examples[reason]!r}" for reason, count in counts)
