"""Evaluate on the val split: the scores over all workers, and which evaluation was the best."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from evilm.config.training import ScheduleConfig
from evilm.dataloader.loader import DataLoader
from evilm.errors import ConfigError
from evilm.objectives.objective import Objective
from evilm.train.checkpoint_manager import checkpoint_name
from evilm.train.reduce import gather


@torch.no_grad()
def evaluate(
    objective: Objective, loader: DataLoader, device: torch.device, world: int, autocast: torch.autocast
) -> dict[str, float]:
    """Score a split, summed over workers; the model is back in train mode afterwards.

    Args:
        loader: this worker's batches; it may have none.
        world: number of workers, which all call this at the same step.
        autocast: context of the forward passes, that of training.
    """
    objective.eval()
    scores = objective.scores()
    with autocast:
        for batch in loader.batches(0, loader.order.num_steps):
            scores.add(batch, device)
    objective.train()
    return scores.result(gather(scores.state(), world))


def better(metrics: Mapping[str, float], wanted: str, best: Mapping[str, Any]) -> float | None:
    """Return the value by which an evaluation is the best so far; None where it is not, or is not finite.

    Args:
        wanted: `schedule.keep_best`; `loss` is the sum of the losses where there is no metric of that name.
        best: the best one so far, its `value`; empty where there is none.

    Raises:
        ConfigError: there is no metric of that name.
    """
    losses = [value for name, value in metrics.items() if name.endswith("_loss")]
    value = metrics.get(wanted, sum(losses) if wanted == "loss" and losses else None)
    if value is not None and not math.isfinite(value):
        return None  # nothing would ever be better than NaN
    if value is None and wanted:
        raise ConfigError(
            f"schedule.keep_best = {wanted!r} is not an evaluation metric; use one of {', '.join(sorted(metrics))}"
        )
    if value is None:
        return None
    sign = 1 if wanted.endswith("loss") else -1
    return value if not best or not math.isfinite(best["value"]) or sign * value < sign * best["value"] else None


def note_best(
    best: Mapping[str, Any], metrics: Mapping[str, float], schedule: ScheduleConfig, step: int, attempt: int
) -> dict[str, Any]:
    """Describe an evaluation if it is the best so far.

    An earlier best by another metric or over another number of clips does not compare, and gives way.

    Args:
        best: what this function returned for the best evaluation so far; empty if there is none.
        schedule: `keep_best` names the metric that decides.
        attempt: number of this start of the training.

    Returns:
        The checkpoint that has to be kept, metric and value, step; empty if this evaluation is not the best.
    """
    rule = {"metric": schedule.keep_best, "eval_clips": schedule.eval_clips}
    same = all(best.get(name, value) == value for name, value in rule.items())
    value = better(metrics, schedule.keep_best, best if same else {})
    if value is None:
        return {}
    return {"checkpoint": checkpoint_name(step, attempt), "value": value, "step": step} | rule
