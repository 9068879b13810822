"""Convert an upright frame of any size to the stored square JPEG: crop, squash or pad.

Pillow's bicubic filter is used for every decoder. It is antialiased and uses integer arithmetic, so equal input gives
equal bytes on every machine.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

Mode = Literal["crop", "squash", "pad"]


@dataclass(frozen=True)
class Fit:
    """The part of the source that is shown, and the part of the square that it fills."""

    crop_box: tuple[int, int, int, int]
    """left, top, width, height in the source's pixels."""
    inner: tuple[int, int, int, int]
    """left, top, width, height in the square; the rest stays black."""


def fit(width: int, height: int, frame_px: int, mode: Mode, pixel_aspect: Fraction = Fraction(1)) -> Fit:
    """Compute how a `width` x `height` picture fits into the square.

    `pixel_aspect` is the width of a source pixel over its height; the result has the proportions seen on screen.
    """
    whole, square = (0, 0, width, height), (0, 0, frame_px, frame_px)
    if mode == "squash":
        return Fit(whole, square)
    shown_width = width * pixel_aspect
    if mode == "crop":
        side = min(shown_width, Fraction(height))
        crop_width, crop_height = round(side / pixel_aspect), round(side)
        return Fit(((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height), square)
    scale = frame_px / max(shown_width, Fraction(height))
    inner_width, inner_height = max(1, round(shown_width * scale)), max(1, round(height * scale))
    return Fit(whole, ((frame_px - inner_width) // 2, (frame_px - inner_height) // 2, inner_width, inner_height))


def resize(frame: np.ndarray, how: Fit, frame_px: int) -> np.ndarray:
    """Resize a uint8 RGB frame (row, col, 3) to a square one of side `frame_px`."""
    left, top, width, height = how.crop_box
    x, y, inner_width, inner_height = how.inner
    source = Image.fromarray(frame[top : top + height, left : left + width])
    small = np.asarray(source.resize((inner_width, inner_height), Image.Resampling.BICUBIC))
    if small.shape[:2] == (frame_px, frame_px):
        return small
    square = np.zeros((frame_px, frame_px, 3), np.uint8)
    square[y : y + inner_height, x : x + inner_width] = small
    return square


def to_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode a uint8 RGB frame as JPEG, 4:2:0."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
