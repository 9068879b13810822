"""Which moments of a clip become frames: one from each of T equal spans of the time that is shown.

Time is counted in whole ticks of the stream, so that nothing is rounded.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


def clip_rng(seed: int, clip_id: str) -> np.random.Generator:
    """The generator of one clip; the same on every machine and in any order of clips."""
    digest = hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def span_times(start: int, end: int, num_frames: int, rng: np.random.Generator | None = None) -> list[int]:
    """One time from each of `num_frames` equal spans of [start, end): its centre, or a random one given `rng`."""
    places = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    # In 2**20ths of a span, as integers: long clips with fine ticks exceed what a float holds exactly.
    steps = [int(place * 2**20) for place in places]
    return [start + (end - start) * (k * 2**20 + step) // (num_frames * 2**20) for k, step in enumerate(steps)]


def shown_at(pts: Sequence[int], times: Sequence[int]) -> list[int]:
    """Index of the frame on screen at each time: the last one that starts at or before it. `pts` ascends."""
    return [max(0, bisect_right(pts, time) - 1) for time in times]
