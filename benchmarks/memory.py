"""Measure peak memory of sharding, encoding, data loading, inspecting and planning, with N clips and with 10 N.

    python benchmarks/memory.py --json memory.json

Each stage runs in a new process, whose process tree is sampled a few times a second by proportional set size, so that
shared memory counts once. The driver, Ray's workers, decoding children and Ray's own processes are reported separately.
The driver's peak resident set comes from the kernel and misses nothing between samples. Shards are small
(--shard-clips), since a worker's memory depends on the shard and N must be several shards.

The ratio matters: 1 means that memory does not grow with the data.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from harness import count, flags, machine

_SAMPLE_S = 0.2
_GROWTH = 10
_VIDEOS = 50
"""Number of distinct videos; manifests list each several times with different ids."""
_MIB = 2**20
_ROLES = ("driver", "workers", "decoders", "ray")


def main() -> None:
    """Run each stage at both sizes and compare."""
    if sys.argv[1:2] == ["--child"]:
        _STAGES[sys.argv[2]](json.loads(sys.argv[3]))
        return
    parser = flags(__doc__ or "", rounds=1)
    parser.add_argument("--clips", type=count, default=200, help="N (200)")
    parser.add_argument("--shard-clips", type=count, default=50, help="clips per shard (50)")
    parser.add_argument(
        "--plan-rows", type=count, default=100_000, help="N for the planning stage, which has no videos"
    )
    parser.add_argument("--workers", type=count, default=2, help="Ray tasks or actors at a time (2)")
    parser.add_argument("--stages", default=",".join(_STAGES), help=f"a selection of {','.join(_STAGES)}")
    chosen = parser.parse_args()
    stages = [name for name in chosen.stages.split(",") if name]
    clips, rows = (20, 2000) if chosen.quick else (chosen.clips, chosen.plan_rows)
    found: dict[str, dict[int, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(1 if chosen.quick else chosen.rounds):
        with tempfile.TemporaryDirectory(prefix="evilm-memory-") as folder:
            _prepare(Path(folder), bool(set(stages) - {"planning"}))
            for stage in _STAGES:
                for size in (clips, clips * _GROWTH):
                    size = size * rows // clips if stage == "planning" else size
                    work = {"root": f"{folder}/{size}", "folder": folder, "size": size, "workers": chosen.workers}
                    work["shard_clips"] = 10 if chosen.quick else chosen.shard_clips
                    if stage in stages or stage in _needed_by(stages):
                        peaks = watch([sys.executable, __file__, "--child", stage, json.dumps(work)])
                        found[stage][size].append(peaks)
                        print(f"round {number + 1}: {stage} of {size}: {peaks['seconds']:.0f} s", file=sys.stderr)
    report(found)
    if chosen.json:
        content = {"title": "peak memory, MiB", "stages": found, "machine": machine()}
        Path(chosen.json).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _needed_by(stages: list[str]) -> set[str]:
    """Return the stages whose results these need."""
    needed = {"sharding"} if {"coding", "feeding", "inspecting"} & set(stages) else set()
    return needed | ({"coding"} if {"feeding", "inspecting"} & set(stages) else set())


def watch(command: list[str]) -> dict[str, float]:
    """Run a command and sample the memory of its process tree; return peaks in MiB by role, and seconds."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    began, peaks = time.monotonic(), defaultdict[str, float](float)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            for name, value in _sample(process.pid).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(_SAMPLE_S)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{errors.read()[-3000:]}")
    return {**peaks, "seconds": time.monotonic() - began}


def _sample(pid: int) -> dict[str, float]:
    """Measure current MiB by role, in total, and of the largest process per role."""
    now = defaultdict[str, float](float)
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for process in family:
        try:
            role, command = "ray", " ".join(process.cmdline())
            if process.pid == pid:
                role = "driver"
                now["driver, greatest resident"] = _status(pid, "VmHWM") / _MIB
            elif "evilm.video.decoder_process" in command:
                role = "decoders"
            elif command.startswith("ray::") and "IDLE" not in command:
                role = "workers"
            held = _pss(process.pid) / _MIB
        except (psutil.Error, OSError):
            continue  # it has ended
        now[role] += held
        now["in all"] += held
        now[f"one of {role}"] = max(now[f"one of {role}"], held)
    return now


