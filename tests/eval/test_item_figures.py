"""Shares with intervals over videos, and linear probes on features that can be checked."""

import numpy as np
import pytest

from evilm.eval import linear_probe
from evilm.eval.item_figures import by_type, chance_of_best, difference, share
from evilm.eval.linear_probe import ProbeSplit, probe


def test_questions_on_one_video_make_the_interval_wider():
    rng = np.random.default_rng(0)
    by_clip = rng.random(100) < 0.5
    hits = np.repeat(by_clip, 20)
    clips = [f"v{n // 20}" for n in range(2000)]
    wide = share(hits, clips, 0.5)
    narrow = share(hits, [f"v{n}" for n in range(2000)], 0.5)
    assert wide.value == narrow.value == pytest.approx(by_clip.mean())
    assert wide.standard_error == pytest.approx(0.05, rel=0.15)
    assert narrow.standard_error == pytest.approx(0.05 / 20**0.5, rel=0.15)
    assert wide.low < wide.value < wide.high
    assert (wide.count, wide.num_clips) == (2000, 100)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(100):
        counts = rng.integers(1, 10, 80)
        clips = np.repeat(np.arange(80), counts).astype(str).tolist()
        figure = share(rng.random(counts.sum()) < 0.3, clips, 0.2)
        covered += figure.low <= 0.3 <= figure.high
    assert 87 <= covered <= 100


def test_every_item_counts_once_in_the_share_and_its_types():
    hits = np.array([1, 0, 1, 1])
    found = by_type(hits, ["what", "who", "what", ""], ["a", "a", "b", "b"], lambda name: 0.1)
    assert {name: (figure.value, figure.count) for name, figure in found.items()} == {"what": (1.0, 2), "who": (0.0, 1)}


def test_paired_models_differ_by_less_than_their_intervals():
    rng = np.random.default_rng(2)
    hard = np.repeat(rng.random(200) < 0.5, 5)
    clips = [f"v{n // 5}" for n in range(1000)]
    better = hard | (rng.random(1000) < 0.05)
    gain, low, high = difference(better, hard, clips)
    assert gain == pytest.approx(better.mean() - hard.mean())
    assert 0 < low < gain < high < gain + 0.05


def splits(seed: int, rows: int = 240, classes: int = 4) -> list[ProbeSplit]:
    """Features of which one tells the class, and one does not."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 8)) * 2
    found = []
    for count in (rows, rows // 2, rows // 2):
        labels = rng.integers(0, classes, count)
        good = centres[labels] + rng.normal(size=(count, 8))
        found.append(ProbeSplit({"noise": rng.normal(size=(count, 8)), "good": good}, labels))
    return found


def test_a_probe_takes_the_feature_that_is_best_on_val():
    train, val, test = splits(0)
    result = probe(train, val, test, 4)
    assert result.feature == "good"
    assert (result.probabilities.argmax(1) == test.labels).mean() > 0.85
    np.testing.assert_allclose(result.probabilities.sum(1), 1, rtol=1e-5)


def test_descent_agrees_with_the_exact_solution(monkeypatch):
    train, _, test = splits(1)
    mean, scale = train.features["good"].mean(0), train.features["good"].std(0)
    vectors, others = ((split.features["good"] - mean) / scale for split in (train, test))
    exact = {c: linear_probe._fit(vectors, train.labels, c, 4, [others])[0] for c in (0.01, 0.1)}
    monkeypatch.setattr(linear_probe, "_EXACT_ROWS", 0)
    monkeypatch.setattr(linear_probe, "_EPOCHS", 1000)
    for c, expected in exact.items():
        (found,) = linear_probe._fit(vectors, train.labels, c, 4, [others])
        assert not np.array_equal(found, expected), "both were solved exactly"
        np.testing.assert_allclose(found, expected, atol=0.003)


def test_a_probe_by_descent_scales_and_chooses_as_an_exact_one(monkeypatch):
    exact = probe(*splits(1), 4)
    monkeypatch.setattr(linear_probe, "_EXACT_ROWS", 0)
    monkeypatch.setattr(linear_probe, "_EPOCHS", 100)
    shifted = [ProbeSplit({n: 50 * v + 7 for n, v in part.features.items()}, part.labels) for part in splits(1)]
    other = probe(*shifted, 4)
    assert other.feature == exact.feature
    assert (other.probabilities.argmax(1) == exact.probabilities.argmax(1)).mean() > 0.95


def test_classes_that_train_lacks_get_no_probability():
    train, val, test = splits(2, classes=3)
    assert (probe(train, val, test, 5).probabilities[:, 3:] == 0).all()


def test_chance_of_the_best_of_several_right_captions_is_that_of_random_ranks():
    rng, counts = np.random.default_rng(3), np.array([1, 4, 20])
    for k in (1, 5, 10):
        hits = []
        for _ in range(4000):
            order = rng.permutation(100)
            ends = np.cumsum(counts)
            best = [order[end - count : end].min() for count, end in zip(counts, ends, strict=True)]
            hits.append(np.array(best) < k)
        assert chance_of_best(counts, 100, k) == pytest.approx(np.mean(hits), abs=0.01)


def test_a_perfect_score_is_above_chance_also_with_several_questions_a_video():
    assert share(np.ones(60), [f"v{n // 3}" for n in range(60)], 0.2).sigmas_above_chance > 10
