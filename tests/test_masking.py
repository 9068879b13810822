"""Masks by their properties: count, shape, seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.errors import ConfigError
from evilm.masking import IGNORE, WordMasker, num_masked, region_mask, word_mask

SHAPES = ["block", "tube", "random"]


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    grid=st.integers(2, 14),
    frames=st.integers(1, 6),
    ratio=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_every_frame_hides_the_exact_count(shape, grid, frames, ratio, seed):
    mask = region_mask(shape, grid, frames, ratio, np.random.default_rng(seed))
    assert mask.shape == (frames, grid, grid)
    assert mask.dtype == bool
    assert set(mask.sum((1, 2)).tolist()) == {num_masked(grid * grid, ratio)}
    assert 0 < mask[0].sum() < grid * grid


def test_the_papers_count():
    # 40 % of 8 x 8 = 25.6, so 26 of 64
    assert region_mask("block", 8, 4, 0.4, np.random.default_rng(0)).sum() == 4 * 26


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_mask(shape):
    def draw(seed):
        return region_mask(shape, 8, 4, 0.4, np.random.default_rng(seed))

    assert np.array_equal(draw(5), draw(5))
    assert not np.array_equal(draw(5), draw(6))


def test_tube_is_equal_in_all_frames_and_block_is_not():
    tube = region_mask("tube", 8, 4, 0.4, np.random.default_rng(1))
    assert (tube == tube[0]).all()
    block = region_mask("block", 8, 4, 0.4, np.random.default_rng(1))
    assert not (block == block[0]).all()


def neighbour_agreement(shape: str, grid: int) -> float:
    """Share of a hidden cell's neighbours that are hidden too, over many masks."""
    rng = np.random.default_rng(0)
    masks = np.stack([region_mask(shape, grid, 4, 0.4, rng) for _ in range(200)]).reshape(-1, grid, grid)
    pairs = [(masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])]
    both = sum((a & b).sum() for a, b in pairs)
    one = sum((a | b).sum() for a, b in pairs)
    return float(both / one)


@pytest.mark.parametrize("grid", [4, 8, 14])
def test_blocks_are_blocky(grid):
    # h of n cells drawn without order: both of a pair hidden h(h-1) / n(n-1), at least one of them 2h/n less that
    n, h = grid * grid, num_masked(grid * grid, 0.4)
    both = h * (h - 1) / (n * (n - 1))
    random = neighbour_agreement("random", grid)
    assert random == pytest.approx(both / (2 * h / n - both), abs=0.02)
    assert neighbour_agreement("block", grid) > 1.8 * random


def test_blocks_reach_every_place():
    # rectangles inside the frame cover its corners less often than its middle, as BEiT's do
    where = region_mask("block", 8, 4000, 0.4, np.random.default_rng(0)).mean(0)
    assert where.min() > 0.1
    assert where.max() < 0.75


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("frames", "ratio", "hidden"), [(4, 0.4, 2), (4, 0.01, 1), (4, 0.99, 3), (2, 0.5, 1)])
def test_one_region_per_frame_hides_whole_frames(shape, frames, ratio, hidden):
    mask = region_mask(shape, 1, frames, ratio, np.random.default_rng(0))
    assert mask.shape == (frames, 1, 1)
    assert mask.sum() == hidden


def test_a_single_region_cannot_be_masked():
    with pytest.raises(ConfigError, match="raise input_px"):
        region_mask("block", 1, 1, 0.4, np.random.default_rng(0))


@settings(max_examples=100, deadline=None)
@given(num_words=st.integers(1, 40), ratio=st.floats(0, 0.99), seed=st.integers(0, 2**32))
def test_at_least_one_word_is_asked_for(num_words, ratio, seed):
    assert 1 <= word_mask(num_words, ratio, np.random.default_rng(seed)).sum() <= num_words


def test_words_are_hidden_as_in_bert():
    special, mask_id = {0, 1, 2, 3, 4}, 4
    rng = np.random.default_rng(0)
    words = rng.integers(5, 1000, 200_000)
    words[::10] = 2
    inputs, targets = WordMasker(special, mask_id, 1000, 0.15)(words, rng)
    asked = targets != IGNORE
    assert not asked[::10].any()
    assert np.array_equal(inputs[~asked], words[~asked])
    assert asked.sum() / 180_000 == pytest.approx(0.15, abs=0.005)
    assert np.array_equal(targets[asked], words[asked])
    masked, kept = inputs[asked] == mask_id, inputs[asked] == words[asked]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert not np.isin(inputs[asked][~masked], list(special)).any()


def test_a_caption_of_special_words_only_stays_as_it_is():
    inputs, targets = WordMasker({0, 2, 3}, 4, 10, 0.15)(np.array([2, 3, 0]), np.random.default_rng(0))
    assert inputs.tolist() == [2, 3, 0]
    assert (targets == IGNORE).all()
