"""Sampling moments, by numbers worked by hand."""

from hypothesis import given
from hypothesis import strategies as st

from evilm.video.sample import clip_rng, shown_at, span_times


def test_centres_of_equal_spans() -> None:
    assert span_times(0, 80, 4) == [10, 30, 50, 70]
    assert span_times(100, 180, 4) == [110, 130, 150, 170]
    assert span_times(0, 10, 1) == [5]


def test_centres_are_exact_for_ticks_beyond_floats() -> None:
    start = 2**60 + 1
    assert span_times(start, start + 80, 4) == [start + 10, start + 30, start + 50, start + 70]


def test_the_frame_on_screen() -> None:
    pts = [0, 10, 20, 500]
    assert shown_at(pts, [0, 9, 10, 19, 499, 500, 900]) == [0, 0, 1, 1, 2, 3, 3]
    assert shown_at([5], [0]) == [0]


def test_random_times_depend_on_seed_and_clip_alone() -> None:
    one = span_times(0, 10_000, 8, clip_rng(0, "a"))
    assert one == span_times(0, 10_000, 8, clip_rng(0, "a"))
    assert one != span_times(0, 10_000, 8, clip_rng(0, "b"))
    assert one != span_times(0, 10_000, 8, clip_rng(1, "a"))


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**40), st.integers(1, 64), st.integers(0, 3))
def test_one_time_from_each_span(start: int, length: int, num_frames: int, seed: int) -> None:
    for rng in (None, clip_rng(seed, "x")):
        times = span_times(start, start + length, num_frames, rng)
        assert times == sorted(times)
        for k, time in enumerate(times):
            assert start + length * k // num_frames <= time <= start + length * (k + 1) // num_frames
            assert time < start + length
