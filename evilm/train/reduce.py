"""Sums over workers, so that a loss does not depend on how many workers share a step."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from evilm.model.losses import LossSum


def reduce_losses(
    losses: Mapping[str, LossSum], weights: Mapping[str, float], world: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss to differentiate on this worker, and the global means for the log.

    Each loss is its sum over this worker's items divided by the count of items of all workers. DDP averages gradients
    over workers, hence the factor `world`.

    Returns:
        The weighted loss; `{name}_loss`, `{name}_accuracy` where there is one, and `loss`.
    """
    names = list(losses)
    stats = torch.stack([torch.stack([_scalar(x) for x in losses[n][:3]]) for n in names]).detach()
    if world > 1:
        dist.all_reduce(stats)
    means = stats[:, 0] / stats[:, 1].clamp(min=1)
    weight = stats.new_tensor([weights[name] for name in names])
    total = torch.stack([losses[n].total for n in names])
    loss = (total.float() * weight * world / stats[:, 1].clamp(min=1)).sum()
    metrics = {f"{name}_loss": float(mean) for name, mean in zip(names, means, strict=True)}
    for name, (_, count, correct) in zip(names, stats.tolist(), strict=True):
        if correct >= 0:
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
    return loss, {"loss": float((means * weight).sum())} | metrics


def _scalar(value: Any) -> torch.Tensor:
    """A 0-d float tensor; an accuracy that a loss does not have is -1 and stays negative when summed."""
    return torch.as_tensor(-1.0 if value is None else value).detach().float()


def gather(state: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """The states of all workers, in order of rank."""
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    dist.all_gather_object(states, state)
    return states
