"""Choose the regions and words to mask. True = masked. Numpy only.

Draws are counter-based: number n of a clip is a hash of the clip's key and n. So the masks of many clips are drawn
together, and those of one depend on nothing but its key.
"""

import math
from collections.abc import Collection
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, UInt64

from evilm.errors import ConfigError

Shape = Literal["block", "tube", "random"]
IGNORE = -1
"""Target of a word that is not asked for."""

_MIN_AREA_RATIO = 16 / 196
"""Smallest rectangle over the grid: BEiT's 16 of 14 x 14 cells, kept in proportion on smaller grids."""
_LOG_ASPECT = math.log(1 / 0.3)  # of the steepest rectangle, height over width
_TRIES = 10
_CELLS_FROM = 1 << 32  # counters of the single cells of `_blocks`, far beyond those of its rectangles
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_bits(keys: UInt64[np.ndarray, " key"], counters: Int64[np.ndarray, "*d"]) -> UInt64[np.ndarray, "key *d"]:
    """Return random bits for each key and counter: SplitMix64's output number `counter` from the state `key`."""
    bits = keys.reshape(-1, *(1,) * counters.ndim) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    for shift, factor in zip((30, 27), _MIX, strict=True):
        bits = (bits ^ (bits >> np.uint64(shift))) * factor
    return bits ^ (bits >> np.uint64(31))


def uniform(keys: UInt64[np.ndarray, " key"], counters: Int64[np.ndarray, "*d"]) -> Float64[np.ndarray, "key *d"]:
    """Return a number in [0, 1) for each key and counter."""
    return (hash_bits(keys, counters) >> np.uint64(11)) * 2.0**-53


