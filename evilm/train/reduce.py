"""Sums over workers and parts, so that a loss does not depend on how many workers share a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from evilm.model.losses import LossSum

_TOTAL, _COUNT, _CORRECT = range(3)


def loss_stats(losses: Mapping[str, LossSum]) -> torch.Tensor:
    """Sum, count and hits of each loss on this worker, (loss, 3); adds up over parts and workers."""
    rows = []
    for total, count, correct in losses.values():
        total = total.detach().float()
        rows.append(torch.stack([total, torch.full_like(total, count), correct.float()]))
    return torch.stack(rows)


def sum_over_workers(stats: torch.Tensor, flags: Sequence[float], world: int) -> tuple[torch.Tensor, list[float]]:
    """Stats of all workers together, and flags added up on the same journey."""
    if world == 1:
        return stats, list(flags)
    joined = torch.cat([stats.flatten(), stats.new_tensor(flags)])
    dist.all_reduce(joined)
    return joined[: stats.numel()].view_as(stats), joined[stats.numel() :].tolist()


def weighted_loss(
    losses: Mapping[str, LossSum], counts: torch.Tensor, weights: Mapping[str, float], world: int
) -> torch.Tensor:
    """The loss to differentiate: each sum of these items over the count of the whole step's.

    DDP averages gradients over workers, hence the factor `world`.
    """
    weight = counts.new_tensor([weights[name] for name in losses])
    total = torch.stack([losses[name].total for name in losses])
    return (total.float() * weight * world / counts.clamp(min=1)).sum()


def step_metrics(stats: torch.Tensor, weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Global means for the log: `loss`, `{name}_loss`, and `{name}_accuracy` where there is one."""
    means = stats[:, _TOTAL] / stats[:, _COUNT].clamp(min=1)
    weight = stats.new_tensor([weights[name] for name in names])
    metrics = {f"{name}_loss": float(mean) for name, mean in zip(names, means, strict=True)}
    for name, (_, count, correct) in zip(names, stats.tolist(), strict=True):
        if correct >= 0:
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
    return {"loss": float((means * weight).sum())} | metrics


def _scalar(value: Any) -> torch.Tensor:
    """A 0-d float tensor; an accuracy that a loss does not have is -1 and stays negative when summed."""
    return torch.as_tensor(-1.0 if value is None else value).detach().float()


def gather(state: Any, world: int) -> list[Any]:
    """The states of all workers, in order of rank."""
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    dist.all_gather_object(states, state)
    return states
