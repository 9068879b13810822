"""The interface of a task to the training loop, and the specification that travels to a worker."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from evilm.config.training import TrainConfig
from evilm.dataloader.loader import DataLoader
from evilm.objectives.objective import Objective
from evilm.plugins import Registry
from evilm.tracking.mlflow_run import TrackedRun
from evilm.tracking.panel_log import PanelLog


class Task(Protocol):
    """A training task; built in each worker from plain settings."""

    settings: TrainConfig

    def objective(self) -> Objective:
        """Build the module that is trained, with fresh weights drawn from the global generator."""
        ...

    def train_loader(self, rank: int, world: int) -> DataLoader:
        """Create the loader of the train split for one worker."""
        ...

    def eval_loader(self, rank: int, world: int) -> DataLoader | None:
        """Create the loader of the val split for one worker; None without a val split."""
        ...

    def forward_macs(self, objective: Objective) -> float:
        """Count the multiply-accumulates of a forward pass per clip, on the CPU; 0 if they differ from step to step."""
        ...

    def panels(self, tracked: TrackedRun | None) -> PanelLog | None:
        """Return what draws pictures of a few clips into the run `tracked`; None for a task without."""
        ...

    def describe(self, folder: str, objective: Objective) -> None:
        """Write what a published model has beside its weights: settings, vocabulary, preprocessing."""
        ...

    def export(self, objective: Objective) -> None:
        """Write the finished model to its place."""
        ...


TASKS: Registry[Callable[[dict[str, Any]], Task]] = Registry(
    "task",
    "evilm.tasks",
    {
        "pretrain": "evilm.tasks.pretrain:build_task",
        "train_tokenizer": "evilm.tasks.train_tokenizer:build_task",
        "finetune": "evilm.tasks.finetune:build_task",
    },
)
"""Builders of tasks from plain settings, by name."""


@dataclass(frozen=True)
class WorkerSpec:
    """Specification of a worker: names and settings, never models."""

    task: str
    """Name in `TASKS` of what builds the task from `settings`."""
    settings: dict[str, Any]
    out: str
    run: int
    """Number of the run among those that wrote `out` (`Output.run`)."""
    tracked: TrackedRun | None
    """The MLflow run, None where nothing is tracked."""
