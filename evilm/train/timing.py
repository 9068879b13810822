"""Measure how a step's time is spent: by phase, as a share of the matrix peak (MFU), or as a torch.profiler trace."""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from evilm.io import storage

logger = logging.getLogger(__name__)

_PROFILE = "profile"
_PEAK_SIZE = {"cuda": 8192, "cpu": 512}
_PEAK_S = 0.03


class StepTimer:
    """Splits the time of steps into phases: wait, forward, backward, optimizer.

    On a GPU by CUDA events, which the device stamps as it gets there, so that nothing waits; `wait` is then the time in
    which the device had nothing of a step to do. On a CPU by the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._copies: list[tuple[Any, Any]] = []

    def mark(self, phase: str) -> None:
        """End a phase here; it began with the mark before."""
        self._marks.append((phase, self._now()))

    def skip(self) -> None:
        """Begin the next phase here; what was done since the mark before belongs to no step."""
        self.mark("")

    def copied(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> None:
        """Note a copy of a batch to the device, which runs beside the phases, by the events around it."""
        self._copies.append((began, ended))

    def read(self) -> dict[str, float]:
        """Return the seconds by phase since the last call; on a GPU, all marked work must be done."""
        spent: dict[str, float] = {}
        for (_, began), (phase, ended) in zip(self._marks, self._marks[1:], strict=False):
            if phase:
                spent[phase] = spent.get(phase, 0.0) + self._between(began, ended)
        if self._copies:
            spent["copy"] = sum(self._between(*copy) for copy in self._copies)
        self._marks, self._copies = self._marks[-1:], []
        return spent

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, began: Any, ended: Any) -> float:
        return began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of products of large square matrices, the best of a few."""
    size = _PEAK_SIZE[device.type]
    with torch.random.fork_rng(devices=[]):
        one = torch.randn(size, size).to(device, dtype)
    best, until = float("inf"), time.perf_counter() + _PEAK_S
    torch.matmul(one, one)
    while time.perf_counter() < until or best == float("inf"):
        _wait(device)
        began = time.perf_counter()
        torch.matmul(one, one)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepProfiler:
    """Traces the steps of a range in this worker and writes one file when they, or the training, are over."""

    def __init__(self, out: str, steps: range, device: torch.device) -> None:
        """Trace `steps`, counted from 0; an empty range traces nothing."""
        self._out, self._steps, self._device = out, steps, device
        self._profile: torch.profiler.profile | None = None
        self._traced = range(0)

    def before(self, step: int) -> None:
        """Start before the first step of the range; a run that was resumed within it starts there."""
        if step in self._steps and self._profile is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=kinds)
            self._profile.start()
            self._traced = range(step, step)

    def after(self, step: int) -> None:
        """End after the last step of the range."""
        if self._profile:
            self._traced = range(self._traced.start, step + 1)
            if step + 1 >= self._steps.stop:
                self.close()

    def close(self) -> None:
        """Write `profile/steps_A-B.json.gz` to the output, of the steps that were traced; warn if none was."""
        if self._steps and not self._traced:
            logger.warning("no step was traced: this run made none of --profile-steps %s", _text(self._steps))
        if self._profile:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._profile.stop()
            name = f"steps_{self._traced.start}-{self._traced.stop}.json.gz"
            with tempfile.TemporaryDirectory(prefix="evilm-profile-") as folder:
                self._profile.export_chrome_trace(str(Path(folder) / name))
                place = storage.join(self._out, _PROFILE, name)
                storage.write_bytes(place, (Path(folder) / name).read_bytes())
            logger.info("trace of steps %s: %s; open it in Perfetto or chrome://tracing", _text(self._traced), place)
        self._profile, self._steps = None, range(0)


def _text(steps: range) -> str:
    return f"{steps.start}:{steps.stop}"
