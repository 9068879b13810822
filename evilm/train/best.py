"""The best evaluation of a training so far, and the checkpoint that belongs to it."""

from collections.abc import Mapping
from typing import Any

from evilm.config.training import ScheduleConfig
from evilm.train.checkpoint_manager import checkpoint_name
from evilm.train.validation import better


def note_best(
    best: Mapping[str, Any], metrics: Mapping[str, float], schedule: ScheduleConfig, step: int, attempt: int
) -> dict[str, Any]:
    """Describe an evaluation if it is the best so far.

    An earlier best by another metric or over another number of clips does not compare, and gives way.

    Args:
        best: what this function returned for the best evaluation so far; empty if there is none.
        metrics: of the evaluation, by name.
        schedule: `keep_best` names the metric that decides.
        step: steps done.
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
