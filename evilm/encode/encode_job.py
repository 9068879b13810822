"""Precompute the tokenizer's codes of every clip, row-aligned with the frame shards (Sec. 3.3, "off-the-shelf").

Ray Data runs a pool of actors that hold the tokenizer; one call encodes one frame shard, row group by row group. With
several views per clip (crops and flips), the codes of each view are stored with the numbers needed to replay it.
"""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np

from evilm.cluster import actor_options
from evilm.config.resources import ActorPoolConfig
from evilm.config.stages import PrecomputeCodes
from evilm.encode.tokenizer_actor import EncodeJob, TokenizerActor
from evilm.encode.verify_codes import audit_codes
from evilm.errors import ConfigError, ShardError
from evilm.io import storage
from evilm.io.outputs import CONFIG as SETTINGS
from evilm.io.outputs import SUMMARY, Output
from evilm.jobs import commits, runner
from evilm.model.tokenizers.base_tokenizer import BaseVideoTokenizer, load_tokenizer
from evilm.model.tokenizers.collapse import require_usage_of_labels, require_usage_on_val
from evilm.prefetch import map_ahead
from evilm.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    CodeShardInfo,
    CodesManifest,
    FrameManifest,
    ShardInfo,
    codes_folder,
    find_lost,
    publish_side,
    read_histogram,
)
from evilm.video.crops import resampler

logger = logging.getLogger(__name__)

_READS = 16
_MOST_CODES = 1 << 16
"""Codes are stored as uint16."""


