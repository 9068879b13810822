"""Measure the data loader of one rank among many: requests, bytes, and CPU time for order and captions.

This implements `feed.py --ranks`. Ranks take turns in this process, each with its own caches; eight of them form a
node with one cache folder. Requests are real S3 requests to a counting store on loopback.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from object_store import Count, CountingStore
from stored import store_codes, store_frames

from evilm.config.training import ScheduleConfig
from evilm.dataloader.loader import training_loader
from evilm.dataloader.sampler import TrainSampler
from evilm.io import storage
from evilm.shards import CodesManifest, FrameManifest, pair

_NODE_RANKS, _EPOCHS = 8, 2
SHARD, _GROUPS = 1000, [64] * 15 + [40]


def count_requests(worlds: list[int], clips: int, clips_per_rank: int) -> list[dict[str, Any]]:
    """Run every rank of each world over its epochs; return the rank with most requests per need by world and epoch."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store" / "bench"
        frames = store_frames(folder / "frames", clips, frame_px=32, shard_clips=SHARD)
        codes = store_codes(folder / "codes", frames)
        if publish_side := getattr(__import__("evilm.shards").shards, "publish_side", None):
            publish_side(frames)
            publish_side(codes)
        store = CountingStore(folder.parent)
        os.environ |= {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        try:
            for world in worlds:
                rows += _of_world(store, world, clips_per_rank * world, Path(scratch) / f"nodes-{world}")
        finally:
            store.close()
    return rows


def _of_world(store: CountingStore, world: int, batch: int, nodes: Path) -> list[dict[str, Any]]:
    found: list[list[tuple[Count, int, Count]]] = [[] for _ in range(_EPOCHS)]
    for rank in range(world):
        node = nodes / str(rank // _NODE_RANKS)
        node.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(node)
        for epoch, counted in enumerate(_epochs_of_rank(store, rank, world, batch)):
            found[epoch].append(counted)
    tempfile.tempdir = None
    rows = []
    for epoch, counted in enumerate(found):
        most, needed, _ = max(counted, key=lambda item: item[0].requests - 1.2 * item[1])
        row = {"ranks": world, "clips a step": batch, "epoch": epoch, "needed": needed, "sent": most.requests}
        row |= {"sent / needed": most.requests / needed, "MB": most.num_bytes / 1e6}
        row["allowed"] = 1.2 * needed + 100
        row["side files"] = max(item[2].requests for item in counted) if not epoch else 0
        rows.append(row)
    return rows


def _epochs_of_rank(store: CountingStore, rank: int, world: int, batch: int) -> Iterator[tuple[Count, int, Count]]:
    """Yield per epoch the requests that a rank sends and needs, and those for side files (part of the first epoch)."""
    fs, _ = storage.resolve("s3://bench")
    fs.clear_instance_cache()
    frames, codes = FrameManifest.load("s3://bench/frames"), CodesManifest.load("s3://bench/codes")
    schedule = ScheduleConfig(batch_clips=batch, shuffle_groups=16)
    store.take()
    options = {}
    if open_side := getattr(__import__("evilm.shards").shards, "open_side", None):
        options["side"] = open_side(frames, "train", codes)
    loader = training_loader(pair(frames, codes, "train"), schedule, lambda rows: rows, rank, world, **options)
    side, steps = store.take(), loader.order.num_steps
    for epoch in range(_EPOCHS):
        own = [loader.order.step(epoch * steps + step) for step in range(steps)]
        groups = {(s, g) for step in own for s, g, _ in step.rows[step.mine].tolist()}
        for _ in loader.batches(epoch * steps, (epoch + 1) * steps):
            pass
        count = store.take()
        if not epoch:
            count = Count(count.requests + side.requests, count.num_bytes + side.num_bytes)
        yield count, 2 * len(groups), side


def print_requests(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("\nRequests of a rank, the one that exceeds its need most")
    print("needed: one for the frames and one for the codes of each row group with clips of the rank\n")
    columns = list(rows[0])
    print("  ".join(f"{name:>13}" for name in columns))
    for row in rows:
        print("  ".join(f"{row[name]:>13.4g}" for name in columns))


def measure_rows(sizes: list[int], batch: int) -> list[dict[str, Any]]:
    """Measure CPU seconds and memory for a rank's order and captions in an epoch, each in its own process."""
    found = []
    for size in sizes:
        for what in ("order", "captions"):
            command = [sys.executable, __file__, what, str(size), str(batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append({"rows": size, "what": what} | json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("\nA rank's epoch: order, and captions of all clips in its steps\n")
    for row in rows:
        slowest = f"  slowest step {row['slowest_ms']:.1f} ms" if "slowest_ms" in row else ""
        print(f"{row['rows']:>11,} rows  {row['what']:<9} {row['cpu_s']:8.2f} CPU s  {row['mib']:8.1f} MiB{slowest}")


def _order(size: int, batch: int) -> TrainSampler:
    return TrainSampler([_GROUPS] * (size // SHARD), batch, 0, 16, rank=1, world=64)


def measure_order(size: int, batch: int) -> dict[str, float]:
    """Measure all steps of an epoch and the start of the next."""
    before, began, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), 0.0
    order = _order(size, batch)
    for step in range(order.num_steps + 1):  # and the first of the next epoch
        start = time.process_time()
        order.step(step)
        slowest = max(slowest, time.process_time() - start)
    spent, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cpu_s": spent, "mib": (after - before) / 1024, "slowest_ms": 1000 * slowest}


def measure_captions(size: int, batch: int) -> dict[str, float]:
    """Measure reading the captions of an epoch from a side file of that size."""
    from evilm.shards import Captions

    schema = pa.schema([("clip_id", pa.string()), ("captions", pa.list_(pa.string()))])
    texts = [["a caption of about the usual length, with a number in it, " + str(row)] for row in range(SHARD)]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "captions.arrow")
        with pa.ipc.new_file(path, schema) as writer:
            for shard in range(size // SHARD):
                ids = [f"{shard * SHARD + row:010d}" for row in range(SHARD)]
                writer.write_batch(pa.record_batch([ids, texts], schema=schema))
        order = _order(size, batch)
        numbers = [order.step(step).numbers for step in range(order.num_steps)]
        before, began = _private_kib(), time.process_time()
        captions = Captions(pa.ipc.open_file(pa.memory_map(path)).get_batch, [SHARD] * (size // SHARD))
        for step in numbers:
            captions.take(step)
        return {"cpu_s": time.process_time() - began, "mib": (_private_kib() - before) / 1024}


def _private_kib() -> int:
    """Return this process's private memory, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    measure = {"order": measure_order, "captions": measure_captions}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
