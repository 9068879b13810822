"""Measure how a step's time is spent, and its share of the machine's matrix peak (MFU)."""

import time
from typing import Any

import torch

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

    def copied(self, began: Any, ended: Any) -> None:
        """Note a copy of a batch to the device, which runs beside the phases, by the events around it."""
        self._copies.append((began, ended))

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last call; on a GPU, all marked work must be done."""
        spent: dict[str, float] = {}
        for (_, began), (phase, ended) in zip(self._marks, self._marks[1:], strict=False):
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
    """FLOPs per second of a product of large square matrices, the best of a few; takes some hundredths of a second."""
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
