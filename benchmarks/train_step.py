"""Measure a training step: data stall, cached codes or tokenizer in the step, and share of the machine's peak.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/cost.py --measured train_step.json

There are two sizes: the `tiny` preset, and the paper's model (`full`: 16.3 M parameters and its heads, 4 frames of
256 px, a tokenizer like ViT-B/32) with few clips per step. Weights are random, frames are textures with JPEGs as large
as real ones. Torch threads, data loader and precision are those of a training worker.

- data stall: seconds of a step with batches from shards and codes on disk, relative to a step with batches in memory;
- cached codes: the same step with labels in the batch, and with the tokenizer run on the batch first; peak memory of
  each in its own process;
- share of the peak: 6 FLOPs per forward multiply-accumulate (evilm.model.cost, with the second caption, the second
  decoder pass and the heads of a step) per second, relative to the fastest matrix product;
- the cost model's prediction for this machine, computed only from the measured peaks.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for libraries other than torch, which gets its own number
import torch
from cost_model import formulas
from cost_model.inputs import CONSTANTS
from harness import Bench, Sample, Spread, count, flags, machine
from peak import sweep
from steps import SIZES, Clock, TrainingWorker, count_kernels, make_tokenizer, prepare, settings_of

from evilm.io.text_table import text_table
from evilm.objectives.step_macs import StepWork

ENCODER_SHARE = 0.5
"""Share of the float32 matrix peak that the check assumes for the video encoder in any precision, since memory limits
it. For matrix products it assumes the cost model's `matmul_share` of the peak, and `exact_share` of the float32 peak in
the tokenizer.
"""
FACTOR = 2
"""Measured steps should be within this factor of the prediction."""
_BATCH = {"tiny": 32, "full": 4}
_STEPS = {"tiny": 16, "full": 8}
_MIB = 2**20


def main() -> None:
    """Measure each size, print and save."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_peak_memory(**json.loads(sys.argv[2]))))
        return
    parser = flags(__doc__ or "")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=count, default=cores, help=f"torch threads (all cores: {cores})")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="tiny, full or both")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="(auto)")
    chosen = parser.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    torch.set_num_threads(chosen.threads)
    peak = Peak(chosen.quick)
    parts: dict[str, Any] = {}
    constants: dict[str, float] = {}
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(prefix="evilm-step-") as folder:
            steps = max(1, _STEPS[size] // 4) if chosen.quick else _STEPS[size]
            bench = partial(Bench, rounds=rounds, warmup=0 if chosen.quick else 1, unit="clips")
            measured = Measured(size, Path(folder), chosen.threads, chosen.precision, steps, bench)
            parts[size] = measured.all(peak)
            constants = measured.constants()
    _print_peaks(peak.gflops)
    parts["matrix_gflops"] = peak.gflops
    if chosen.json:
        content = {"title": "train_step", "parts": parts, "constants": constants if "full" in chosen.sizes else {}}
        Path(chosen.json).write_text(json.dumps(content | {"machine": machine()}, indent=1, sort_keys=True) + "\n")


class Peak:
    """The fastest matrix products of several sweeps: one at the start, and one before each table that needs them."""

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self.gflops: dict[str, dict[int, float]] = {}
        self.measure()

    def measure(self) -> None:
        """Run another sweep."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for name, rates in sweep(device, self._quick).items():
            known = self.gflops.setdefault(name, {})
            for size, rate in rates.items():
                known[size] = max(rate, known.get(size, 0.0))

    def of(self, precision: str) -> float:
        """Return GFLOP/s at the best size."""
        return max(self.gflops[precision].values())


class Measured:
    """The measurements of one size."""

    def __init__(self, size: str, folder: Path, threads: int, precision: str, steps: int, bench: Any) -> None:
        self.size, self._steps = size, steps
        self._clips = _BATCH[size]
        self._child = {"size": size, "folder": str(folder), "threads": threads, "precision": precision}
        self.settings = prepare(folder, size, self._clips, threads, precision)
        self._worker = TrainingWorker(self.settings)
        self.precision = self._worker.precision
        self._held = self._worker.held(4)
        title = f"{size}, {self._clips} clips per step, {threads} threads, {self.precision}"
        self._stall: Bench = bench(f"data stall: {title}")
        self._labels: Bench = bench(f"cached codes: {title}")

    def all(self, peak: Peak) -> dict[str, Any]:
        """Measure each part and print it at once."""
        self._measure_stall()
        self._measure_labels()
        memory = {name: self._memory(name == "online") for name in ("cached", "online")}
        _print_memory(self.size, memory)
        peak.measure()
        speed = self._speed(peak)
        _print_speed(self.size, speed)
        return {
            "stall": self._stall.content(),
            "cached codes": self._labels.content(),
            "peak memory": memory,
            "speed": speed,
        }

    def _measure_stall(self) -> None:
        bench, worker = self._stall, self._worker

        def loader_only() -> Sample:
            return self._timed(worker.fed(4 * self._steps), lambda batch: None, 4 * self._steps)

        bench.add("in memory", lambda: self._timed(self._in_memory(), worker.train, self._steps))
        bench.add("with the data loader", lambda: self._timed(worker.fed(self._steps), worker.train, self._steps))
        bench.add("data loader only", loader_only)
        bench.notes["row groups"] = f"{self._clips} clips, one read for each step, from files read before"
        _finish(bench, "data stall (step with the data loader / in memory)", "in memory", "with the data loader")

    def _measure_labels(self) -> None:
        worker = self._worker
        tokenizer = make_tokenizer(self.settings.train_tokenizer.arch, worker.device)

        def online(batch: Any) -> None:
            worker.train(replace(batch, code_ids=tokenizer.encode(batch.frames)))

        bench = self._labels
        bench.add("cached codes", lambda: self._timed(self._in_memory(), worker.train, self._steps))
        bench.add("tokenizer in the step", lambda: self._timed(self._in_memory(), online, self._steps))
        bench.notes["parameters of the tokenizer"] = f"{sum(p.numel() for p in tokenizer.parameters()):,}"
        _finish(bench, "step with the tokenizer / with cached codes", "cached codes", "tokenizer in the step")

    def _in_memory(self) -> Any:
        return islice(cycle(self._held), 1 + self._steps)

    def _timed(self, batches: Any, use: Callable[[Any], None], steps: int) -> Sample:
        """Time `steps` after a warm-up batch, with the CPU time of all threads."""
        stream = iter(batches)
        use(next(stream))
        clock = Clock()
        for _ in range(steps):
            use(next(stream))
        wall_s, cpu_s = clock.seconds()
        if hasattr(stream, "close"):
            stream.close()  # ends the data loader's threads before the next variant
        return Sample(steps * self._clips, cpu_s, wall_s)

    def _memory(self, online: bool) -> dict[str, float]:
        """Measure peak memory in a new process that runs two steps."""
        command = [sys.executable, __file__, "--child", json.dumps(self._child | {"online": online})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise SystemExit(f"the process that measures memory ended with: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(done.stdout.splitlines()[-1])

    def _speed(self, peak: Peak) -> dict[str, Any]:
        """Compute FLOP/s and the cost model's prediction of a step."""
        words = max(batch.input_ids.shape[1] for batch in self._held)
        work = self._worker.work(words)
        return {
            "work": asdict(work),
            "precision": self.precision,
            "peak_gflops": peak.of(self.precision),
            "fp32_peak_gflops": peak.of("fp32"),
            "step": self._against(work, peak, "cached codes", 0),
            "with tokenizer": self._against(work, peak, "tokenizer in the step", work.tokenizer_macs),
        }

    def _against(self, work: StepWork, peak: Peak, variant: str, tokenizer_macs: float) -> dict[str, float]:
        fast, exact = peak.of(self.precision) / 1e3, peak.of("fp32") / 1e3
        rates = ENCODER_SHARE * exact, CONSTANTS["matmul_share"].value * fast
        predicted = formulas.train_s_per_clip(work.encoder_macs, work.other_macs, *rates)
        predicted += formulas.forward_s_per_clip(tokenizer_macs, CONSTANTS["exact_share"].value * exact)
        alike = self._stall.samples["in memory"] if variant == "cached codes" else []  # the same step
        seconds = Spread.of([1 / sample.rate("wall") for sample in [*self._labels.samples[variant], *alike]])
        gflop = (6 * work.student_macs + 2 * tokenizer_macs) / 1e9
        return {
            "gflop_per_clip": gflop,
            "step_s": self._clips * seconds.median,
            "gflops": gflop / seconds.median,
            "share_of_peak": gflop / seconds.median / peak.of(self.precision),
            "predicted_s": self._clips * predicted,
            "measured_over_predicted": seconds.median / predicted,
        }

    def constants(self) -> dict[str, float]:
        """Return the measured constants for the cost model."""
        per_clip = Spread.of([1 / sample.rate("cpu") for sample in self._stall.samples["data loader only"]])
        kernels = count_kernels(self._worker, self._held[0])
        return {"feed_core_s_per_clip": per_clip.median, "kernels_per_step": float(kernels)}


def _peak_memory(size: str, folder: str, threads: int, precision: str, online: bool) -> dict[str, float]:
    """Run two steps on a batch in memory, in a separate process, and return the peak memory."""
    settings = settings_of(size, _BATCH[size], threads, precision, Path(folder))
    before = _resident()
    worker = TrainingWorker(settings)
    tokenizer = make_tokenizer(settings.train_tokenizer.arch, worker.device) if online else None
    batch = worker.held(1)[0]
    for _ in range(2):
        labels = tokenizer.encode(batch.frames) if tokenizer else batch.code_ids
        worker.train(replace(batch, code_ids=labels))
    found = {"peak_mib": _resident(), "before_mib": before}
    if worker.device.type == "cuda":
        found["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / _MIB
    return found


def _resident() -> float:
    """Return this program's peak resident set in MiB.

    getrusage would report the parent's peak if that is larger; it is used only without /proc.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line for line in lines if line.startswith("VmHWM")), None)
    if found:
        return int(found.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 2**10)


def _finish(bench: Bench, what: str, fast: str, slow: str) -> None:
    """Run the benchmark and print the meaning of its ratio."""
    bench.run()
    ratio = bench.ratio(fast, slow)
    bench.notes[what] = str(ratio)
    bench.print()


def _print_peaks(peaks: dict[str, dict[int, float]]) -> None:
    print("\nmatrix products, GFLOP/s")
    sizes = list(next(iter(peaks.values())))
    rows = [(name, *(f"{rates[size]:,.0f}" for size in sizes)) for name, rates in peaks.items()]
    print(text_table(("", *map(str, sizes)), rows, right=range(1, len(sizes) + 1)))
    if "bf16" not in peaks:
        print("bf16: not measured, no hardware units for it")


def _print_memory(size: str, memory: dict[str, dict[str, float]]) -> None:
    names = list(memory["cached"])
    rows = [(name, *(f"{found[key]:,.0f}" for key in names)) for name, found in memory.items()]
    peak = "gpu_peak_mib" if "gpu_peak_mib" in names else "peak_mib"
    print(f"\npeak memory, MiB: {size}")
    print(text_table(("", *names), rows, right=range(1, len(names) + 1)))
    print(f"online / cached: {memory['online'][peak] / memory['cached'][peak]:.2f}")


def _print_speed(size: str, speed: dict[str, Any]) -> None:
    header = ("GFLOP/clip", "step s", "GFLOP/s", "share of peak", "predicted s", "measured / predicted")
    rows: list[Sequence[str]] = []
    for name in ("step", "with tokenizer"):
        found = speed[name]
        numbers = (found["gflop_per_clip"], found["step_s"], found["gflops"])
        rows.append(
            (
                name,
                *(f"{number:,.3g}" for number in numbers),
                f"{found['share_of_peak']:.1%}",
                f"{found['predicted_s']:.3g}",
                f"{found['measured_over_predicted']:.2f}",
            )
        )
    print(f"\nshare of the peak of {speed['peak_gflops']:,.0f} GFLOP/s ({speed['precision']}): {size}")
    print(text_table(("", *header), rows, right=range(1, 7)))
    within = all(1 / FACTOR <= speed[name]["measured_over_predicted"] <= FACTOR for name in ("step", "with tokenizer"))
    other, exact = CONSTANTS["matmul_share"].value, CONSTANTS["exact_share"].value
    print(
        f"predicted from {ENCODER_SHARE:.0%} of the fp32 peak ({speed['fp32_peak_gflops']:,.0f}) in the video encoder, "
        f"{other:.0%} of the peak in the rest, {exact:.0%} of the fp32 peak in the tokenizer: measured "
        f"{'within' if within else 'NOT within'} a factor of {FACTOR}"
    )


if __name__ == "__main__":
    main()
