"""Draw and replay views of a stored clip: crops of its square frames, resized back to the square, optionally mirrored.

A view is stored as numbers, not pixels: encoding draws it once, training replays it. Pillow's bicubic filter uses
integer arithmetic on uint8, so a replay has exactly the pixels that were encoded. All frames of a clip share a view.
"""

import hashlib
import math
import re
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

import numpy as np
import PIL
from jaxtyping import Int64, UInt8
from PIL import Image

from evilm.config.training import CropConfig
from evilm.errors import ConfigError

_TRIES = 10


class View(NamedTuple):
    """A crop of the stored frame, in its pixels; `flip` mirrors left and right after cropping."""

    x: int
    y: int
    width: int
    height: int
    flip: bool


def whole(frame_px: int) -> View:
    """Return the view of the whole stored frame."""
    return View(0, 0, frame_px, frame_px, False)


def draw_view(frame_px: int, crop: CropConfig, caption: str, rng: np.random.Generator) -> View:
    """Draw a random resized crop, mirrored with probability `crop.flip_ratio` if the caption allows it.

    The area is uniform in [min_scale, 1] of the frame, the logarithm of width over height uniform within +-max_ratio.
    The box does not depend on the caption.
    """
    box = _draw_box(frame_px, crop, rng)
    flip = bool(rng.random() < crop.flip_ratio)
    return View(*box, flip and not names_side(caption, crop.flip_words))


def _draw_box(frame_px: int, crop: CropConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    limit = math.log(crop.max_ratio)
    for _ in range(_TRIES):
        area = frame_px**2 * rng.uniform(crop.min_scale, 1)
        ratio = math.exp(rng.uniform(-limit, limit))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= frame_px and 0 < height <= frame_px:
            x, y = rng.integers(0, frame_px - width + 1), rng.integers(0, frame_px - height + 1)
            return int(x), int(y), width, height
    return 0, 0, frame_px, frame_px


def names_side(caption: str, words: Collection[str]) -> bool:
    """Check if a caption contains one of `words` (lower case) as a whole word, which mirroring would make false."""
    return not set(re.findall(r"\w+", caption.lower())).isdisjoint(words)


def replay(
    frames: UInt8[np.ndarray, "frame row col 3"], view: View, out: UInt8[np.ndarray, "frame row col 3"] | None = None
) -> UInt8[np.ndarray, "frame row col 3"]:
    """Compute the pixels of a view: crop, bicubic resize back to the square, flip. Bytes are equal on every machine.

    Args:
        frames: the stored square frames.
        out: array for the result; may be `frames`.

    Raises:
        ConfigError: the view extends beyond the frames.
    """
    side = frames.shape[1]
    if view.x + view.width > side or view.y + view.height > side:
        raise ConfigError(f"{view} exceeds a frame of {side} x {side} pixels; use the frames it was drawn for")
    if out is None:
        out = np.empty_like(frames)
    for frame, shown in zip(frames, out, strict=True):
        part = frame[view.y : view.y + view.height, view.x : view.x + view.width]
        if part.shape != frame.shape:
            part = np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC))
        elif view.flip and out is frames:
            part = part.copy()  # mirrored onto itself
        shown[:] = part[:, ::-1] if view.flip else part
    return out


@cache
def resampler() -> str:
    """Return a name and a digest of what `replay` does to a test picture; another digest means other pixels."""
    rows, cols = np.mgrid[0:48, 0:48]
    picture = ((rows[..., None] * [7, 13, 29] + cols[..., None] * [31, 5, 11]) ** 2 % 251).astype(np.uint8)
    shown = replay(picture[None], View(5, 3, 31, 40, True))
    return f"pillow-bicubic-{hashlib.sha256(shown.tobytes()).hexdigest()[:8]}"


def resampler_version() -> str:
    """Return the library behind `resampler`, for messages."""
    return f"Pillow {PIL.__version__}"


def nearest_cells(view: View, frame_px: int, grid: int) -> Int64[np.ndarray, " region"]:
    """Map each cell of the view's grid to the cell of the whole frame that holds its centre, row by row.

    The whole frame's codes at these indices approximate the view's codes: positions are rounded to cells, and a code
    was chosen in another context. `evilm` trains on exact codes unless configured otherwise.
    """
    centres = (np.arange(grid) + 0.5) / grid
    rows = ((view.y + centres * view.height) * grid / frame_px).astype(np.int64)
    cols = ((view.x + centres * view.width) * grid / frame_px).astype(np.int64)
    return (rows[:, None] * grid + (cols[::-1] if view.flip else cols)).reshape(-1)


def pick_frames(
    num_stored: int, num_frames: int, rng: np.random.Generator | None = None
) -> Int64[np.ndarray, " frame"]:
    """Pick one stored frame from each of `num_frames` equal groups in time order.

    With `rng` it is a random one of each group, else the middle one, or the earlier of two.
    """
    assert num_stored % num_frames == 0, "checked when frames and model were paired"
    group = num_stored // num_frames
    within = np.full(num_frames, (group - 1) // 2) if rng is None else rng.integers(0, group, num_frames)
    return np.arange(num_frames) * group + within
