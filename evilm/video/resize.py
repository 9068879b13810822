"""From an upright frame of any size to the stored square: crop, squash or pad, and JPEG.

Pillow's bicubic filter for every decoder: antialiased, in integer arithmetic, so equal pixels in give equal bytes out
on every machine.
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
    """The part of the source that fills a part of the square."""

    crop_box: tuple[int, int, int, int]
    """left, top, width, height in the source's pixels."""
    inner: tuple[int, int, int, int]
    """left, top, width, height in the square; the rest stays black."""


def fit(width: int, height: int, frame_px: int, mode: Mode, pixel_aspect: Fraction = Fraction(1)) -> Fit:
    """Return how a `width` x `height` picture goes into the square.

    Args:
        pixel_aspect: width of a source pixel over its height; what is square on screen is square in the result.
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
    """A uint8 RGB frame (row, col, 3) as a square one of side `frame_px`."""
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
    """A uint8 RGB frame as JPEG, 4:2:0."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
