"""Compare clips per second and core of the sharding command with bare loops over the same files and with video2dataset.

    python benchmarks/ingest.py --json ingest.json
    python benchmarks/ingest.py --manifest clips.csv --videos clips/ --peer peer-v2d/bin/python

- command: `pipelines/shard_videos.py` without command line and tracking, through Ray, --workers tasks at a time; once
  over all clips and once over a few, which separates the fixed cost of a job;
- bare: the command's decoder, resizing and JPEG in a loop in one process; also without skipping frames on which no
  other depends, which is the work of any exact decoder;
- decord: `VideoReader.get_batch` of the middle frames of as many equal spans, with the same resizing and JPEG;
- video2dataset: its frame subsampler, in the interpreter named by --peer (see peers/video2dataset_subsample.py).

Each bare loop runs in its own process and times only the loop. By default the clips are created first: 596 x 336,
25 fps, 12 to 20 s, H.264 with B-frames, half with key frames every 50 frames or fewer, half with up to 250.
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bench, Sample, count, flags, tree_cpu_s

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("RAY_ADDRESS", None)

from evilm.config.data import FramesConfig
from evilm.config.stages import ShardVideos
from evilm.errors import DecodeError

_FEW = 4
"""Clips per worker in the small job."""
_LONGEST_S = 3600.0
"""Time limit of a bare loop; decord may hang on files with edit lists."""
_WIDTH, _HEIGHT, _FPS = 596, 336, 25


def main() -> None:
    """Create or find the clips, run all variants in turn, print the result."""
    if sys.argv[1:2] == ["--loop"]:
        print(json.dumps(_LOOPS[sys.argv[2]](json.load(sys.stdin))))
        return
    parser = flags(__doc__ or "")
    parser.add_argument("--clips", type=count, default=60, help="clips to create (60)")
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="Ray tasks at a time (all cores)")
    parser.add_argument("--manifest", default="", help="your own clips as for shard_videos; local files only")
    parser.add_argument("--videos", default="", help="folder of these clips")
    parser.add_argument("--peer", default="", metavar="PYTHON", help="interpreter with video2dataset")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evilm-ingest-") as folder:
        if chosen.manifest:
            manifest, videos = chosen.manifest, chosen.videos
        else:
            manifest, videos = make_clips(Path(folder), 8 if chosen.quick else chosen.clips)
        jobs = _files(ShardVideos(manifest=manifest, videos=videos))
        bench = Bench("ingest", 1 if chosen.quick else chosen.rounds, 0 if chosen.quick else 1, unit="clips")
        bench.notes["clips"] = f"{len(jobs)}, {sum(os.path.getsize(job['path']) for job in jobs) / 2**20:.0f} MiB"
        bench.notes["workers"] = chosen.workers
        _add_commands(bench, manifest, videos, Path(folder), len(jobs), chosen.workers)
        for name in _LOOPS:
            bench.add(name, partial(_looped, name, jobs))
        _add_peer(bench, chosen.peer, jobs, Path(folder))
        bench.run()
        _report(bench)
        bench.save(chosen.json)


def _files(config: ShardVideos) -> list[dict[str, Any]]:
    """List the videos of a manifest with path, id and span."""
    from evilm.manifests.reader import read_manifests
    from evilm.manifests.rows import ClipRow
    from evilm.video.fetch import Fetcher

    fetcher, found = Fetcher(config.videos, config.fetch), []
    for row in read_manifests(config):
        if not isinstance(row, ClipRow):
            continue
        try:
            with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
                found.append({"path": local.path, "clip_id": row.clip_id, "start_s": row.start_s, "end_s": row.end_s})
        except DecodeError:
            continue  # the command quarantines it at almost no cost
    return found


def _add_commands(bench: Bench, manifest: str, videos: str, folder: Path, clips: int, workers: int) -> None:
    """Add the whole command over all clips and over a few, with Ray running, each time into a new folder."""
    from evilm.cluster import connect
    from evilm.ingest.shard_videos import shard_videos

    began, cpu = time.monotonic(), tree_cpu_s()
    connect(min_cpus=workers)
    bench.notes["Ray's start"] = (
        f"{time.monotonic() - began:.1f} s, {tree_cpu_s() - cpu:.1f} CPU seconds; not in the rates"
    )
    few = min(clips // 2, _FEW * workers)
    number = iter(range(1_000_000))

    def stage(limit: int) -> int:
        values = {
            "manifest": manifest,
            "videos": videos,
            "out": str(folder / f"out-{next(number)}"),
            "limit": limit,
            "cluster.num_workers": workers,
            "sampling.shard_clips": -(-limit // (2 * workers)),  # each task writes two shards
            "max_failed_share": 1.0,
        }
        summary = shard_videos(ShardVideos().override(values))
        return summary["num_clips"] + summary["num_quarantined"]

    bench.add("command", partial(stage, clips)).add("command, few clips", partial(stage, few))


def _looped(name: str, jobs: list[dict[str, Any]]) -> Sample:
    """Run a bare loop in its own process."""
    command = [sys.executable, __file__, "--loop", name]
    done = subprocess.run(
        command, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True, check=True, timeout=_LONGEST_S
    )
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def _timed(jobs: list[dict[str, Any]], work: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Time the work of all jobs; the first one runs once before, so that imports are not timed."""
    work(jobs[0])
    began, cpu, done = time.perf_counter(), time.process_time(), 0
    for job in jobs:
        with contextlib.suppress(DecodeError, RuntimeError):  # the command spends time on it too, then quarantines it
            work(job)
        done += 1
    return {"items": done, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


def _bare(jobs: list[dict[str, Any]], skip_nonref: bool) -> dict[str, Any]:
    from evilm.video.decode import decode_clip

    config = FramesConfig(skip_nonref=skip_nonref)
    return _timed(jobs, lambda job: decode_clip(**job, config=config))


def _decord(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import decord

    from evilm.video.resize import fit, resize, to_jpeg

    config = FramesConfig()
    decord.logging.set_level(decord.logging.QUIET)

    def work(job: dict[str, Any]) -> list[bytes]:
        reader = decord.VideoReader(job["path"], num_threads=1)
        rate = reader.get_avg_fps()
        start = 0 if job["start_s"] is None else int(job["start_s"] * rate)
        end = len(reader) if job["end_s"] is None else min(len(reader), int(job["end_s"] * rate))
        places = [start + int((k + 0.5) * (end - start) / config.stored) for k in range(config.stored)]
        frames = reader.get_batch(places).asnumpy()
        how = fit(frames.shape[2], frames.shape[1], config.frame_px, config.resize)
        return [to_jpeg(resize(frame, how, config.frame_px), config.jpeg_quality) for frame in frames]

    return _timed(jobs, work)


_LOOPS: dict[str, Callable[[list[dict[str, Any]]], dict[str, Any]]] = {
    "bare": partial(_bare, skip_nonref=True),
    "bare, all frames": partial(_bare, skip_nonref=False),
    "decord": _decord,
}


def _add_peer(bench: Bench, python: str, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Add video2dataset's frame subsampler over the same files, or note why it is missing."""
    if not python:
        bench.notes["video2dataset"] = "not measured: no --peer; it can't be installed beside this package's pins"
        return
    clips = folder / "peer"
    clips.mkdir()
    for job in jobs:
        (clips / f"{job['clip_id']}{Path(job['path']).suffix}").symlink_to(os.path.abspath(job["path"]))
    script = Path(__file__).parent / "peers" / "video2dataset_subsample.py"
    command = [python, str(script), str(clips), "--methods", "frames"]

    def peer() -> Sample:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST_S)
        found = json.loads(done.stdout.splitlines()[-1])["methods"]["frames"]
        return Sample(found["clips"] + len(found["refused"]), found["cpu_s"], found["wall_s"])

    probe = subprocess.run(
        [python, "-c", "import video2dataset.subsamplers"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        bench.notes["video2dataset"] = f"not measured: {probe.stderr.strip().splitlines()[-1]}"
        return
    bench.add("video2dataset", peer)


def _report(bench: Bench) -> None:
    """Compute ratios, also for the command without the fixed cost of a job."""
    pairs = list(zip(bench.samples["command"], bench.samples["command, few clips"], strict=True))
    bench.samples["command, each further clip"] = [
        Sample(all_.items - few.items, (all_.cpu_s or 0) - (few.cpu_s or 0), (all_.wall_s or 0) - (few.wall_s or 0))
        for all_, few in pairs
    ]
    for other in ("bare", "decord", "video2dataset"):
        if other in bench.samples:
            for stage in ("command", "command, each further clip"):
                bench.ratio(stage, other, per="cpu")
                bench.ratio(stage, other)
    bench.ratio("bare", "decord", per="cpu")
    bench.ratio("bare, all frames", "decord", per="cpu")
    bench.ratio("bare", "bare, all frames", per="cpu")
    bench.print()


def make_clips(folder: Path, count: int) -> tuple[str, str]:
    """Encode clips and write their manifest; they are the same each time.

    Returns:
        The manifest's path, the videos' folder.
    """
    videos = folder / "videos"
    videos.mkdir()
    rows = []
    for number in range(count):
        seconds = _make_clip(videos / f"{number:06d}.mp4", number)
        rows.append({"videoid": f"{number:06d}", "name": f"clip number {number}", "duration": f"PT{seconds}S"})
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "clips.csv"), str(videos)


def _make_clip(path: Path, number: int) -> int:
    """Encode a clip of a moving texture, a sprite and grain."""
    import av

    rng = np.random.default_rng(number)
    cells = rng.integers(0, 256, (_HEIGHT // 8 + 40, _WIDTH // 8 + 40, 3), dtype=np.uint8)
    ground = cells.repeat(8, 0).repeat(8, 1)
    grain = [rng.integers(-6, 7, (_HEIGHT, _WIDTH, 1), dtype=np.int16) for _ in range(7)]
    seconds, step = int(rng.integers(12, 21)), rng.integers(1, 4, 2)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = _WIDTH, _HEIGHT, "yuv420p", 850_000
        stream.options = {"preset": "medium", "g": "250" if number % 2 else "50", "bf": "3"}
        for place in range(seconds * _FPS):
            top, left = (int(each * place) % 300 for each in step)
            pixels = ground[top : top + _HEIGHT, left : left + _WIDTH] + grain[place % 7]
            x = place * 5 % (_WIDTH - 80)
            pixels[120:200, x : x + 80] = (255, place % 256, 40)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, _FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return seconds


if __name__ == "__main__":
    main()
