"""Masks by their properties: count, shape, seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.dataloader.masking import IGNORE, WordMasker, num_masked, region_masks, uniform
from evilm.errors import ConfigError
from evilm.seeds import clip_keys

SHAPES = ["block", "tube", "random"]


def keys(count: int, seed: int = 0) -> np.ndarray:
    return clip_keys("test", seed, 0, [str(number) for number in range(count)])


def test_draws_are_uniform_and_independent_over_counters_and_keys():
    counters, many = uniform(keys(2000), np.arange(40)).T, uniform(keys(40), np.arange(2000))
    for draws in (counters, many):
        assert ((draws >= 0) & (draws < 1)).all()
        assert np.histogram(draws, 10, (0, 1))[0] / draws.size == pytest.approx(np.full(10, 0.1), abs=0.005)
        assert np.abs(np.corrcoef(draws) - np.eye(40)).max() < 0.1
    assert np.array_equal(uniform(keys(3), np.array([7])), uniform(keys(3), np.arange(8))[:, 7:])


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    grid=st.integers(2, 14),
    frames=st.integers(1, 6),
    ratio=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_every_frame_has_the_exact_number_masked(shape, grid, frames, ratio, seed):
    masks = region_masks(shape, grid, frames, ratio, keys(3, seed))
    assert masks.shape == (3, frames, grid, grid)
    assert masks.dtype == bool
    assert set(masks.sum((2, 3)).ravel().tolist()) == {num_masked(grid * grid, ratio)}
    assert 0 < masks[0, 0].sum() < grid * grid


def test_mask_ratio_of_the_paper_masks_26_of_64():
    # 40 % of 8 x 8 = 25.6, so 26 of 64
    assert region_masks("block", 8, 4, 0.4, keys(1)).sum() == 4 * 26


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", [1, 4, 8])
def test_mask_depends_on_its_key_only(shape, grid):
    many = region_masks(shape, grid, 4, 0.4, keys(20))
    assert np.array_equal(many[7:9], region_masks(shape, grid, 4, 0.4, keys(20)[7:9]))
    assert np.array_equal(many[::-1], region_masks(shape, grid, 4, 0.4, keys(20)[::-1]))
    assert not np.array_equal(many, region_masks(shape, grid, 4, 0.4, keys(20, seed=1)))
    assert len(np.unique(many.reshape(20, -1), axis=0)) > (3 if grid == 1 else 19)
    assert region_masks(shape, grid, 4, 0.4, keys(0)).shape == (0, 4, grid, grid)


def test_tube_is_equal_in_all_frames_and_block_is_not():
    tube = region_masks("tube", 8, 4, 0.4, keys(1))[0]
    assert (tube == tube[0]).all()
    block = region_masks("block", 8, 4, 0.4, keys(1))[0]
    assert not (block == block[0]).all()


def neighbour_agreement(shape: str, grid: int, ratio: float = 0.4) -> float:
    """Share of a masked cell's neighbours that are masked too, over many masks."""
    masks = region_masks(shape, grid, 4, ratio, keys(500)).reshape(-1, grid, grid)
    pairs = [(masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])]
    both = sum((a & b).sum() for a, b in pairs)
    one = sum((a | b).sum() for a, b in pairs)
    return float(both / one)


@pytest.mark.parametrize("grid", [4, 8, 14])
def test_block_masks_are_more_contiguous_than_random_ones(grid):
    # h of n cells drawn without order: both of a pair masked h(h-1) / n(n-1), at least one of them 2h/n less that
    n, h = grid * grid, num_masked(grid * grid, 0.4)
    both = h * (h - 1) / (n * (n - 1))
    random = neighbour_agreement("random", grid)
    assert random == pytest.approx(both / (2 * h / n - both), abs=0.02)
    assert neighbour_agreement("block", grid) > 1.8 * random


def test_block_masks_reach_every_region():
    # rectangles inside the frame cover its corners less often than its middle, as BEiT's do
    where = region_masks("block", 8, 4, 0.4, keys(1000)).mean((0, 1))
    assert where.min() > 0.1
    assert where.max() < 0.75


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("frames", "ratio", "masked"), [(4, 0.4, 2), (4, 0.01, 1), (4, 0.99, 3), (2, 0.5, 1)])
def test_one_region_per_frame_masks_whole_frames(shape, frames, ratio, masked):
    masks = region_masks(shape, 1, frames, ratio, keys(400))
    assert masks.shape == (400, frames, 1, 1)
    assert set(masks.sum((1, 2, 3)).tolist()) == {masked}
    assert masks.mean(0).ravel() == pytest.approx(np.full(frames, masked / frames), abs=0.1)


def test_single_region_cannot_be_masked():
    with pytest.raises(ConfigError, match="raise input_px"):
        region_masks("block", 1, 1, 0.4, keys(1))


SPECIAL, MASK_ID = {0, 1, 2, 3, 4}, 4


@settings(max_examples=100, deadline=None)
@given(num_words=st.integers(1, 40), ratio=st.floats(0, 0.99), seed=st.integers(0, 2**32))
def test_at_least_one_word_is_masked(num_words, ratio, seed):
    _, targets = WordMasker(SPECIAL, MASK_ID, 50, ratio)(np.full((3, num_words), 5), keys(3, seed))
    counts = (targets != IGNORE).sum(1)
    assert ((counts >= 1) & (counts <= num_words)).all()


def test_words_are_masked_swapped_or_kept_as_in_bert():
    words = np.random.default_rng(0).integers(5, 1000, (5000, 40))
    words[:, ::10] = 2
    inputs, targets = WordMasker(SPECIAL, MASK_ID, 1000, 0.15)(words, keys(5000))
    masked_positions = targets != IGNORE
    assert not masked_positions[:, ::10].any()
    assert np.array_equal(inputs[~masked_positions], words[~masked_positions])
    assert masked_positions.sum() / 180_000 == pytest.approx(0.15, abs=0.005)
    assert np.array_equal(targets[masked_positions], words[masked_positions])
    masked, kept = inputs[masked_positions] == MASK_ID, inputs[masked_positions] == words[masked_positions]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    swapped = inputs[masked_positions][~masked & ~kept]
    assert not np.isin(swapped, list(SPECIAL)).any()
    assert (swapped.min(), swapped.max()) == (5, 999)
    assert swapped.mean() == pytest.approx(502, abs=20)


def test_lone_masked_word_is_drawn_uniformly():
    # 5 words at 1 %: one is masked in nearly all captions, each as often
    _, targets = WordMasker(SPECIAL, MASK_ID, 50, 0.01)(np.full((4000, 5), 7), keys(4000))
    assert (targets != IGNORE).mean(0) == pytest.approx(np.full(5, 0.2), abs=0.03)
    assert (targets != IGNORE).sum(1).mean() < 1.1


def test_masked_words_depend_on_key_and_caption_not_on_the_batch():
    words = np.random.default_rng(0).integers(5, 1000, (30, 12))
    masker = WordMasker(SPECIAL, MASK_ID, 1000, 0.15)
    together = masker(words, keys(30))
    wider = masker(np.pad(words[4:6], ((0, 0), (0, 9))), keys(30)[4:6])  # beside a longer caption
    for many, few in zip(together, wider, strict=True):
        assert np.array_equal(many[4:6], few[:, :12])


def test_caption_of_special_tokens_only_is_unchanged():
    inputs, targets = WordMasker({0, 2, 3}, 4, 10, 0.15)(np.array([[2, 3, 0]]), keys(1))
    assert inputs.tolist() == [[2, 3, 0]]
    assert (targets == IGNORE).all()
