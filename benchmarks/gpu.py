"""Measure the GPU path on one card: pre-training steps from memory and with the loader, and the tokenizer's rate.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --size tiny --batches 4 --quick        # also on a CPU, to check that it runs

It needs no Ray, MLflow or video decoder: weights are random, frames are JPEGs of textures as large as real ones.

- steps: the paper's model at several batch sizes, eager and compiled. Clips per second with batches on the device, and
  with the loader (JPEGs from disk, page-locked memory, copies during the step); 6 FLOPs per forward multiply-accumulate
  relative to the fastest matrix product measured on this device; milliseconds of a step with the loader in forward,
  backward, optimizer and waiting for a batch, and of the copy, which runs at the same time; peak memory;
- launches: computing operations of a forward and a backward pass; on a GPU also the kernels of a whole step, and the
  number of times that the host waited for the device, by torch's own check;
- codes: clips per second of the tokenizer with 1 and 4 views, for frames in memory and as `precompute_codes` encodes
  shards of JPEGs.
"""

import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries other than torch, which gets its own number
import numpy as np
import torch
from harness import count, flags, machine
from peak import sweep
from steps import SIZES, TrainingWorker, count_kernels, make_tokenizer, prepare, settings_of

from evilm.config import presets
from evilm.config.stages import PrecomputeCodes, Pretrain
from evilm.encode.encode_job import plan_work
from evilm.encode.tokenizer_actor import TokenizerActor
from evilm.io.text_table import text_table
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.shards import FrameManifest

_PHASES = ("forward", "backward", "optimizer", "wait", "copy")
_GROUP_CLIPS = {"tiny": 8, "full": 64}
_MIB = 2**20


def main() -> None:
    """Measure, print and save."""
    parser = flags(__doc__ or "", rounds=3)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--size", choices=SIZES, default="full", help="size of the models (full: the paper's)")
    parser.add_argument("--batches", type=count, nargs="+", default=[32, 64, 128, 256], help="clips per step")
    parser.add_argument("--steps", type=count, default=8, help="measured steps per variant (8)")
    parser.add_argument(
        "--threads", type=count, default=cores, help=f"threads that read and decode (all cores: {cores})"
    )
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.steps, chosen.rounds = 2, 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = {name: max(rates.values()) for name, rates in sweep(device, chosen.quick).items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}: " + ", ".join(f"{dtype} matrix products {rate / 1e3:,.2f} TFLOP/s" for dtype, rate in peaks.items())
    )
    found: dict[str, Any] = {"title": "gpu", "device": name, "peak_gflops": peaks, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="evilm-gpu-") as folder:
        prepare(Path(folder), chosen.size, _GROUP_CLIPS[chosen.size], chosen.threads, "auto")
        found["steps"], found["launches"] = [], {}
        for mode in chosen.modes:
            steps = Steps(Path(folder), chosen.size, mode == "compiled", chosen.threads, peaks)
            found["steps"] += _that_fit(steps, mode, chosen.batches, chosen.steps)
            found["launches"][mode] = steps.launches(min(chosen.batches))
            del steps  # frees weights and moments before the next measurement
        _print_steps(found["steps"], found["launches"])
        found["codes"] = list(_codes(Path(folder), chosen.size, chosen.threads, chosen.rounds))
        _print_codes(found["codes"])
    kernels = found["launches"].get("eager", {}).get("kernels") if chosen.size == "full" else None
    found["constants"] = {"kernels_per_step": kernels} if kernels else {}  # for the cost model
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def _that_fit(steps: "Steps", mode: str, batches: list[int], number: int) -> Iterator[dict[str, Any]]:
    """Measure batch sizes from the smallest up to the first that does not fit into the memory of the card."""
    for clips in sorted(batches):
        try:
            yield steps.measure(clips, number)
        except torch.OutOfMemoryError:
            print(f"{mode}: {clips} clips need more memory than this card has; larger batches are left out")
            break
    torch.cuda.empty_cache()


