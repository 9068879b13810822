"""The JPEGs of stored frames: the one decoder of training and of encoding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg

_EXACT: dict[str, Any] = {"colorspace": "RGB", "fastdct": False, "fastupsample": False}


def decode_frames(jpegs: Sequence[bytes | memoryview], out: np.ndarray | None = None) -> np.ndarray:
    """Decode JPEGs of one size to uint8 RGB, (frame, row, col, 3): the only JPEG decoder of training and coding.

    `out`, if given, is contiguous; the pixels go there instead of into a new array.
    """
    if out is None:
        side = jpeg_side(jpegs[0])
        out = np.empty((len(jpegs), side, side, 3), np.uint8)
    for jpeg, frame in zip(jpegs, out, strict=True):
        pixels = simplejpeg.decode_jpeg(jpeg, buffer=frame, **_EXACT)
        assert pixels.shape == frame.shape, "the frames of a clip are of one size"
    return out


def jpeg_side(jpeg: bytes | memoryview) -> int:
    """Return the side of a stored frame, in pixels."""
    return int(simplejpeg.decode_jpeg_header(jpeg)[0])
