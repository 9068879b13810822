"""Pairs that are scored by the matching head: only those asked for, in memory that does not grow with all pairs."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from evilm.config.training import ObjectivesConfig
from evilm.eval.eval_clips import choose_clips, make_blocks, open_shards
from evilm.eval.retrieval_scores import rerank
from evilm.eval.scoring import ScoreJob, Scorer, gather_pairs, pairs_by_clip
from evilm.model.metrics import lenient_ranks
from helpers.random_model import make_frames, make_model


def score_job(folder: Path) -> ScoreJob:
    """All clips against all their captions, some of which are equal."""
    frames = make_frames(folder / "frames")
    make_model(folder / "model")
    pairs = open_shards(frames, "test")
    clips = choose_clips(pairs, 100, 0)
    captions = [clip.caption for clip in clips]
    blocks = make_blocks(pairs, clips, 8)
    return ScoreJob(str(folder / "model"), blocks, captions, [0] * len(clips), ObjectivesConfig(), 0)


def dense(scores: np.ndarray, best: np.ndarray, num_videos: int) -> np.ndarray:
    """All pairs, -inf where a caption is not scored with a video."""
    every = np.full((len(scores), num_videos), -np.inf, dtype=np.float32)
    np.put_along_axis(every, best, scores, axis=1)
    return every


def test_pairs_that_are_asked_for_get_the_scores_and_ranks_of_all_pairs(tmp_path: Path) -> None:
    job = score_job(tmp_path)
    number, scorer = len(job.captions), Scorer(job)
    every = np.empty((number, number), dtype=np.float32)
    for block in range(len(job.blocks)):
        rows = scorer({"block": np.array([block])})
        every[:, rows["place"]] = rows["match"].T
    wanted = np.setdiff1d(np.arange(number), [3])  # nobody asks for clip 3
    only = np.stack([np.random.default_rng(k).permutation(wanted)[:5] for k in range(number)])
    some = Scorer(dataclasses.replace(job, only=only))
    outputs = [some({"block": np.array([block])}) for block in range(len(job.blocks))]
    assert max(part.size for rows in outputs for part in rows.values()) < only.size
    scores = gather_pairs(only, reversed(outputs))
    np.testing.assert_allclose(scores, np.take_along_axis(every, only, axis=1), rtol=1e-5, atol=1e-5)
    own = np.arange(number)
    expected = lenient_ranks(np.where(np.isfinite(dense(scores, only, number)), every, -np.inf), own)
    is_own = (only == own[:, None]).any(1)
    found = rerank(scores, only, own, np.full(number, 99.0))
    assert 0 < is_own.sum() < number
    np.testing.assert_array_equal(found, np.where(is_own, expected, 99.0))


def test_ranks_of_some_pairs_are_those_of_a_full_matrix_also_with_ties() -> None:
    rng, num_videos = np.random.default_rng(1), 30
    for best_of in (1, 2, 8, 30):
        best = np.stack([rng.permutation(num_videos)[:best_of] for _ in range(200)])
        scores = rng.integers(0, 4, best.shape).astype(np.float32)
        scores[rng.random(best.shape) < 0.02] = np.nan
        own = rng.integers(0, num_videos, 200)
        before = rng.integers(1, 31, 200).astype(np.float64)
        full = dense(scores, best, num_videos)
        is_scored = np.isfinite(full[np.arange(200), own])
        expected = np.where(is_scored, lenient_ranks(full, own), before)
        np.testing.assert_array_equal(rerank(scores, best, own, before), expected)


def test_memory_of_ranking_again_is_that_of_the_best_pairs() -> None:
    num_captions, num_videos, best_of = 20_000, 1_000, 8
    best = np.argsort(np.random.default_rng(2).random((num_captions, best_of)), axis=1).astype(np.int32)
    own, before = np.arange(num_captions) % num_videos, np.ones(num_captions)
    pairs = np.split(np.arange(best.size), 100)
    batches = ({"pair": some, "match": (some % 7).astype(np.float32)} for some in pairs)
    tracemalloc.start()
    try:
        rerank(gather_pairs(best, batches), best, own, before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * best.size, f"{peak} bytes"
    assert 20 * best.size < num_captions * num_videos * 4 / 20


@pytest.mark.parametrize("num_clips", [1, 4])
def test_each_clip_finds_the_captions_that_ask_for_it(num_clips: int) -> None:

    only = np.random.default_rng(3).integers(0, num_clips, (6, 2)).astype(np.int32)
    found = pairs_by_clip(only, num_clips)
    assert [place.tolist() for place in found] == [np.flatnonzero(only.ravel() == k).tolist() for k in range(num_clips)]
