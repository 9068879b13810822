"""Benchmarks measured side by side: variants run in turn, round by round, and are compared within each round.

    bench = Bench("decoders", rounds=5).add("ours", ours).add("bare", bare)
    bench.run().ratio("ours", "bare", per="cpu")
    bench.print()
    bench.save("decoders.json")

A slow minute of the machine meets all variants of its round, so ratios hold where absolute rates do not. Nothing here
judges a time; who reads the table does.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import psutil

Per = Literal["wall", "cpu"]
_VERSIONS = ("ray", "torch", "pyarrow", "av", "decord", "simplejpeg", "numpy")


@dataclass(frozen=True)
class Sample:
    """One run of a variant: items done, and the seconds they took; a variant may measure these itself."""

    items: int
    cpu_s: float | None = None
    wall_s: float | None = None

    def rate(self, per: Per) -> float:
        """Items per second of the clock, or of one core."""
        return self.items / max((self.wall_s if per == "wall" else self.cpu_s) or 0.0, 1e-9)


@dataclass(frozen=True)
class Spread:
    """What the rounds of one figure were."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Median and range."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.min:,.4g} .. {self.max:,.4g})"


class Bench:
    """Variants of the same work, measured in turn."""

    def __init__(self, title: str, rounds: int = 5, warmup: int = 1, unit: str = "items") -> None:
        """A benchmark.

        Args:
            title: heads the table.
            rounds: measured runs of each variant.
            warmup: runs of each variant before, not measured.
            unit: what the items are.
        """
        self.title, self.rounds, self.warmup, self.unit = title, rounds, warmup, unit
        self.notes: dict[str, Any] = {}
        """Facts of the benchmark to print and save: sizes, settings, why a variant is missing."""
        self.samples: dict[str, list[Sample]] = {}
        self._work: dict[str, Callable[[], int | Sample]] = {}
        self._ratios: dict[tuple[str, str, Per], Spread] = {}

    def add(self, name: str, fn: Callable[[], int | Sample]) -> Self:
        """Add a variant; `fn` does the work and returns the number of items done, or a `Sample`."""
        self._work[name] = fn
        return self

    def run(self) -> Self:
        """Run all variants, A B C A B C ..."""
        self.samples = {name: [] for name in self._work}
        for number in range(self.warmup + self.rounds):
            for name, fn in self._work.items():
                sample = measure(fn)
                if number >= self.warmup:
                    self.samples[name].append(sample)
        return self

    def rate(self, name: str, per: Per = "wall") -> Spread:
        """Items per second of a variant over the rounds."""
        return Spread.of([sample.rate(per) for sample in self.samples[name]])

    def ratio(self, a: str, b: str, per: Per = "wall") -> Spread:
        """How many times faster `a` is than `b`, compared within each round."""
        pairs = zip(self.samples[a], self.samples[b], strict=True)
        self._ratios[a, b, per] = Spread.of([one.rate(per) / other.rate(per) for one, other in pairs])
        return self._ratios[a, b, per]

    def print(self) -> None:
        """The rates of all variants, and the ratios asked for so far, as plain text."""
        wide = max((len(name) for name in self.samples), default=0)
        print(f"\n{self.title}  ({self.rounds} rounds in turn; median (min .. max))")
        print(f"{'':{wide}}  {self.unit + '/s':>34}  {self.unit + ' per CPU second':>34}  spread")
        for name in self.samples:
            wall, cpu = self.rate(name), self.rate(name, "cpu")
            spread = (wall.max - wall.min) / max(wall.median, 1e-9)
            print(f"{name:{wide}}  {wall!s:>34}  {cpu!s:>34}  {spread:6.0%}")
        for (a, b, per), ratio in self._ratios.items():
            print(f"{a} / {b}, {'by the clock' if per == 'wall' else 'per CPU second'}: {ratio}")
        for name, note in self.notes.items():
            print(f"{name}: {note}")

    def save(self, path: str) -> None:
        """Write all samples, rates, ratios and the machine's facts as JSON; an empty path writes nothing."""
        if path:
            content = self.content() | {"machine": machine()}
            Path(path).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    def content(self) -> dict[str, Any]:
        """All samples, rates and ratios."""
        variants = {
            name: {
                "wall": asdict(self.rate(name)),
                "cpu": asdict(self.rate(name, "cpu")),
                "rounds": list(map(asdict, s)),
            }
            for name, s in self.samples.items()
        }
        ratios = [{"a": a, "b": b, "per": per, **asdict(ratio)} for (a, b, per), ratio in self._ratios.items()]
        return {"title": self.title, "unit": self.unit, "variants": variants, "ratios": ratios, "notes": self.notes}


def measure(fn: Callable[[], int | Sample]) -> Sample:
    """Run `fn` once; what its sample does not say is measured: clock, and CPU of this process and all below it."""
    cpu, clock = tree_cpu_s(), time.perf_counter()
    done = fn()
    wall_s, cpu_s = time.perf_counter() - clock, tree_cpu_s() - cpu
    sample = done if isinstance(done, Sample) else Sample(done)
    return Sample(
        sample.items,
        cpu_s if sample.cpu_s is None else sample.cpu_s,
        wall_s if sample.wall_s is None else sample.wall_s,
    )


def tree_cpu_s() -> float:
    """CPU seconds so far of this process, its living descendants and those that ended and were waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])  # its own and its ended children's, user and system
        except psutil.Error:
            continue  # ended meanwhile
    return total


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    installed = {d.name.lower(): d.version for d in metadata.distributions() if d.name.lower() in _VERSIONS}
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": model,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **dict(sorted(installed.items()))},
    }


def flags(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    """The flags that every benchmark takes: --rounds, --json, --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measured rounds ({rounds})")
    parser.add_argument("--json", default="", metavar="FILE", help="write all samples here too")
    parser.add_argument("--quick", action="store_true", help="small input and few rounds: shows that it runs")
    return parser
