"""Sampling moments, by numbers worked by hand."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.errors import DecodeError
from evilm.seeds import sampling_rng
from evilm.video.frame_times import check_span, shown_at, span_ticks, span_times


def test_span_times_are_centres_of_equal_spans() -> None:
    assert span_times(0, 80, 4) == [10, 30, 50, 70]
    assert span_times(100, 180, 4) == [110, 130, 150, 170]
    assert span_times(0, 10, 1) == [5]


def test_span_times_are_exact_beyond_float_precision() -> None:
    start = 2**60 + 1
    assert span_times(start, start + 80, 4) == [start + 10, start + 30, start + 50, start + 70]


def test_shown_at_returns_the_frame_on_screen() -> None:
    pts = [0, 10, 20, 500]
    assert shown_at(pts, [0, 9, 10, 19, 499, 500, 900]) == [0, 0, 1, 1, 2, 3, 3]
    assert shown_at([5], [0]) == [0]


def test_random_times_depend_on_seed_and_clip_only() -> None:
    one = span_times(0, 10_000, 8, sampling_rng(0, "a"))
    assert one == span_times(0, 10_000, 8, sampling_rng(0, "a"))
    assert one != span_times(0, 10_000, 8, sampling_rng(0, "b"))
    assert one != span_times(0, 10_000, 8, sampling_rng(1, "a"))


def test_span_ticks_stays_within_the_video() -> None:
    tick = Fraction(1, 24)
    assert span_ticks(10, 106, tick, None, None) == (10, 106)
    assert span_ticks(10, 106, tick, 1.0, 2.5) == (34, 70)
    assert span_ticks(10, 106, tick, 1.0, 99.0) == (34, 106)
    assert span_ticks(10, 106, tick, 0.7, None) == (10 + Fraction(84, 5), 106)  # not rounded to a tick
    assert span_times(*span_ticks(0, 240, tick, 0.7, 1.1), 2) == [19, 24]  # at 16.8 + 2.4 and 16.8 + 7.2
    with pytest.raises(DecodeError, match=r"begins at 4 s, the video ends at 4\.00 s"):
        span_ticks(10, 106, tick, 4.0, 5.0)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (math.nan, None), (0.0, math.nan), (math.inf, None)]
)
def test_check_span_rejects_invalid_spans(start_s: float, end_s: float | None) -> None:
    with pytest.raises(DecodeError, match="bad_span"):
        check_span(start_s, end_s)


@settings(deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(1, 2**40), st.integers(1, 64), st.integers(0, 3))
def test_each_span_yields_one_time(start: int, length: int, num_frames: int, seed: int) -> None:
    for rng in (None, sampling_rng(seed, "x")):
        times = span_times(start, start + length, num_frames, rng)
        assert times == sorted(times)
        for k, time in enumerate(times):
            assert start + length * k // num_frames <= time <= start + length * (k + 1) // num_frames
            assert time < start + length