def _pss(pid: int) -> int:
    """Return a process's proportional set size in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def report(found: dict[str, dict[int, list[dict[str, float]]]]) -> None:
    """Print a table of medians over the rounds."""
    wide = 26
    print(f"\npeak memory, MiB; median of the rounds\n{'':{wide}}{'N':>12}{'10 N':>12}{'ratio':>8}")
    for stage, sizes in found.items():
        small, large = sorted(sizes)
        print(f"{stage}, N = {small:,}")
        rounds = {size: sizes[size] for size in (small, large)}
        names = ["in all", "driver, greatest resident", *(f"one of {role}" for role in _ROLES if role != "driver")]
        for name in ["driver", *names]:
            values = [median(peaks.get(name, 0.0) for peaks in rounds[size]) for size in (small, large)]
            if values[0]:
                print(f"  {name:{wide - 2}}{values[0]:12,.0f}{values[1]:12,.0f}{values[1] / values[0]:8.2f}")
        seconds = [median(peaks["seconds"] for peaks in rounds[size]) for size in (small, large)]
        print(f"  {'seconds':{wide - 2}}{seconds[0]:12,.0f}{seconds[1]:12,.0f}")


def _prepare(folder: Path, videos: bool) -> None:
    """Create a few short clips of the embedded corpus, and a small tokenizer."""
    if not videos:
        return
    import torch

    from evilm.config.data import CorpusConfig
    from evilm.config.models import VideoTokenizerConfig
    from evilm.model.tokenizers.semantic_vq import VideoTokenizer
    from evilm.synth import plan_corpus, render_and_write

    corpus = CorpusConfig(train_clips=_VIDEOS, val_clips=0, test_clips=0, width_px=64, height_px=64, seconds=0.7)
    render_and_write(plan_corpus(corpus), corpus, str(folder))
    settings = {"input_px": 64, "patch_px": 16, "encoder_dim": 32, "encoder_layers": 1, "encoder_heads": 2}
    settings |= {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "vocab_size": 16}
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(VideoTokenizerConfig().override(settings | {"codebook.num_codes": 64}))
    tokenizer.save_pretrained(str(folder / "tokenizer"))


def _shard(work: dict[str, Any]) -> None:
    from evilm.config.stages import ShardVideos
    from evilm.ingest.shard_videos import shard_videos

    root = Path(work["root"])
    root.mkdir(exist_ok=True)
    videos = sorted(Path(work["folder"], "videos").rglob("*.mp4"))
    with open(root / "clips.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "name", "path"])
        for number in range(work["size"]):
            path = videos[number % len(videos)].relative_to(Path(work["folder"], "videos"))
            writer.writerow([f"clip{number}", f"a red star moves, number {number}", path])
    config = ShardVideos(manifest=f"{root}/clips.csv", videos=f"{work['folder']}/videos", out=f"{root}/frames")
    settings = {"sampling.frame_px": 64, "sampling.shard_clips": work["shard_clips"], "sampling.row_group_clips": 16}
    settings |= {"columns.path": "path", "cluster.num_workers": work["workers"]}
    shard_videos(config.override(settings))


def _code(work: dict[str, Any]) -> None:
    from evilm.config.stages import PrecomputeCodes
    from evilm.encode.encode_job import precompute_codes

    root = work["root"]
    config = PrecomputeCodes(frames=f"{root}/frames", tokenizer=f"{work['folder']}/tokenizer", out=f"{root}/codes")
    precompute_codes(config.override({"views": 2, "cluster.num_workers": work["workers"]}))


def _loader(work: dict[str, Any]) -> None:
    from evilm.config.training import ScheduleConfig
    from evilm.dataloader.loader import training_loader
    from evilm.shards import CodesManifest, FrameManifest, pair

    frames, codes = (Path(work["root"], name) for name in ("frames", "codes"))
    coded = next(place.parent for place in sorted(codes.glob("*/manifest.json")))
    pairs = pair(FrameManifest.load(str(frames)), CodesManifest.load(str(coded)), "train")
    schedule = ScheduleConfig(batch_clips=10, shuffle_groups=2)
    loader = training_loader(pairs, schedule, lambda rows: rows, rank=0, world=1)
    for rows in loader.batches(0, loader.order.num_steps):
        assert len(rows.clip_ids) == schedule.batch_clips


def _inspect(work: dict[str, Any]) -> None:
    from evilm.config.stages import InspectShards
    from evilm.inspect.inspect_shards import inspect_shards

    root = work["root"]
    inspect_shards(InspectShards(frames=f"{root}/frames", codes=f"{root}/codes", verify="full"))


def _plan(work: dict[str, Any]) -> None:
    from evilm.config.stages import ShardVideos
    from evilm.ingest.shard_plan import plan_rows
    from evilm.io.outputs import Output
    from evilm.manifests.reader import read_manifests

    root = Path(work["root"])
    root.mkdir(exist_ok=True)
    with open(root / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for number in range(work["size"]):
            caption = f"a caption of about the usual length, with a number in it, {number}"
            writer.writerow([1_000_000_000 + number, "", "PT00H00M11S", f"{number % 500:06d}", caption])
    config = ShardVideos(manifest=f"{root}/rows.csv", videos=str(root), out=f"{root}/plan")
    with Output(config, config.out, {}) as output:
        plan_rows(output, read_manifests(config), "benchmark", [], 0, 1000, lambda row: False)


_STAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "sharding": _shard,
    "coding": _code,
    "feeding": _loader,
    "inspecting": _inspect,
    "planning": _plan,
}


if __name__ == "__main__":
    main()
