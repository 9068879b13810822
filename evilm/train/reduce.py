"""Sums over workers and micro-batches, so that a loss does not depend on how many workers share a step.

All of it is on the device: nothing here waits for the host, or lets the host wait.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from evilm.model.losses import LossSum

TOTAL, COUNT, CORRECT = range(3)
"""Columns of the statistics of losses."""


def to_device(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Copy numbers to `device`, float32, without waiting: a plain copy to a GPU ends when all its work is done."""
    numbers = torch.tensor(values, dtype=torch.float32)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def loss_stats(losses: Mapping[str, LossSum]) -> torch.Tensor:
    """Sum, count and hits of each loss on this worker, (loss, 3); adds up over micro-batches and workers.

    The hits of a loss without an accuracy are -1, and stay negative when summed.
    """
    totals = torch.stack([loss.total.detach().float() for loss in losses.values()])
    correct = torch.stack([loss.correct.detach().float() for loss in losses.values()])
    counts = to_device([loss.num_items for loss in losses.values()], totals.device)
    return torch.stack([totals, counts, correct], dim=1)


def sum_over_workers(stats: torch.Tensor, flags: torch.Tensor, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up stats and flags of all workers, in one message."""
    if world == 1:
        return stats, flags
    joined = torch.cat([stats.flatten(), flags])
    dist.all_reduce(joined)
    return joined[: stats.numel()].view_as(stats), joined[stats.numel() :]


def weighted_loss(
    losses: Mapping[str, LossSum], counts: torch.Tensor, weights: torch.Tensor, world: int
) -> torch.Tensor:
    """Return the loss to differentiate: each sum of these items over the count of the whole step's.

    DDP averages gradients over workers, hence the factor `world`.
    """
    total = torch.stack([loss.total for loss in losses.values()])
    return (total.float() * weights * world / counts.clamp(min=1)).sum()


def weighted_mean(stats: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the loss of a step, Eq. 8: the mean of each loss times its weight."""
    return (stats[:, TOTAL] / stats[:, COUNT].clamp(min=1) * weights).sum()


def step_metrics(stats: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Compute global means for the log, from stats on the CPU: `{name}_loss`, and `{name}_accuracy` if there is one."""
    means = stats[:, TOTAL] / stats[:, COUNT].clamp(min=1)
    metrics = {f"{name}_loss": float(mean) for name, mean in zip(names, means, strict=True)}
    for name, (_, count, correct) in zip(names, stats.tolist(), strict=True):
        if correct >= 0:
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
    return metrics


def gather_rows(rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the rows of all workers, in order of rank.

    Args:
        rows: this worker's; their gradients are not passed on.
        sizes: number of rows of each worker, known to all, so that nobody waits for numbers from a device.
    """
    if len(sizes) == 1:
        return rows
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather(state: Any, world: int) -> list[Any]:
    """Return the states of all workers, in order of rank."""
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    dist.all_gather_object(states, state)
    return states
