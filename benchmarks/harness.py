"""Measure benchmark variants side by side: they run in turn in each round and are compared within it.

    bench = Bench("decoders", rounds=5).add("ours", ours).add("bare", bare)
    bench.run().ratio("ours", "bare", per="cpu")
    bench.print()
    bench.save("decoders.json")

A slow minute of the machine affects all variants of a round, so ratios are more reliable than absolute rates. No time
is checked here; the reader of the table judges.
"""

import argparse
import json
import math
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
    """One run of a variant: items and seconds, which a variant may measure itself; nan if they can't be known."""

    items: int
    cpu_s: float | None = None
    wall_s: float | None = None

    def rate(self, per: Per) -> float:
        """Return items per second of wall-clock or CPU time."""
        return self.items / max((self.wall_s if per == "wall" else self.cpu_s) or 0.0, 1e-9)


@dataclass(frozen=True)
class Spread:
    """The values of a figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Compute median and range."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.min:,.4g} .. {self.max:,.4g})"


class Bench:
    """Variants of the same work, measured in turn."""

    def __init__(self, title: str, rounds: int = 5, warmup: int = 1, unit: str = "items") -> None:
        """Create an empty benchmark.

        Args:
            title: heading of the table.
            rounds: measured runs per variant.
            warmup: unmeasured runs per variant before that.
            unit: name of the items.
        """
        self.title, self.rounds, self.warmup, self.unit = title, rounds, warmup, unit
        self.notes: dict[str, Any] = {}
        """Facts to print and save: sizes, settings, reasons for missing variants."""
        self.samples: dict[str, list[Sample]] = {}
        self._work: dict[str, Callable[[], int | Sample]] = {}
        self._ratios: dict[tuple[str, str, Per], Spread] = {}

    def add(self, name: str, fn: Callable[[], int | Sample]) -> Self:
        """Add a variant; `fn` does the work and returns the number of items, or a `Sample`."""
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
        """Return a variant's items per second over the rounds."""
        return Spread.of([sample.rate(per) for sample in self.samples[name]])

    def ratio(self, a: str, b: str, per: Per = "wall") -> Spread:
        """Compute how many times faster `a` is than `b`, within each round."""
        pairs = zip(self.samples[a], self.samples[b], strict=True)
        self._ratios[a, b, per] = Spread.of([one.rate(per) / other.rate(per) for one, other in pairs])
        return self._ratios[a, b, per]

    def print(self) -> None:
        """Print the rates of all variants and the ratios computed so far."""
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
        """Write samples, rates, ratios and facts of the machine as JSON; do nothing for an empty path."""
        if path:
            content = self.content() | {"machine": machine()}
            Path(path).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    def content(self) -> dict[str, Any]:
        """Return all samples, rates and ratios."""
        variants = {
            name: {
                "wall": asdict(self.rate(name)),
                "cpu": _known(asdict(self.rate(name, "cpu"))),
                "rounds": [_known(asdict(sample)) for sample in s],
            }
            for name, s in self.samples.items()
        }
        ratios = [{"a": a, "b": b, "per": per, **asdict(ratio)} for (a, b, per), ratio in self._ratios.items()]
        return {"title": self.title, "unit": self.unit, "variants": variants, "ratios": ratios, "notes": self.notes}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without nan, which JSON does not have."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def measure(fn: Callable[[], int | Sample]) -> Sample:
    """Run `fn` once; measure wall-clock time and CPU time of this process tree unless its sample has them."""
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
    """Return the CPU seconds of this process, its running descendants, and those already reaped."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])  # its own and its ended children's, user and system
        except psutil.Error:
            continue  # it has ended
    return total


def machine() -> dict[str, Any]:
    """Return facts on which the figures depend, without the machine's name."""
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


def count(text: str) -> int:
    """Parse a flag's whole number of 1 or more."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: use a whole number of 1 or more")
    return int(text)


def flags(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    """Build a parser with the flags of every benchmark: --rounds, --json, --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=rounds, help=f"measured rounds ({rounds})")
    parser.add_argument("--json", default="", metavar="FILE", help="also write all samples to this file")
    parser.add_argument("--quick", action="store_true", help="small input and few rounds, to check that it runs")
    return parser
