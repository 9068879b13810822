"""Memory for batches of pixels that is used again: fresh pages cost as much as a fifth of decoding into them."""

import math
import sys
from threading import Lock

import numpy as np


class PixelBuffers:
    """Gives out uint8 arrays, and the memory of one again when nothing refers to it any more: no view, no tensor."""

    def __init__(self, most: int) -> None:
        """Reuse at most `most` arrays at a time; others are allocated and not kept."""
        self._most, self._lock = most, Lock()
        self._blocks: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array with arbitrary content."""
        size = math.prod(shape)
        with self._lock:
            block = self._free(size)
            if block is None:
                block = np.empty(size, np.uint8)
                if len(self._blocks) < self._most:
                    self._blocks.append(block)
            return block[:size].reshape(shape)

    def _free(self, size: int) -> np.ndarray | None:
        """Return a block that only this list refers to. Views of views refer to the block itself, so all count."""
        for place in range(len(self._blocks)):
            # One reference of the list, one of the call; a view or a tensor would be a third.
            if sys.getrefcount(self._blocks[place]) <= 2:
                if self._blocks[place].size >= size:
                    return self._blocks[place]
                del self._blocks[place]  # too small for the batches of now
                return None
        return None
