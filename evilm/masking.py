"""Which regions and which words are hidden from the model. True = hidden. Numpy only.

All randomness comes from the generator passed in, so a clip's masks depend on nothing but its seed.
"""

import math
from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evilm.errors import ConfigError

Shape = Literal["block", "tube", "random"]
IGNORE = -1
"""Target of a word that is not asked for."""

_MIN_AREA_RATIO = 16 / 196
"""Smallest rectangle over the grid: BEiT's 16 of 14 x 14 cells, kept in proportion on smaller grids."""
_LOG_ASPECT = math.log(0.3)  # of the flattest rectangle, height over width
_TRIES = 10


def region_mask(shape: Shape, grid: int, num_frames: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A bool mask (frame, row, col) with the same number of hidden regions in every frame.

    That number is round(ratio x grid^2), at least 1 and never all. `block` draws rectangles per frame, `tube` one
    frame's rectangles for all frames, `random` single regions per frame. A grid of one region per frame hides whole
    frames instead, at least one and never all. Paper: Sec. 4.1 (block-wise, 40 %).

    Raises:
        ConfigError: an unknown shape, or a single region in all, of which a part can't be hidden.
    """
    if shape not in ("block", "tube", "random"):
        raise ConfigError(f"mask_shape = {shape!r}: use block (the paper), tube or random")
    if grid * grid * num_frames < 2:
        raise ConfigError("clips of one frame with one region have nothing left to see when masked; raise input_px")
    if grid == 1:
        return _scattered(num_frames, 1, ratio, rng).reshape(num_frames, 1, 1)
    if shape == "random":
        return np.stack([_scattered(grid, grid, ratio, rng) for _ in range(num_frames)])
    if shape == "tube":
        return np.repeat(_blocks(grid, ratio, rng)[None], num_frames, axis=0)
    return np.stack([_blocks(grid, ratio, rng) for _ in range(num_frames)])


def num_masked(num_regions: int, ratio: float) -> int:
    """How many of a frame's regions are hidden: the ratio rounded half up, at least 1, never all."""
    return min(max(math.floor(ratio * num_regions + 0.5), 1), num_regions - 1)


def _scattered(rows: int, cols: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Cells hidden one by one, without order."""
    mask = np.zeros(rows * cols, dtype=bool)
    mask[rng.choice(mask.size, num_masked(mask.size, ratio), replace=False)] = True
    return mask.reshape(rows, cols)


def _blocks(grid: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Rectangles as in BEiT, then single cells up to the exact count.

    The last few cells prefer to touch what is hidden already, so that small grids stay blocky too.
    """
    target = num_masked(grid * grid, ratio)
    smallest = max(1, round(_MIN_AREA_RATIO * grid * grid))
    mask = np.zeros((grid, grid), dtype=bool)
    hidden = 0
    while hidden < target:
        added = _add_rectangle(mask, target - hidden, smallest, rng)
        if not added:
            break
        hidden += added
    while hidden < target:
        border = _touching(mask) & ~mask
        cells = np.flatnonzero(border if border.any() else ~mask)
        mask.flat[rng.choice(cells)] = True
        hidden += 1
    return mask


def _add_rectangle(mask: NDArray[np.bool_], remaining: int, smallest: int, rng: np.random.Generator) -> int:
    """Hide one more rectangle in place; how many cells it added, 0 if ten tries found no fit."""
    grid = mask.shape[0]
    for _ in range(_TRIES):
        area = rng.uniform(min(smallest, remaining), remaining)
        aspect = math.exp(rng.uniform(_LOG_ASPECT, -_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < grid and 0 < width < grid):
            continue
        top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
        window = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(window))
        if 1 <= added <= remaining:
            window[:] = True
            return added
    return 0


def _touching(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells with a hidden neighbour above, below, left or right."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def word_mask(num_words: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of a caption's `num_words` words (special ones not counted) to ask for: each with `ratio`, at least one.

    A caption without words gives an empty mask. Paper: Sec. 4.1 (15 %).
    """
    mask = rng.random(num_words) < ratio
    if num_words and not mask.any():
        mask[rng.integers(num_words)] = True
    return mask


class WordMasker:
    """Hides words as BERT does: 80 % become [MASK], 10 % a random word, 10 % stay."""

    def __init__(self, special: Collection[int], mask_id: int, vocab_size: int, ratio: float) -> None:
        """What all captions share.

        Args:
            special: ids that are neither asked for nor drawn as a random word ([PAD], [CLS], [SEP], [MASK], ...).
            mask_id: id of [MASK].
            vocab_size: random words are drawn below it.
            ratio: share of a caption's words that is asked for.
        """
        self._special = np.fromiter(special, dtype=np.int64)
        self._words = np.setdiff1d(np.arange(vocab_size), self._special)
        self._mask_id, self._ratio = mask_id, ratio

    def __call__(
        self, word_ids: NDArray[np.integer], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the model reads of a caption, special words included, and the targets, IGNORE where nothing is asked."""
        truth = np.asarray(word_ids, dtype=np.int64)
        maskable = np.flatnonzero((truth[:, None] != self._special).all(axis=1))
        chosen = maskable[word_mask(maskable.size, self._ratio, rng)]
        targets = np.full_like(truth, IGNORE)
        targets[chosen] = truth[chosen]
        inputs = truth.copy()
        fate = rng.random(chosen.size)
        inputs[chosen[fate < 0.8]] = self._mask_id
        swapped = chosen[fate >= 0.9]
        if self._words.size:
            inputs[swapped] = rng.choice(self._words, swapped.size)
        return inputs, targets
