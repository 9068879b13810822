"""The interface of an objective to the training loop: a module from a batch to named sums of losses."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from evilm.model.losses import LossSum


class ObjectiveScores(Protocol):
    """Collects what an evaluation measures, batch by batch, worker by worker."""

    def add(self, batch: Any, device: torch.device) -> None:
        """Score one batch."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what this worker has collected; it travels to the others."""
        ...

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """The metrics of all workers' states together."""
        ...


class Objective(nn.Module):
    """A model joined with its losses. Losses come as sums and counts, so that several workers can be averaged right."""

    weights: dict[str, float]
    """Weight of each loss that `forward` returns."""

    def forward(self, batch: Any) -> dict[str, LossSum]:
        """Losses of a batch by name."""
        raise NotImplementedError

    def counts(self, batch: Any) -> dict[str, int]:
        """Items of each loss that `forward` would return for this batch, in its order, without computing them."""
        raise NotImplementedError

    def prepare(self, batches: Callable[[int], Iterable[Any]], seed: int) -> None:
        """Start values that depend on data; called once, before the first step of a fresh run.

        Args:
            batches: gives the first n training batches.
            seed: seed of the run.
        """

    def after_step(self, step: int, seed: int) -> None:
        """Upkeep after step number `step`, the same on every worker, also after a step without update.

        It must not wait for the device: whether the step made an update is known one step later.
        """

    def collect_counts(self) -> None:
        """Bring what each worker has counted by itself to rank 0, whose state is saved; every worker calls it."""

    def drop_counts(self) -> None:
        """Forget what was counted: this worker has got a copy of rank 0's state, and would count it twice."""

    def scores(self) -> ObjectiveScores:
        """A fresh collection of this objective's scores."""
        raise NotImplementedError
