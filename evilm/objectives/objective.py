"""The interface between an objective and the training loop: a module that maps a batch to named loss sums."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
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

    def targets(self, batch: Any) -> dict[str, Int[np.ndarray, " target"]]:
        """Return what is to be predicted in a batch on the CPU, by the loss that has an accuracy."""
        return {}

    def lr_scale(self, name: str) -> float:
        """Return the factor of the learning rate of the parameter `name`."""
        return 1.0

    def prepare(self, batches: Callable[[int], Iterable[Any]], seed: int) -> None:
        """Initialise what depends on data; called once, before the first step of a new run.

        `batches` returns the first n training batches.
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


class TargetCounts:
    """Counts targets by loss, for chance: the accuracy of always predicting the most frequent target."""

    def __init__(self) -> None:
        self.by_loss: dict[str, Counter[int]] = defaultdict(Counter)

    def add(self, targets: Mapping[str, Int[np.ndarray, " target"]]) -> None:
        """Count the targets of a batch."""
        for name, values in targets.items():
            found, counts = np.unique(values, return_counts=True)
            self.by_loss[name].update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def update(self, other: Mapping[str, Mapping[int, int]]) -> None:
        """Add what another worker counted."""
        for name, counts in other.items():
            self.by_loss[name].update(counts)

    def chance(self) -> dict[str, float]:
        """Return the share of the most frequent target, by loss."""
        shares = {name: counts.most_common(1)[0][1] / counts.total() for name, counts in self.by_loss.items() if counts}
        return {f"{name}_chance": share for name, share in shares.items()}
