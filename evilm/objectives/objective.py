"""The interface between an objective and the training loop: a module that maps a batch to named loss sums."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from evilm.model.losses import LossSum


class ObjectiveScores(Protocol):
    """Accumulates the metrics of an evaluation, batch by batch, on each worker."""

    def add(self, batch: Any, device: torch.device) -> None:
        """Score one batch."""
        ...

    def state(self) -> dict[str, Any]:
        """Return this worker's sums, which are sent to the others."""
        ...

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Compute metrics from the states of all workers."""
        ...


@runtime_checkable
class GathersFeatures(Protocol):
    """An objective with a loss that compares all items of a step; called before `forward`."""

    def embed(self, batch: Any) -> torch.Tensor:
        """Compute the features of the items of a batch, one row each."""
        ...

    def cache(self, features: torch.Tensor) -> None:
        """Take the features of all items of the step, in order and without gradients."""
        ...


class Objective(nn.Module):
    """A model joined with its losses. Losses are sums with counts, so that means over workers are exact."""

    weights: dict[str, float]
    """Weight of each loss that `forward` returns."""

    def forward(self, batch: Any) -> dict[str, LossSum]:
        """Compute the losses of a batch, by name."""
        raise NotImplementedError

    def counts(self, batch: Any) -> dict[str, int]:
        """Count the items of each loss of a batch, in the order of `forward`, without computing the losses."""
        raise NotImplementedError

    def lr_scale(self, name: str) -> float:
        """Return the factor of the learning rate of the parameter `name`."""
        return 1.0

    def prepare(self, batches: Callable[[int], Iterable[Any]], seed: int) -> None:
        """Initialise what depends on data; called once, before the first step of a new run.

        Args:
            batches: returns the first n training batches.
            seed: seed of the run.
        """

    def after_step(self, step: int, seed: int) -> None:
        """Do upkeep after step number `step`, the same on every worker, also after a skipped update.

        It must not wait for the device: a skipped update becomes known one step later.
        """

    def collect_counts(self) -> None:
        """Sum the workers' own counts on rank 0, whose state is saved; every worker calls it."""

    def drop_counts(self) -> None:
        """Reset the counts of a worker that has loaded a copy of rank 0's state, which would count twice."""

    def scores(self) -> ObjectiveScores:
        """Create an empty accumulator of this objective's metrics."""
        raise NotImplementedError