def region_masks(
    shape: Shape, grid: int, num_frames: int, ratio: float, keys: UInt64[np.ndarray, " clip"]
) -> Bool[np.ndarray, "clip frame row col"]:
    """Draw a mask for each clip, with the same number of masked regions in every frame.

    That number is round(ratio x grid^2), at least 1 and never all. `block` draws rectangles per frame, `tube` one
    frame's rectangles for all frames, `random` single regions per frame. A grid of one region per frame hides whole
    frames instead, at least one and never all. Paper: Sec. 4.1 (block-wise, 40 %).

    Raises:
        ConfigError: an unknown shape, or a single region in all, of which a part can't be masked.
    """
    if shape not in ("block", "tube", "random"):
        raise ConfigError(f"mask_shape = {shape!r}: use block (the paper), tube or random")
    if grid * grid * num_frames < 2:
        raise ConfigError("clips of one frame with one region have nothing left to see when masked; raise input_px")
    if grid == 1:
        return _scattered(keys, num_frames, ratio).reshape(-1, num_frames, 1, 1)
    drawn = 1 if shape == "tube" else num_frames
    frame_keys = hash_bits(keys, np.arange(drawn)).reshape(-1)
    masks = _scattered(frame_keys, grid * grid, ratio) if shape == "random" else _blocks(frame_keys, grid, ratio)
    return np.repeat(masks.reshape(-1, drawn, grid, grid), num_frames // drawn, axis=1)


def num_masked(num_regions: int, ratio: float) -> int:
    """Return how many of a frame's regions are masked: the ratio rounded half up, at least 1, never all."""
    return min(max(math.floor(ratio * num_regions + 0.5), 1), num_regions - 1)


def _scattered(keys: UInt64[np.ndarray, " mask"], cells: int, ratio: float) -> Bool[np.ndarray, "mask cell"]:
    """Hide cells one by one, wherever they are: those with the smallest draws."""
    mask = np.zeros((len(keys), cells), dtype=bool)
    count = num_masked(cells, ratio)
    smallest = np.argpartition(uniform(keys, np.arange(cells)), count - 1, axis=1)[:, :count]
    np.put_along_axis(mask, smallest, True, axis=1)
    return mask


def _blocks(keys: UInt64[np.ndarray, " mask"], grid: int, ratio: float) -> Bool[np.ndarray, "mask row col"]:
    """Hide rectangles as in BEiT, then single cells up to the exact count; ten tries without a fit end the former.

    The last few cells prefer to touch what is masked already, so that small grids stay blocky too.
    """
    target = num_masked(grid * grid, ratio)
    mask = np.zeros((len(keys), grid, grid), dtype=bool)
    misses = np.zeros(len(keys), dtype=np.int64)
    some, attempt = np.arange(len(keys)), 0
    while some.size:
        added = _add_rectangles(mask, some, target, uniform(keys[some], 4 * attempt + np.arange(4)))
        misses[some] = np.where(added, 0, misses[some] + 1)
        some = some[(misses[some] < _TRIES) & (mask[some].sum((1, 2)) < target)]
        attempt += 1
    cells = _CELLS_FROM + np.arange(grid * grid)
    while (some := np.flatnonzero(mask.sum((1, 2)) < target)).size:
        border = (_touching(mask[some]) & ~mask[some]).reshape(len(some), -1)
        free = np.where(border.any(1, keepdims=True), border, ~mask[some].reshape(len(some), -1))
        chosen = np.where(free, uniform(keys[some], cells), 1).argmin(1)
        mask.reshape(len(keys), -1)[some, chosen] = True
        cells = cells + grid * grid
    return mask


def _add_rectangles(
    mask: Bool[np.ndarray, "mask row col"],
    some: Int64[np.ndarray, " some"],
    target: int,
    draws: Float64[np.ndarray, "some 4"],
) -> Bool[np.ndarray, " some"]:
    """Hide one more rectangle in each of some masks, in place; returns where the one that was drawn fits."""
    grid, smallest = mask.shape[1], max(1, round(_MIN_AREA_RATIO * mask[0].size))
    remaining = target - mask[some].sum((1, 2))
    least = np.minimum(smallest, remaining)
    area, aspect = least + draws[:, 0] * (remaining - least), np.exp(_LOG_ASPECT * (2 * draws[:, 1] - 1))
    size = np.rint(np.sqrt(np.stack([area * aspect, area / aspect])))  # height and width
    first = np.floor(draws[:, 2:].T * (grid - size + 1))  # top and left
    cell = np.arange(grid)
    rows, cols = (cell >= first[..., None]) & (cell < (first + size)[..., None])
    window = rows[:, :, None] & cols[:, None, :]
    added = (window & ~mask[some]).sum((1, 2))
    fits = ((size > 0) & (size < grid)).all(0) & (added >= 1) & (added <= remaining)
    mask[some[fits]] |= window[fits]
    return fits


def _touching(mask: Bool[np.ndarray, "mask row col"]) -> Bool[np.ndarray, "mask row col"]:
    """Find cells with a masked neighbour above, below, left or right."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]


class WordMasker:
    """Hides words as BERT does: each with `ratio`, at least one; 80 % become [MASK], 10 % a random word, 10 % stay.

    A caption without words has none to hide. Paper: Sec. 4.1 (15 %).
    """

    def __init__(self, special: Collection[int], mask_id: int, vocab_size: int, ratio: float) -> None:
        """Take what all captions share.

        Args:
            special: ids that are neither asked for nor drawn as a random word ([PAD], [CLS], [SEP], [MASK], ...).
            vocab_size: random words are drawn below it.
            ratio: share of a caption's words that is asked for.
        """
        self._is_word = np.ones(vocab_size, dtype=bool)
        self._is_word[list(special)] = False
        self._words = np.flatnonzero(self._is_word)
        self._mask_id, self._ratio = mask_id, ratio

    def __call__(
        self, input_ids: Int[np.ndarray, "caption word"], keys: UInt64[np.ndarray, " caption"]
    ) -> tuple[Int64[np.ndarray, "caption word"], Int64[np.ndarray, "caption word"]]:
        """Return what the model reads, special words included, and the targets, IGNORE where nothing is asked."""
        truth = np.asarray(input_ids, dtype=np.int64)
        asks, fate, swap = uniform(keys, np.arange(3)[:, None] + 3 * np.arange(truth.shape[1])).transpose(1, 0, 2)
        is_word = self._is_word[truth]
        asked = is_word & (asks < self._ratio)
        without = np.flatnonzero(is_word.any(1) & ~asked.any(1))
        asked[without, np.where(is_word, asks, 1)[without].argmin(1)] = True
        inputs = np.where(asked & (fate < 0.8), self._mask_id, truth)
        if self._words.size:
            drawn = self._words[(swap * self._words.size).astype(np.int64)]
            inputs = np.where(asked & (fate >= 0.9), drawn, inputs)
        return inputs, np.where(asked, truth, IGNORE)