class Steps:
    """A model in training, in one mode, at any batch size."""

    def __init__(self, folder: Path, size: str, is_compiled: bool, threads: int, peaks: dict[str, float]) -> None:
        self._folder, self._size, self._threads = folder, size, threads
        self._mode = {"cluster.compile": is_compiled, "cluster.loader_threads": threads}
        self._worker = TrainingWorker(self._settings(_GROUP_CLIPS[size]))
        self._is_gpu = self._worker.device.type == "cuda"
        self._peak = peaks["bf16" if self._worker.precision == "bf16" else "fp32"]

    def _settings(self, clips: int) -> Pretrain:
        settings = settings_of(self._size, clips, self._threads, "auto", self._folder)
        return cast(Pretrain, settings.override(self._mode))

    def measure(self, clips: int, steps: int) -> dict[str, Any]:
        """Measure rates, phases and memory at one batch size."""
        worker = self._worker
        worker.loader = worker.open_loader(self._settings(clips))
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats()
        held = worker.held(2)
        memory_s = self._timed(islice(cycle(held), 2), islice(cycle(held), steps)) / steps
        fed = worker.loader.batches(0, 1_000_000)
        loader_s = self._timed(islice(fed, 3), islice(fed, steps)) / steps
        phases = {name: 1e3 * seconds / steps for name, seconds in worker.timer.read().items()}
        cast(Iterator[Any], fed).close()  # type: ignore[attr-defined]  # a generator, whose threads end with it
        words = max(batch.input_ids.shape[1] for batch in held)
        gflop = 6 * worker.work(words).student_macs / 1e9
        return {
            "mode": "compiled" if self._mode["cluster.compile"] else "eager",
            "clips": clips,
            "precision": worker.precision,
            "memory_clips_per_s": clips / memory_s,
            "loader_clips_per_s": clips / loader_s,
            "share_of_peak": clips / memory_s * gflop / self._peak,
            "phases_ms": phases,
            "gpu_peak_mib": torch.cuda.max_memory_allocated() / _MIB if self._is_gpu else None,
        }

    def _timed(self, warm_up: Iterable[Any], batches: Iterable[Any]) -> float:
        """Time the steps after warm-up (and compilation)."""
        self._worker.train_all(warm_up)
        self._worker.timer.read()
        began = time.perf_counter()
        self._worker.train_all(batches)
        return time.perf_counter() - began

    def launches(self, clips: int) -> dict[str, float | None]:
        """Count operations, kernels and blocking waits of a step."""
        worker = self._worker
        held = worker.held(2)
        found: dict[str, float | None] = {"kernels": None, "blocking_reads": None}
        found["operations"] = None if self._mode["cluster.compile"] else float(count_kernels(worker, held[0]))
        if self._is_gpu:
            found["kernels"] = self._kernels(held)
            found["blocking_reads"] = self._reads(held)
        return found

    def _kernels(self, held: list[Any]) -> float:
        cuda = torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[cuda]) as profile:
            self._worker.train_all(held)
        kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return len(kernels) / len(held)

    def _reads(self, held: list[Any]) -> float:
        """Count torch's warnings per step that the host waits for the device."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._worker.queue(held)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught) / len(held)


def _codes(folder: Path, size: str, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure encoding rates from memory and from JPEGs, by number of views."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretrain = cast(Pretrain, presets.defaults("pretrain", SIZES[size]))
    tokenizer = make_tokenizer(pretrain.train_tokenizer.arch, device)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    frames = FrameManifest.load(str(folder / "frames"))
    for views in (1, 4):
        memory = max(_from_memory(tokenizer, frames, views) for _ in range(rounds))
        jpegs = max(_from_jpegs(folder, frames, views, threads, number) for number in range(rounds))
        yield {"views": views, "memory_clips_per_s": memory, "jpeg_clips_per_s": jpegs}


def _from_memory(tokenizer: VideoTokenizer, frames: FrameManifest, views: int) -> float:
    """Measure clips per second for pixels on the host: copy, encode, copy codes back."""
    clips = min(64, frames.shards[0].num_clips)
    shape = (clips, frames.num_frames, frames.frame_px, frames.frame_px, 3)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    pixels = pixels.pin_memory() if tokenizer.device.type == "cuda" else pixels
    tokenizer.encode(pixels[:8].to(tokenizer.device))
    began = time.perf_counter()
    for _ in range(views):
        tokenizer.encode(pixels.to(tokenizer.device, non_blocking=True)).cpu()
    return clips / (time.perf_counter() - began)


def _from_jpegs(folder: Path, frames: FrameManifest, views: int, threads: int, number: int) -> float:
    """Measure clips per second of an actor that reads, decodes, crops, encodes and writes a shard."""
    settings = {"frames": frames.uri, "tokenizer": str(folder / "tokenizer"), "out": str(folder / f"codes{number}")}
    machine = {"cluster.cpus_per_worker": threads, "cluster.gpus_per_worker": float(torch.cuda.is_available())}
    config = cast(PrecomputeCodes, PrecomputeCodes().override(settings | machine | {"views": views}))
    work = plan_work(config, frames, VideoTokenizer.from_pretrained(config.tokenizer))
    shard = frames.shards[0]
    coder = TokenizerActor(work, {"0": shard})
    began = time.perf_counter()
    coder.make_shard("0")
    return shard.num_clips / (time.perf_counter() - began)


def _print_steps(steps: list[dict[str, Any]], launches: dict[str, dict[str, float | None]]) -> None:
    header = ("clips", "precision", "clips/s memory", "clips/s loader", "of peak", *(f"{p} ms" for p in _PHASES), "MiB")
    rows = [
        (
            row["mode"],
            f"{row['clips']}",
            row["precision"],
            f"{row['memory_clips_per_s']:,.1f}",
            f"{row['loader_clips_per_s']:,.1f}",
            f"{row['share_of_peak']:.1%}",
            *(f"{row['phases_ms'].get(phase, 0):.1f}" for phase in _PHASES),
            _shown(row["gpu_peak_mib"]),
        )
        for row in steps
    ]
    print("\nsteps")
    print(text_table(("", *header), rows, right=[1, *range(3, 12)]))
    names = ("operations", "kernels", "blocking_reads")
    cells = [(mode, *(_shown(found[name]) for name in names)) for mode, found in launches.items()]
    print("\nlaunches: operations of forward and backward; kernels and blocking reads per step, on GPUs only")
    print(text_table(("", *names), cells, right=range(1, 4)))


def _print_codes(codes: list[dict[str, Any]]) -> None:
    rows = [
        (f"{row['views']}", f"{row['memory_clips_per_s']:,.1f}", f"{row['jpeg_clips_per_s']:,.1f}") for row in codes
    ]
    print("\ncodes")
    print(text_table(("views", "clips/s memory", "clips/s JPEGs"), rows, right=range(3)))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


if __name__ == "__main__":
    main()
