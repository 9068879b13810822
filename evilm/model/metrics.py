"""Retrieval and word metrics with chance level and standard error, which ties and constant scores cannot inflate.

Tied items share their mean rank, so a model that scores everything the same is at chance, not at 100 %.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from evilm.errors import CheckpointError


@dataclass(frozen=True)
class Figure:
    """A measured value with its chance level."""

    value: float
    chance: float
    standard_error: float
    """The larger of the errors at the measured value and at chance; a value of 0 or 1 would otherwise have none."""
    sigmas_above_chance: float
    """Standard errors above chance; negative if worse than chance."""
    count: int
    """Independent trials: queries or clips."""

    def as_dict(self) -> dict[str, float]:
        """Return plain numbers for a summary, rounded to six digits."""
        return {name: value if name == "count" else round(value, 6) for name, value in asdict(self).items()}


def proportion(hits: Num[np.ndarray, "trial"], chance: float) -> Figure:
    """Compute the share of hits (0 or 1 each) and its binomial standard error."""
    count = len(hits)
    value = float(np.mean(hits))
    error = math.sqrt(max(value * (1 - value), chance * (1 - chance)) / count)
    return Figure(value, chance, error, _sigmas(value - chance, error), count)


def ranks(
    scores: Float[np.ndarray, "query item"], targets: Int[np.ndarray, "query"], what: str = "query"
) -> Float[np.ndarray, "query"]:
    """Rank each query's target among all items, 1 = best; tied items share their mean rank.

    Raises:
        CheckpointError: a score is not finite, or a query scores all its items the same.
    """
    scores = np.asarray(scores, dtype=np.float64)
    _refuse_useless(scores, what)
    return lenient_ranks(scores, targets)


def lenient_ranks(
    scores: Float[np.ndarray, "query item"], targets: Int[np.ndarray, "query"]
) -> Float[np.ndarray, "query"]:
    """Rank likewise, as in an evaluation during training: a target whose score is not finite comes last."""
    own = scores[np.arange(len(scores)), targets][:, None]
    places = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return np.where(np.isfinite(own[:, 0]), places, scores.shape[1])


def recall_at(places: Float[np.ndarray, "query"], k: int, num_items: int) -> Figure:
    """Compute R@k, the share of queries whose target is among the first k of `num_items`."""
    return proportion(places <= k, min(1.0, k / num_items))


def median_rank(places: Float[np.ndarray, "query"], num_items: int) -> Figure:
    """Compute the median rank; lower is better, and `sigmas_above_chance` counts how far it is below chance.

    The standard error is that of the median of as many uniform ranks, i.e. of guessing.
    """
    value, chance = float(np.median(places)), (num_items + 1) / 2
    error = num_items / (2 * math.sqrt(len(places)))
    return Figure(value, chance, error, _sigmas(chance - value, error), len(places))


def retrieval(
    scores: Float[np.ndarray, "query item"], targets: Int[np.ndarray, "query"], what: str = "query"
) -> tuple[dict[str, Figure], Float[np.ndarray, "query"]]:
    """Compute R@1, R@5, R@10 and median rank; return them and the ranks."""
    places = ranks(scores, targets, what)
    num_items = scores.shape[1]
    figures = {f"r{k}": recall_at(places, k, num_items) for k in (1, 5, 10)}
    return figures | {"median_rank": median_rank(places, num_items)}, places


def choice_hits(scores: Float[np.ndarray, "query choice"], answer: int = 0) -> Bool[np.ndarray, "query"]:
    """Check for each query if choice `answer` scores strictly above all others; a tie is a miss.

    Raises:
        CheckpointError: a score is not finite, or a query scores all its choices the same.
    """
    return ranks(scores, np.full(len(scores), answer), "question") == 1


def clip_accuracy(hits: Num[np.ndarray, "clip region"], baseline: Num[np.ndarray, "clip region"]) -> Figure:
    """Compare the share of hits over all regions with a baseline's on the same regions.

    Regions of a clip are correlated, so clips are the independent trials: the standard error is that of the mean
    difference to the baseline over clips.
    """
    value, chance = float(np.mean(hits)), float(np.mean(baseline))
    difference = (np.asarray(hits, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)).mean(axis=1)
    count = len(hits)
    error = float(np.std(difference, ddof=1) / math.sqrt(count)) if count > 1 else 0.0
    return Figure(value, chance, error, _sigmas(value - chance, error), count)


def mean_average_precision(scores: Float[np.ndarray, "clip word"], present: Bool[np.ndarray, "clip word"]) -> float:
    """Average over words the average precision of retrieving the clips with that word.

    Words of no clip or of all clips are skipped. Tied clips are retrieved together, so a constant score reaches the
    word's share of clips. Returns 0 if no word remains.
    """
    present = np.asarray(present, dtype=bool)
    found = present.sum(axis=0)
    words = np.flatnonzero((found > 0) & (found < len(present)))
    precisions = [_average_precision(np.asarray(scores[:, w], dtype=np.float64), present[:, w]) for w in words]
    return float(np.mean(precisions)) if precisions else 0.0


def chance_precision(present: Bool[np.ndarray, "clip word"]) -> float:
    """Compute the `mean_average_precision` of constant scores: the mean share of clips that have a word."""
    share = np.asarray(present, dtype=bool).mean(axis=0)
    share = share[(share > 0) & (share < 1)]
    return float(share.mean()) if len(share) else 0.0


def _average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Sum precision times gain in recall over distinct scores, from the highest."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the end of each group of ties
    hits = np.cumsum(present[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1])


def _refuse_useless(scores: np.ndarray, what: str) -> None:
    """Reject scores that are not finite or do not distinguish the items of a row."""
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise CheckpointError(
            f"{len(bad)} of {len(scores)} rows of scores are not finite (first: {what} {bad[0]}); "
            "the model is damaged or its training diverged"
        )
    flat = np.flatnonzero(scores.min(axis=1) == scores.max(axis=1))
    if len(flat):
        raise CheckpointError(
            f"{len(flat)} of {len(scores)} rows of scores are constant (first: {what} {flat[0]}, "
            f"{scores.shape[1]} items at {scores[flat[0], 0]:.4g}); "
            "the model does not distinguish them; train it longer or check its input"
        )


def _sigmas(gain: float, error: float) -> float:
    """Express a gain in standard errors; an error of 0 (one clip, or all clips equal) is no evidence and gives 0."""
    return gain / error if error > 0 else 0.0
