"""The tokenizer's codes of every clip, computed once, row-aligned with the frame shards (Sec. 3.3, "off-the-shelf").

Ray Data with a pool of actors that hold the tokenizer; one call codes one frame shard.
"""

import io
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from evilm import storage
from evilm.config.runs import PrecomputeCodes
from evilm.config.train import ClusterConfig
from evilm.data import job
from evilm.data.cluster import connect, num_cpus
from evilm.errors import ConfigError, ShardError
from evilm.model.tokenizer import VideoTokenizer
from evilm.outputs import CONFIG as SETTINGS
from evilm.outputs import SUMMARY, close_output, open_output
from evilm.shards import (
    CodeShardInfo,
    CodesManifest,
    FrameManifest,
    ShardInfo,
    codes_schema,
    decode_frames,
    write_codes,
)

logger = logging.getLogger(__name__)

_MOST_CODES = 1 << 16
"""Codes are stored as uint16."""


def precompute_codes(config: PrecomputeCodes) -> dict[str, Any]:
    """Code the frame shards that are not coded yet, under `<out>/<tokenizer fingerprint>/`.

    Returns:
        The summary: clips by split, share of the codebook used, fingerprints, seconds.

    Raises:
        ShardError: the frame shards are missing or damaged.
        CheckpointError: the tokenizer can't be read.
    """
    for name in ("frames", "tokenizer", "out"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; name a folder")
    began = time.monotonic()
    frames = FrameManifest.load(config.frames)
    tokenizer = VideoTokenizer.from_pretrained(config.tokenizer)
    fingerprint, num_codes, grid = tokenizer.fingerprint(), tokenizer.config.codebook.num_codes, tokenizer.config.grid
    if num_codes > _MOST_CODES:
        raise ConfigError(f"num_codes = {num_codes}; code shards hold at most {_MOST_CODES}")
    root = storage.absolute(config.out)
    out = storage.join(root, fingerprint)
    inputs = {"frames": frames.fingerprint, "tokenizer": fingerprint}
    if done := open_output(config, out, inputs):
        return done | {"reused": True}
    work = _Work(
        out=out,
        frames=frames.uri,
        tokenizer=storage.absolute(config.tokenizer),
        fingerprint=fingerprint,
        frame_px=frames.frame_px,
        num_codes=num_codes,
        codes_per_clip=frames.num_frames * grid**2,
        batch_clips=config.batch_clips,
        threads=max(1, int(config.cluster.cpus_per_worker)),
        use_gpu=config.cluster.gpus_per_worker > 0,
        job=uuid.uuid4().hex[:8],
        max_failures=config.cluster.max_failures,
    )
    _code_shards(config.cluster, frames, work)
    manifest = _finalise(frames, work, grid)
    summary = {
        "out": root,
        "codes": out,
        "inputs": inputs,
        "clips": frames.splits,
        "num_codes": num_codes,
        "grid": grid,
        "code_usage": manifest.code_usage,
        "num_shards": len(manifest.shards),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
        "seconds": round(time.monotonic() - began, 1),
    }
    for name, content in ((SETTINGS, storage.read_json(storage.join(out, SETTINGS))), (SUMMARY, summary)):
        storage.write_json(storage.join(root, name), content)  # beside all tokenizers' folders: the newest run
    return close_output(out, summary)


@dataclass(frozen=True)
class _Work:
    """What all actors of a run need."""

    out: str
    frames: str
    tokenizer: str
    fingerprint: str
    frame_px: int
    num_codes: int
    codes_per_clip: int
    batch_clips: int
    threads: int
    use_gpu: bool
    job: str
    max_failures: int


def _unit(shard: ShardInfo) -> str:
    """The name of a frame shard without digest and ending: `train-00000`."""
    return shard.file.rpartition("-")[0]


def _code_shards(cluster: ClusterConfig, frames: FrameManifest, work: _Work) -> None:
    """Run the actors over all shards that are not committed."""
    shards = {_unit(shard): shard for shard in frames.shards}
    done = job.committed(work.out, list(shards))
    todo = [name for name in shards if name not in done]
    if not todo:
        return
    from ray.data import ActorPoolStrategy

    actors = min(cluster.num_workers, len(todo))
    needed = actors * cluster.cpus_per_worker + 1  # one for Ray Data's own small tasks, which would wait for ever
    connect(min_cpus=needed)
    fits = num_cpus() >= needed
    options: dict[str, Any] = {
        "fn_constructor_args": (work, {name: shards[name] for name in todo}),
        # On a cluster that is too small as it stands, begin with one actor; the others come as it grows.
        "compute": ActorPoolStrategy(size=actors) if fits else ActorPoolStrategy(min_size=1, max_size=actors),
        "num_cpus": cluster.cpus_per_worker,
    }
    if cluster.gpus_per_worker:
        options["num_gpus"] = cluster.gpus_per_worker
    for _ in job.run(todo, _Coder, needed, options, "codes"):
        pass


class _Coder:
    """An actor that holds the tokenizer and codes one frame shard per call."""

    def __init__(self, work: _Work, shards: dict[str, ShardInfo]) -> None:
        self._work, self._shards = work, shards
        torch.set_num_threads(work.threads)
        device = "cuda" if work.use_gpu else "cpu"
        self._tokenizer = VideoTokenizer.from_pretrained(work.tokenizer).to(device).eval()
        found = self._tokenizer.fingerprint()
        if found != work.fingerprint:
            raise ShardError(f"{work.tokenizer} changed while its codes were computed ({found}); run again")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Code one shard and commit it."""
        return job.outcome(self._make_shard, batch)

    def _make_shard(self, name: str) -> tuple[int, int]:
        work = self._work
        job.begin_attempt(work.out, work.job, name, work.max_failures)
        shard = self._shards[name]
        ids, code_ids = self._code(shard.verify(work.frames))
        metadata = {"tokenizer": work.fingerprint, "frames_sha256": shard.sha256, "shard": name}
        data = write_codes(_groups(ids, code_ids, shard, work), work.codes_per_clip, metadata)
        record = {
            "split": shard.split,
            "num_clips": shard.num_clips,
            "row_groups": shard.row_groups,
            "frames_file": shard.file,
            "frames_sha256": shard.sha256,
            "histogram": np.bincount(code_ids.ravel(), minlength=work.num_codes).tolist(),
        }
        job.commit(work.out, name, data, record)
        return shard.num_clips, 0

    def _code(self, data: bytes) -> tuple[pa.Array, np.ndarray]:
        """Clip ids and codes (uint16, clip x region) of a frame shard, in row order.

        Batches are cut from the shard's first row on, whatever runs beside, so a clip always meets the same batch.
        """
        ids, codes = [], []
        with pq.ParquetFile(io.BytesIO(data)) as file:
            for batch in file.iter_batches(self._work.batch_clips, columns=["clip_id", "frames"]):
                clips = [decode_frames(jpegs) for jpegs in batch["frames"].to_pylist()]
                frames = torch.from_numpy(np.stack(clips)).to(self._tokenizer.device)
                found = self._tokenizer.encode(frames).cpu().numpy()
                assert found.shape == (batch.num_rows, self._work.codes_per_clip)
                ids.append(batch["clip_id"])
                codes.append(found.astype(np.uint16))
        return pa.concat_arrays(ids), np.concatenate(codes)


def _groups(ids: pa.Array, code_ids: np.ndarray, shard: ShardInfo, work: _Work) -> Iterator[pa.Table]:
    """The rows of a code shard, cut into the row groups of its frame shard."""
    view = {"x": 0, "y": 0, "width": work.frame_px, "height": work.frame_px, "flip": False}
    start = 0
    for size in shard.row_groups:
        codes = pa.array(np.ascontiguousarray(code_ids[start : start + size]).ravel())
        columns = {
            "clip_id": ids.slice(start, size),
            "row": pa.array(np.arange(start, start + size, dtype=np.int32)),
            "views": pa.array([[view]] * size, codes_schema(work.codes_per_clip).field("views").type),
            "code_ids": pa.FixedSizeListArray.from_arrays(codes, work.codes_per_clip),
        }
        yield pa.table(columns, codes_schema(work.codes_per_clip))
        start += size
    assert start == len(code_ids)


def _finalise(frames: FrameManifest, work: _Work, grid: int) -> CodesManifest:
    """Fold the commits into the manifest, and clean up."""
    records = job.committed(work.out, [_unit(shard) for shard in frames.shards])
    shards, histograms = [], dict[str, np.ndarray]()
    for shard in frames.shards:
        record = records.get(_unit(shard))
        if record is None or record["frames_sha256"] != shard.sha256:
            raise ShardError(f"{work.out} has no commit of {shard.file}; run the same command again")
        histogram = np.asarray(record.pop("histogram"), np.int64)
        histograms[shard.split] = histograms.get(shard.split, 0) + histogram
        shards.append(CodeShardInfo(**record))
    job.clean(work.out, records)
    manifest = CodesManifest(
        uri=work.out,
        tokenizer=work.fingerprint,
        frames=frames.fingerprint,
        num_codes=work.num_codes,
        num_frames=frames.num_frames,
        grid=grid,
        shards=shards,
        histograms={split: histogram.tolist() for split, histogram in sorted(histograms.items())},
    )
    manifest.save()
    return manifest
