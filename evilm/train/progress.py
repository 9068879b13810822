"""Decide which steps are logged, evaluated and saved; collect their metrics, and report progress on the console."""

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from evilm.config.training import ScheduleConfig
from evilm.dataloader.loader import DataLoader
from evilm.objectives.objective import Objective, TargetCounts

_STRETCHES = 8  # between metric points; the time left is told from their mean speed, evaluations and all
_LINE_S, _SILENCE_S, _LOOK_S = 5.0, 10.0, 1.0
_MIN_POINTS = 20

logger = logging.getLogger(__name__)


class Progress:
    """Collects the metrics of steps between two log lines."""

    def __init__(self, num_steps: int, step_clips: float, start_step: int, kept: dict[str, Any] | None = None) -> None:
        """Begin at `start_step`, with so many clips a step on average.

        `kept` is the `state` that its checkpoint has.
        """
        self._num_steps, self._batch, self._step = num_steps, step_clips, start_step
        self._sums: dict[str, float] = defaultdict(float, (kept or {}).get("sums", {}))
        self._count = int((kept or {}).get("count", 0))
        self._began, self._waited, self._told = time.perf_counter(), 0.0, -math.inf
        self._spoke, self._done, self._doing = self._began, start_step, "first step"
        self._marks = deque([(self._began, start_step)], maxlen=_STRETCHES)

    def add(self, metrics: dict[str, float], skipped: bool = False) -> None:
        """Note the metrics of one step; those of one without update, NaN among them, are left out of the means."""
        if skipped:
            return
        self._count += 1
        for name, value in metrics.items():
            self._sums[name] += value

    @property
    def state(self) -> dict[str, Any]:
        """Return what was collected since the last line, as JSON: a resumed run logs what an unbroken one does."""
        return {"sums": dict(self._sums), "count": self._count}

    def flush(self, step: int, loader: DataLoader, keep: bool = False) -> dict[str, float]:
        """Return the means since the last call, with speed; `lr` too is a mean, over a stretch where it hardly moves.

        With `keep` the next call averages over these steps again, as if this call had not been.
        """
        now = time.perf_counter()
        elapsed = max(1e-9, now - self._began)
        steps = step - self._step
        means = {name: value / max(1, self._count) for name, value in self._sums.items()}
        means["time/clips_per_s"] = steps * self._batch / elapsed
        means["time/data_wait_ratio"] = (loader.wait_s - self._waited) / elapsed
        since, first = self._marks[0]
        means["time/eta_s"] = (self._num_steps - step) * (now - since) / max(1, step - first)
        self._marks.append((now, step))
        means["time/memory_gib"] = psutil.Process().memory_info().rss / 2**30
        if torch.cuda.is_initialized():
            means["time/gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not keep:
            self._sums.clear()
            self._count = 0
        self._step, self._began, self._waited = step, now, loader.wait_s
        return means

    @contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Leave the time of the block out of the rates: an evaluation, a panel, a checkpoint."""
        began, self._doing = time.perf_counter(), doing
        yield
        self._began += time.perf_counter() - began
        self._doing = ""

    def reached(self, done: int) -> None:
        """Record the number of steps made so far."""
        self._done, self._doing = done, ""

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Log where the run is when no line was logged for ten seconds, also within a step that takes longer."""
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(_LOOK_S):
                if self.is_silent():
                    doing = f" | {self._doing}" if self._doing else ""
                    logger.info("step %d/%d%s", self._done, self._num_steps, doing)

        threading.Thread(target=repeat, name="progress", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def is_silent(self) -> bool:
        """Return whether the last line on the console, or the last time this was asked, is ten seconds ago."""
        now = time.perf_counter()
        if now - self._spoke < _SILENCE_S:
            return False
        self._spoke = now
        return True

    def is_line_due(self) -> bool:
        """Return whether the last line on the console is long enough ago for another; that one is then the last."""
        now = time.perf_counter()
        if now - self._told < _LINE_S:
            return False
        self._told = self._spoke = now
        return True


def estimate_chance(objective: Objective, batches: Iterable[Any]) -> dict[str, float]:
    """Estimate from some batches the accuracy of always predicting the most frequent target, by loss."""
    counts = TargetCounts()
    for batch in batches:
        targets = objective.targets(batch)
        if not targets:
            break
        counts.add(targets)
    return counts.chance()


def metrics_line(
    metrics: dict[str, float], step: int, num_steps: int, steps_per_epoch: int, chance: Mapping[str, float]
) -> str:
    """Format the metrics of training for a job log; chance levels are in brackets."""
    shown = {name: value for name, value in metrics.items() if "/" not in name and name not in ("lr", "grad_norm")}
    figures = _figures(shown, chance)
    return (
        f"step {step}/{num_steps} (epoch {1 + (step - 1) // steps_per_epoch}) | {figures}"
        + f" | {metrics['time/clips_per_s']:.0f} clips/s, waiting {metrics['time/data_wait_ratio']:.0%}"
        + (f", {metrics['time/mfu']:.0%} of the matrix peak" if "time/mfu" in metrics else "")
        + f" | {_clock(metrics['time/eta_s'])} left"
    )


def evaluation_line(metrics: Mapping[str, float], epoch: int, num_epochs: int) -> str:
    """Format the metrics of an evaluation for a job log; chance levels are in brackets."""
    return f"epoch {epoch}/{num_epochs} val | {_figures(metrics, metrics)}"


def _figures(metrics: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """Format losses, accuracies and other figures, the latter two beside chance."""
    named = {n.removesuffix("_accuracy"): v for n, v in metrics.items() if n.endswith("_accuracy")}
    others = [n for n in metrics if n != "loss" and not n.endswith(("_loss", "_accuracy", "_chance"))]
    levels = {name: chance.get(f"{name}_chance") for name in (*named, *others)}
    losses = [f"{n.removesuffix('_loss')} {v:.4g}" for n, v in metrics.items() if n.endswith("_loss")]
    accuracies = [f"{n} {v:.1%}" + ("" if (c := levels[n]) is None else f" ({c:.1%})") for n, v in named.items()]
    rest = [f"{n} {metrics[n]:.4g}" + ("" if (c := levels[n]) is None else f" ({c:.4g})") for n in others]
    total = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    parts = [": ".join(filter(None, [*total, "  ".join(losses)])) or "no update"]
    parts += ["accuracy (chance): " + "  ".join(accuracies)] if accuracies else []
    return " | ".join(parts + (["  ".join(rest)] if rest else []))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class Cadence:
    """Decide what is due after a step."""

    schedule: ScheduleConfig
    steps_per_epoch: int
    num_steps: int
    """The last step of the run, after which everything but a picture is due."""

    def log(self, done: int) -> bool:
        """Return whether metrics are logged once `done` steps are made."""
        return self._every(self._log_steps, done)

    def log_in_any_run(self, done: int) -> bool:
        """Return whether metrics would be logged also if the run went on, so that the next point begins after it."""
        return done % self._log_steps == 0

    @property
    def _log_steps(self) -> int:
        """Return the steps between two points of a curve; a run has at least `_MIN_POINTS` points."""
        all_steps = self.steps_per_epoch * self.schedule.epochs
        return max(1, min(self.schedule.log_every_steps, all_steps // _MIN_POINTS))

    def checkpoint(self, done: int) -> bool:
        """Return whether a checkpoint is saved, also if nothing is about to end."""
        return self._every(self.schedule.checkpoint_every_steps, done)

    def evaluation(self, done: int) -> bool:
        """Return whether the val split is evaluated."""
        every = max(1, round(self.schedule.eval_every_epochs * self.steps_per_epoch))
        return self._every(every, done) or done in self.schedule.eval_at_steps

    def numbers(self, done: int) -> bool:
        """Return whether the numbers of this very step are needed now, not only once they come from the GPU."""
        panel = self.schedule.panel_every_steps
        is_panel = panel > 0 and done % panel == 0
        return is_panel or self.log(done) or self.checkpoint(done) or self.evaluation(done)

    def _every(self, steps: int, done: int) -> bool:
        return done % steps == 0 or done == self.num_steps