def precompute_codes(config: PrecomputeCodes, run: Any = runner.run) -> dict[str, Any]:
    """Encode the frame shards without codes into a folder of `<out>` named by tokenizer and views.

    Running the same command again encodes frame shards that were added since; the others keep their codes. `run` maps
    the actor over the shards, as `runner.run` does through Ray Data.

    Returns:
        The summary: clips by split, share of the codebook used, fingerprints, seconds.

    Raises:
        ShardError: the frame shards are missing, damaged, or differ from those encoded before.
        CheckpointError: the tokenizer can't be read.
        CollapseError: it uses too little of its codebook on the val split, by its training's summary, or on the train
            split; the codes are kept.
    """
    for name in ("frames", "tokenizer", "out"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; name a folder")
    frames = FrameManifest.load(config.frames)
    tokenizer = load_tokenizer(config.tokenizer)
    place = storage.join(config.tokenizer, SUMMARY)
    trained = storage.read_json(place) if storage.exists(place) else {}
    require_usage_on_val(tokenizer.codebook, trained, config.tokenizer)  # before encoding starts
    work = plan_work(config, frames, tokenizer)
    with Output(config, work.out, {"tokenizer": work.fingerprint}) as output:
        is_same = output.done is not None and output.done["inputs"]["frames"] == frames.fingerprint
        if output.done and is_same and not config.repair and not find_lost(CodesManifest.load(work.out)):
            summary = output.done | {"reused": True}
        else:
            _refuse_earlier_version(work.out)
            _refuse_other_frames(frames, work)
            summary = _encode(config, frames, replace(work, run=output.claim()), output, run)
    require_usage_of_labels(tokenizer.codebook, CodesManifest.load(work.out).histograms, work.out)
    return summary | _audit(config, frames, tokenizer, work.out)


def _encode(
    config: PrecomputeCodes, frames: FrameManifest, work: EncodeJob, output: Output, run: Any
) -> dict[str, Any]:
    """Encode the frame shards without codes and publish the manifest; return the summary."""
    began, root = time.monotonic(), storage.absolute(config.out)
    _code_shards(config.cluster, frames, work, run)
    manifest = _finalise(frames, work, output)
    summary = {
        "out": root,
        "codes": work.out,
        "inputs": {"frames": frames.fingerprint, "tokenizer": work.fingerprint},
        "clips": frames.splits,
        "num_views": work.num_views,
        "num_codes": work.num_codes,
        "grid": work.grid,
        "code_usage": manifest.code_usage,
        "num_shards": len(manifest.shards),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
        "seconds": round(time.monotonic() - began, 1),
    }
    output.check()
    for name, content in ((SETTINGS, storage.read_json(storage.join(work.out, SETTINGS))), (SUMMARY, summary)):
        storage.write_json(storage.join(root, name), content)  # above the folders of all tokenizers: the newest run
    return output.close(summary)


def plan_work(config: PrecomputeCodes, frames: FrameManifest, tokenizer: BaseVideoTokenizer) -> EncodeJob:
    """Collect the settings of the actors.

    Raises:
        ConfigError: the codebook is too large for uint16.
    """
    fingerprint, num_codes = tokenizer.fingerprint(), tokenizer.codebook.num_codes
    if num_codes > _MOST_CODES:
        raise ConfigError(f"num_codes = {num_codes}; code shards hold at most {_MOST_CODES}")
    spec = config.augment.model_dump(mode="json") | {"resampler": resampler()} if config.views > 1 else {}
    return EncodeJob(
        out=storage.join(storage.absolute(config.out), codes_folder(fingerprint, config.views, spec)),
        run=0,
        frames=frames.uri,
        tokenizer=storage.absolute(config.tokenizer),
        fingerprint=fingerprint,
        frame_px=frames.frame_px,
        num_frames=frames.num_frames,
        grid=tokenizer.grid,
        num_codes=num_codes,
        num_views=config.views,
        crop=config.augment,
        view_spec=spec,
        batch_clips=config.batch_clips,
        threads=max(1, int(config.cluster.cpus_per_worker)),
        use_gpu=config.cluster.uses_gpus,
        max_failures=config.cluster.max_failures,
        repair=config.repair,
    )


def _audit(config: PrecomputeCodes, frames: FrameManifest, tokenizer: BaseVideoTokenizer, codes: str) -> dict[str, Any]:
    """Return the entries that `--audit` adds to the printed summary."""
    if not config.audit:
        return {}
    found = audit_codes(frames, CodesManifest.load(codes), tokenizer, config.audit, seed=config.augment.seed)
    return {"audit": found._asdict()}


def unit_of(shard: ShardInfo) -> commits.Unit:
    """Return the unit of a frame shard's codes; its name is the shard's without digest and ending."""
    return commits.Unit(shard.file.rpartition("-")[0], shard.sha256)


def _refuse_earlier_version(out: str) -> None:
    """Check that codes can be added to `out`.

    Raises:
        ShardError: an earlier version wrote the codes there.
    """
    if storage.exists(storage.join(out, MANIFEST)) and CodesManifest.load(out).schema_version < SCHEMA_VERSION:
        raise ShardError(
            f"{out} was written by an earlier version: it can be read, but not extended or repaired; use another "
            "--out, or --overwrite to compute all codes again"
        )


def _refuse_other_frames(frames: FrameManifest, work: EncodeJob) -> None:
    """Check that existing codes belong to these frames: shards may be added, but not changed or removed.

    Raises:
        ShardError: a shard was changed or removed.
    """
    shards = {unit_of(shard).name: shard for shard in frames.shards}
    coded = [(name, key) for name, keys in commits.committed_keys(work.out).items() for key in keys]
    if storage.exists(storage.join(work.out, MANIFEST)):
        before = CodesManifest.load(work.out).shards
        coded += [(shard.frames_file.rpartition("-")[0], shard.frames_sha256) for shard in before]
    for unit, sha256 in coded:
        if unit not in shards or not shards[unit].sha256.startswith(sha256):
            raise ShardError(
                f"{work.out} holds codes of frame shard {unit}, which {frames.uri} "
                f"{'holds with other content' if unit in shards else 'does not hold'}: these are other frames, not "
                "more of them; use another --out, or --overwrite to delete the codes"
            )


def _code_shards(cluster: ActorPoolConfig, frames: FrameManifest, work: EncodeJob, run: Any) -> None:
    """Run the actors over all uncommitted shards."""
    shards = {unit_of(shard).name: shard for shard in frames.shards}
    there = set(storage.list_names(work.out))
    done = {
        name
        for name, record in commits.committed(work.out, [unit_of(shard) for shard in frames.shards]).items()
        if record["file"] in there and not work.repair
    }
    todo = [name for name in shards if name not in done]
    if not todo:
        return
    options, needed = actor_options(cluster, len(todo))
    options["fn_constructor_args"] = (work, {name: shards[name] for name in todo})
    for _ in run(todo, TokenizerActor, needed, options, "codes", {name: shards[name].num_clips for name in todo}):
        pass


def _finalise(frames: FrameManifest, work: EncodeJob, output: Output) -> CodesManifest:
    """Merge the commits into the manifest, and clean up."""
    records = commits.committed(work.out, [unit_of(shard) for shard in frames.shards])
    shards, histograms = [], dict[str, np.ndarray]()
    for shard in frames.shards:
        record = records.get(unit_of(shard).name)
        if record is None or record["frames_sha256"] != shard.sha256:
            raise ShardError(f"{work.out} has no commit of {shard.file}; run the same command again")
        shards.append(CodeShardInfo(**record))
    counts = map_ahead(lambda shard: read_histogram(storage.join(work.out, shard.file)), shards, _READS)
    for shard, histogram in zip(shards, counts, strict=True):
        histograms[shard.split] = histograms.get(shard.split, 0) + histogram
    manifest = CodesManifest(
        uri=work.out,
        tokenizer=work.fingerprint,
        frames=frames.fingerprint,
        num_codes=work.num_codes,
        num_frames=frames.num_frames,
        grid=work.grid,
        shards=shards,
        histograms={split: histogram.tolist() for split, histogram in sorted(histograms.items())},
        num_views=work.num_views,
        view_spec=work.view_spec,
    )
    publish_side(manifest, again=work.repair)
    manifest.save(output)
    commits.clean(output, {unit_of(shard): records[unit_of(shard).name]["file"] for shard in frames.shards})
    return manifest
