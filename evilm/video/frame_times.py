"""Choose the times of a clip's frames: one from each of T equal spans of its shown time.

Times are whole ticks of the stream, so nothing is rounded.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from evilm.errors import DecodeError
from evilm.video.reasons import RejectReason

_LONGEST_S = 365 * 24 * 3600


Time = int | Fraction
"""A time in ticks."""


def span_times(start: Time, end: Time, num_frames: int, rng: np.random.Generator | None = None) -> list[int]:
    """Choose a time from each of `num_frames` equal spans of [start, end): the centre, or with `rng` a random one.

    Times are rounded down to ticks, which is exact, since nothing changes on screen between two ticks.
    """
    drawn = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    # Integers in 2**20ths of a span: floats are not exact for long clips with fine ticks.
    steps = [int(place * 2**20) for place in drawn]
    places = [Fraction(k * 2**20 + step, num_frames * 2**20) for k, step in enumerate(steps)]
    return [math.floor(start + (end - start) * place) for place in places]


def shown_at(pts: Sequence[int], times: Sequence[Time]) -> list[int]:
    """Find the index of the frame on screen at each time, the last one that starts by then. `pts` ascends."""
    return [max(0, bisect_right(pts, time) - 1) for time in times]


def check_span(start_s: float | None, end_s: float | None) -> None:
    """Reject a span that can't contain a part of any video.

    Raises:
        DecodeError: bad_span.
    """
    start, end = start_s or 0.0, math.inf if end_s is None else end_s
    # NaN compares as false; a year is longer than any video and does not overflow.
    if not (0 <= start < end and start < _LONGEST_S and start + 0.000_001 <= end):
        raise DecodeError(RejectReason.BAD_SPAN, f"from {start_s} s to {end_s} s")


def span_ticks(
    first: int, last: int, time_base: Fraction, start_s: float | None, end_s: float | None
) -> tuple[Time, Time]:
    """Convert a checked span to ticks of a video.

    Args:
        first: start of the video's first frame, in ticks.
        last: end of its last frame.
        start_s: seconds from the first frame; None for 0.
        end_s: seconds from the first frame; None, or a time after the end, for the end.

    Returns:
        Start and end; start < end <= last.

    Raises:
        DecodeError: bad_span, the video ends before the span begins.
    """
    start = first + _fraction(start_s or 0.0) / time_base
    end = Fraction(last)
    if end_s is not None and math.isfinite(end_s):
        end = min(end, first + _fraction(end_s) / time_base)
    if start >= end:
        raise DecodeError(
            RejectReason.BAD_SPAN,
            f"begins at {start_s:g} s, the video ends at {float((last - first) * time_base):.2f} s",
        )
    return start, end


def _fraction(seconds: float) -> Fraction:
    """Convert the decimal seconds of a manifest, exact to the microsecond."""
    return Fraction(round(seconds * 1_000_000), 1_000_000)
