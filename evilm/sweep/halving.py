"""Successive halving: decide which settings go on. Knows neither Ray nor folders, so that it can be simulated."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from evilm.config.base import fingerprint

T = TypeVar("T")


def rung_steps(steps_per_epoch: int, last_step: int, grace_epochs: float, reduction: float) -> tuple[int, ...]:
    """Return the steps after which a trial is compared with others; the last one is its end.

    Rungs lie at the same epochs in all trials, whatever their batch size: at `grace_epochs`, `reduction` times as many,
    and so on, rounded up to whole steps.
    """
    steps, epochs = [], grace_epochs
    while (step := math.ceil(round(epochs * steps_per_epoch, 6))) < last_step:
        steps.append(step)
        epochs *= reduction
    return (*steps, last_step)


def in_random_order(items: Iterable[T], seed: int, key: Callable[[T], Any]) -> list[T]:
    """Return items in an order that depends on the seed and on each one's key, not on the order they come in."""
    return sorted(items, key=lambda item: fingerprint([seed, key(item)]))


def halve(
    settings: Sequence[T],
    num_rungs: int,
    reduction: float,
    advance: Callable[[Sequence[T], int], Sequence[Sequence[float]]],
) -> list[T]:
    """Take settings from rung to rung; the best 1/reduction of them (rounded up) go on from each.

    A setting is judged by the mean over its seeds; one of which a seed has no score comes after those with all scores.
    All settings of a rung are compared at once, so neither their order nor their speed matters.

    Args:
        settings: in random order, since earlier ones win ties.
        num_rungs: the last rung is the end, where nobody is dropped.
        reduction: above 1.
        advance: runs every seed of the given settings to a rung, and returns the scores of each setting's seeds, high
            is good, without those that are missing or not finite.

    Returns:
        The settings that ran to the end.
    """
    left = list(settings)
    for rung in range(num_rungs - 1):
        keep = math.ceil(len(left) / reduction)
        if keep == len(left):  # nor would a later rung drop any
            break
        scores = advance(left, rung)
        order = sorted(range(len(left)), key=lambda at: _standing(scores[at]))  # used at once
        left = [left[at] for at in sorted(order[:keep])]
    advance(left, num_rungs - 1)
    return left


def _standing(scores: Sequence[float]) -> tuple[float, float]:
    return -len(scores), -statistics.fmean(scores) if scores else 0.0
