"""Figures of downstream tasks with intervals by a bootstrap over videos, as questions on one video are related."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from evilm.model.metrics import Figure
from evilm.seeds import named_rng

_RESAMPLES = 2000
_AT_A_TIME = 100
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class ItemFigure(Figure):
    """A share of items that were solved, with its chance level and a 95 % interval."""

    low: float
    high: float
    num_clips: int
    """Videos, which are the independent trials."""

    def as_dict(self) -> dict[str, float]:
        """Return plain numbers for a summary, rounded to six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def share(hits: Num[np.ndarray, " item"], clip_ids: Sequence[str], chance: float) -> ItemFigure:
    """Compute the share of hits, with the standard error and the interval of a bootstrap over videos.

    Args:
        hits: 0 or 1 of each item.
        clip_ids: video of each item.
        chance: share that guessing reaches.
    """
    _, clip_of = np.unique(np.asarray(clip_ids), return_inverse=True)
    sums, counts = np.bincount(clip_of, weights=hits), np.bincount(clip_of)
    value, drawn = float(np.mean(hits)), _resample(sums, counts)
    low, high = np.percentile(drawn, _INTERVAL)
    num_clips = len(sums)
    error = max(float(drawn.std()), (chance * (1 - chance) / len(hits)) ** 0.5)
    sigmas = (value - chance) / error if error > 0 else 0.0
    return ItemFigure(value, chance, error, sigmas, len(hits), float(low), float(high), num_clips)


def _resample(sums: Float[np.ndarray, " clip"], counts: Int[np.ndarray, " clip"]) -> Float[np.ndarray, " draw"]:
    """Draw videos with replacement, and return the share of hits of each draw."""
    rng, count = named_rng("bootstrap", len(sums)), len(sums)
    found = []
    for _ in range(0, _RESAMPLES, _AT_A_TIME):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_AT_A_TIME)
        found.append((times @ sums) / np.maximum(1, times @ counts))
    return np.concatenate(found)


def difference(
    ours: Num[np.ndarray, " item"], theirs: Num[np.ndarray, " item"], clip_ids: Sequence[str]
) -> tuple[float, float, float]:
    """Compare two models on the same items: mean difference, and its 95 % interval by a bootstrap over videos."""
    _, clip_of = np.unique(np.asarray(clip_ids), return_inverse=True)
    gain = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    drawn = _resample(np.bincount(clip_of, weights=gain), np.bincount(clip_of))
    low, high = np.percentile(drawn, _INTERVAL)
    return float(gain.mean()), float(low), float(high)


def chance_of_best(counts: Int[np.ndarray, " query"], num_items: int, k: int) -> float:
    """Return the mean chance that the best of a query's `counts` right items is among the first k of `num_items`.

    With m right ones it is 1 - C(N - m, k) / C(N, k).
    """
    missed = np.ones(len(counts))
    for drawn in range(min(k, num_items)):
        missed *= np.clip((num_items - counts - drawn) / (num_items - drawn), 0, 1)
    return float(1 - missed.mean())


def by_type(
    hits: Num[np.ndarray, " item"], types: Sequence[str], clip_ids: Sequence[str], chance: Callable[[str], float]
) -> dict[str, ItemFigure]:
    """Compute the share of hits by type of question, the most frequent type first."""
    names, clips = np.asarray(types), np.asarray(clip_ids)
    found, counts = np.unique(names, return_counts=True)
    order = [str(name) for name in found[np.argsort(-counts, kind="stable")]]
    return {name: share(hits[names == name], clips[names == name].tolist(), chance(name)) for name in order if name}
