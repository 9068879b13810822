"""Metrics against numbers worked by hand; ties and constants must not be flattered."""

import math

import numpy as np
import pytest

from evilm.errors import CheckpointError
from evilm.model.metrics import (
    chance_precision,
    choice_hits,
    clip_accuracy,
    mean_average_precision,
    median_rank,
    proportion,
    ranks,
    recall_at,
    retrieval,
)

OWN = np.arange(4)


def test_ranks_by_hand():
    scores = np.array([[9, 1, 2, 3], [5, 5, 1, 0], [7, 7, 7, 8], [1, 2, 3, 0]], dtype=np.float32)
    # Alone at the top; tied with one for places 1-2; tied with two behind one, places 2-4; last.
    assert ranks(scores, OWN).tolist() == [1, 1.5, 3, 4]


def test_constant_similarity_matrix_is_rejected():
    with pytest.raises(CheckpointError, match=r"4 of 4 rows of scores are constant .*4 items at 0"):
        retrieval(np.zeros((4, 4)), OWN)
    nearly = np.zeros((4, 4))
    nearly[:, 3] = -1  # enough to pass as scores, and still nothing is told apart
    figures, places = retrieval(nearly, OWN)
    assert places.tolist() == [2, 2, 2, 4]
    assert figures["r1"].value == 0
    assert figures["r1"].sigmas_above_chance < 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_scores_are_rejected(bad: float):
    scores = np.eye(4)
    scores[2, 1] = bad
    with pytest.raises(CheckpointError, match=r"1 of 4 rows of scores are not finite \(first: clip 2\)"):
        ranks(scores, OWN, "clip")


def test_perfect_and_reversed_scores():
    figures, _ = retrieval(np.eye(20), np.arange(20))
    assert figures["r1"].value == figures["r10"].value == 1
    assert figures["median_rank"].value == 1
    assert figures["median_rank"].chance == 10.5
    assert figures["r10"].chance == 0.5
    worst, _ = retrieval(-np.eye(20), np.arange(20))
    assert worst["r10"].value == 0
    assert worst["median_rank"].sigmas_above_chance < 0


def test_proportion_by_hand():
    figure = proportion(np.array([1, 1, 1, 0]), 0.2)
    assert figure.value == 0.75
    assert figure.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert figure.sigmas_above_chance == pytest.approx(0.55 / math.sqrt(0.75 * 0.25 / 4))
    # All right: the error at the measured value would be 0, the one at chance is not.
    sure = proportion(np.ones(100), 0.2)
    assert sure.standard_error == pytest.approx(0.04)
    assert sure.sigmas_above_chance == pytest.approx(20)


def test_recall_is_capped_where_items_are_few():
    figure = recall_at(np.array([1.0, 3.0]), 10, 4)
    assert (figure.value, figure.chance, figure.sigmas_above_chance) == (1, 1, 0)


def test_median_rank_of_guessing_is_at_chance():
    places = np.random.default_rng(0).integers(1, 1001, 1000).astype(float)
    figure = median_rank(places, 1000)
    assert abs(figure.sigmas_above_chance) < 3
    assert figure.standard_error == pytest.approx(1000 / (2 * math.sqrt(1000)))


def test_choice_ties_are_misses():
    assert choice_hits(np.array([[2.0, 1, 0], [1, 1, 0], [0, 1, 0]])).tolist() == [True, False, False]


def test_clip_accuracy_counts_clips_not_regions():
    hits = np.array([[1, 1], [1, 0], [0, 0]])
    baseline = np.array([[1, 0], [0, 0], [0, 0]])
    figure = clip_accuracy(hits, baseline)
    # Differences by clip 0.5, 0.5, 0: mean 1/3, standard deviation 0.288675, over sqrt(3).
    assert (figure.value, figure.chance, figure.count) == (0.5, pytest.approx(1 / 6), 3)
    assert figure.standard_error == pytest.approx(0.2886751 / math.sqrt(3))
    assert figure.sigmas_above_chance == pytest.approx((1 / 3) / (0.2886751 / math.sqrt(3)))


def test_mean_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    present = np.array([[True, False], [False, True], [True, False], [False, False]])
    # Word 0: found 1st and 3rd, (1/1 + 2/3) / 2. Word 1: found third of four, 1/3.
    assert mean_average_precision(scores, present) == pytest.approx((5 / 6 + 1 / 3) / 2)


def test_constant_scores_have_chance_precision():
    present = np.array([[True, True, False], [False, True, False], [False, True, False], [False, True, False]])
    assert mean_average_precision(np.zeros((4, 3)), present) == pytest.approx(0.25)
    assert chance_precision(present) == pytest.approx(0.25)
    assert mean_average_precision(np.zeros((4, 1)), np.zeros((4, 1), dtype=bool)) == 0
