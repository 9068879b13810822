"""A trial of a sweep: a folder that a pre-training writes, and what that folder tells. Nothing else is remembered."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evilm.config.base import fingerprint
from evilm.config.stage_settings import recorded_names
from evilm.io import storage
from evilm.io.outputs import SUMMARY
from evilm.tracking.metrics_file import METRICS_FILE, parse_points

logger = logging.getLogger(__name__)

STOPPED_FILE, FAILED_FILE = "stopped.json", "failed.json"
_LONGEST_SLUG = 48

State = Literal["done", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """One pre-training of a sweep."""

    number: int
    """Of its setting, in the order they are tried."""
    repeat: int
    """Number of the setting's seed that it runs with, from 0."""
    values: dict[str, Any]
    """Swept values, by dotted name."""
    out: str

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.out.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class TrialOutcome:
    """Progress and score of a trial."""

    state: State
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Steps done and held-out metrics of each evaluation."""
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def step(self) -> int:
        """Return the step of its last evaluation; 0 before the first."""
        return self.points[-1][0] if self.points else 0

    def last(self, score: str) -> float | None:
        """Return the score of the last evaluation; None where it has none, or one that is not finite."""
        return self.at(score, self.step)

    def at(self, score: str, step: int) -> float | None:
        """Return the score of the last evaluation up to a step, of the first one where all came later.

        A trial that went on before a rung was moved has no evaluation at exactly that step.
        """
        scored = [(done, metrics[score]) for done, metrics in self.points if score in metrics]
        up_to = [value for done, value in scored if done <= step] or [value for _, value in scored[:1]]
        return up_to[-1] if up_to and math.isfinite(up_to[-1]) else None


def mode_of(score: str) -> str:
    """Return whether a score is to be low or high."""
    return "min" if score.endswith("loss") else "max"


def make_trials(number: int, values: Mapping[str, Any], seeds: int, folder: str) -> list[Trial]:
    """Return the trials of a setting, one per seed; equal settings have equal names, whatever the plan."""
    short = {name.rsplit(".", 1)[-1]: value for name, value in values.items()}
    shown = ((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in short.items())
    slug = re.sub(r"[^\w.=,-]+", "_", ",".join(f"{name}={value}" for name, value in shown))[:_LONGEST_SLUG]
    stem = f"{slug}-{fingerprint(recorded_names(values), 6)}"
    return [Trial(number, k, dict(values), storage.join(folder, f"{stem}-s{k}")) for k in range(seeds)]


def read_outcome(out: str, last_step: int) -> TrialOutcome:
    """Read how far a trial has got from its folder.

    It is done at `last_step`; a summary of fewer steps is that of a rung.
    """
    names = set(storage.list_names(out))
    points = list(_points(out)) if METRICS_FILE in names else []
    summary = storage.read_json(storage.join(out, SUMMARY)) if SUMMARY in names else {}
    if summary and summary["steps"] >= last_step:
        return TrialOutcome("done", points, summary)
    if FAILED_FILE in names:
        return TrialOutcome("failed", points, error=str(storage.read_json(storage.join(out, FAILED_FILE))["error"]))
    return TrialOutcome("stopped" if STOPPED_FILE in names else "unfinished", points)


def keep_input_error(out: str, error: str) -> None:
    """Mark a trial as failed because its inputs can't be built; `error` '' removes that mark once they can."""
    path = storage.join(out, FAILED_FILE)
    if error:
        logger.warning("trial %s fails: %s", out.rsplit("/", 1)[-1], error)
        storage.write_json(path, {"error": error, "inputs": True})
    elif storage.exists(path) and storage.read_json(path).get("inputs"):
        storage.delete(path)


def _points(out: str) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield steps done and metrics of each evaluation so far."""
    for point in parse_points(storage.read_bytes(storage.join(out, METRICS_FILE))):
        held_out = {n.removeprefix("val/"): v for n, v in point["metrics"].items() if n.startswith("val/")}
        if held_out:
            yield int(point["step"]), held_out
