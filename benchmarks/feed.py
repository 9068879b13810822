"""Measure the training data loader (clips per second) against bare JPEG decoding and the readers of other libraries.

    python benchmarks/feed.py --json feed.json
    python benchmarks/feed.py --ranks 1 8 64 --rows 2500000 10000000      # requests of a rank to an object store
    python benchmarks/feed.py --peer-python peer-readers/bin/python    # WebDataset, mosaicml-streaming: see README.md

`feed` is the loader of a training worker: planned order, Parquet with CRCs, pixels, codes, masks, masked words and
negative captions. `feed, no objectives` stops at pixels, codes and captions, like the other libraries. `decode alone`
decodes the same JPEGs from memory into reused memory, the minimum for any reader. All use the same number of threads
(the other libraries: worker processes), and have read the files before.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from feed_ranks import SHARD, count_requests, measure_rows, print_requests, print_rows
from harness import Bench, Sample, count, flags
from peers.export import write_tars
from stored import store_codes, store_frames, vocab

from evilm.dataloader.clip_reader import Clips, load_clips
from evilm.dataloader.collate import PretrainCollate
from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import TrainSampler
from evilm.shards import CodesManifest, FrameManifest, ShardPair, pair

_GRID = 8
_PEERS = ("webdataset", "streaming")


def main() -> None:
    """Create the shards, run the variants, print the result."""
    parser = flags(__doc__ or "")
    parser.add_argument("--clips", type=count, default=4096, help="clips per pass (4096)")
    parser.add_argument("--batch-clips", type=count, default=32, help="clips per batch (32)")
    parser.add_argument(
        "--threads", type=count, default=len(os.sched_getaffinity(0)), help="decoding threads (all cores)"
    )
    parser.add_argument("--peer-python", default=sys.executable, metavar="EXE", help="interpreter with these libraries")
    parser.add_argument("--ranks", type=count, nargs="+", help="instead count the requests of a rank among N")
    parser.add_argument("--rank-clips", type=count, default=32, help="clips per step on each of these ranks (32)")
    parser.add_argument(
        "--rows", type=count, nargs="+", help="instead measure CPU time for order and captions of this many rows"
    )
    chosen = parser.parse_args()
    if min(chosen.rows or [SHARD]) < SHARD:
        parser.error(f"--rows {min(chosen.rows)}: use {SHARD} or more, the rows of a shard")
    if chosen.ranks or chosen.rows:
        measure_ranks(chosen)
        return
    clips, rounds = (256, 1) if chosen.quick else (chosen.clips, chosen.rounds)
    bench = Bench(f"feed: {clips} clips of 4 x 256 px, {chosen.threads} threads", rounds, unit="clips")
    with tempfile.TemporaryDirectory() as scratch:
        frames = store_frames(Path(scratch) / "frames", clips)
        codes = store_codes(Path(scratch) / "codes", frames, _GRID)
        bench.notes["KB per JPEG"] = round(sum(s.num_bytes for s in frames.shards) / clips / 4 / 1000, 1)
        pairs = pair(frames, codes, "train")
        collate = PretrainCollate(vocab(), 0, 40, _GRID, 0.15, 0.4, "block")
        add_feed(bench, "feed", pairs, collate, chosen.batch_clips, chosen.threads)
        add_feed(bench, "feed, no objectives", pairs, lambda rows: rows, chosen.batch_clips, chosen.threads)
        bench.add("decode alone", decode_alone(pairs, chosen.threads))
        there = add_peers(bench, frames, codes, Path(scratch), chosen)
        bench.run()
    for name in ("feed", "feed, no objectives"):
        for other in ("decode alone", *there):
            for per in ("wall", "cpu"):
                bench.ratio(name, other, per)
    bench.print()
    bench.save(chosen.json)


def measure_ranks(chosen: Any) -> None:
    """Print the requests of a rank among many, and the cost of its order and captions."""
    found = {}
    if chosen.ranks:
        clips = 1024 if chosen.quick else 4 * chosen.clips
        found["requests"] = count_requests(chosen.ranks, clips, chosen.rank_clips)
        print_requests(found["requests"])
    if chosen.rows:
        found["rows"] = measure_rows(chosen.rows, 64 * chosen.rank_clips)
        print_rows(found["rows"])
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found, indent=1))


def add_feed(
    bench: Bench, name: str, pairs: list[ShardPair], collate: Callable[[Any], Any], batch: int, threads: int
) -> None:
    """Add a variant that reads epoch after epoch from a single worker's data loader."""
    order = TrainSampler([item.row_groups for item in pairs], batch, 0, window=16)
    loader = DataLoader(pairs, order, collate, threads=threads, prefetch=threads + 1)
    epoch = iter(range(1_000_000))

    def run() -> int:
        first = next(epoch) * order.num_steps
        return sum(batch for _ in loader.batches(first, first + order.num_steps))

    bench.add(name, run)


def decode_alone(pairs: list[ShardPair], threads: int) -> Callable[[], int]:
    """Build a run that decodes the clips of a few row groups repeatedly, up to a full pass."""
    places = [(item, group) for item in pairs for group in range(len(item.row_groups))]
    groups = [load_clips(*place) for place in places[:8]]
    work = [groups[number % len(groups)] for number in range(len(places))]

    def decode(clips: Clips) -> int:
        out = np.empty((4, clips.frame_px, clips.frame_px, 3), np.uint8)
        for row in range(len(clips.clip_ids)):
            clips.decode(row, range(4), out)
        return len(clips.clip_ids)

    def run() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(decode, work))

    return run


def add_peers(bench: Bench, frames: FrameManifest, codes: CodesManifest, scratch: Path, chosen: Any) -> list[str]:
    """Add the other libraries' readers that run and return their names; note the reason for the rest."""
    tars = scratch / "tars"
    write_tars(frames.uri, codes.uri, "train", tars)
    there = []
    for reader in _PEERS:
        command = [chosen.peer_python, str(Path(__file__).parent / "peers" / "readers.py"), str(tars)]
        command += ["--reader", reader, "--workers", str(chosen.threads), "--batch-clips", str(chosen.batch_clips)]
        try:
            result = _result(command, reader)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            bench.notes[reader] = f"not measured: {output.strip().splitlines()[-1][:200]}"
            continue
        bench.notes[reader] = result["version"]
        there.append(reader)
        bench.add(reader, lambda command=command, reader=reader: _sample(command, reader))
    return there


def _sample(command: list[str], reader: str) -> Sample:
    result = _result(command, reader)
    return Sample(result["clips"], cpu_s=result["cpu_s"], wall_s=result["wall_s"])


def _result(command: list[str], reader: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return json.loads(done.stdout.strip().splitlines()[-1])[reader]


if __name__ == "__main__":
    main()
