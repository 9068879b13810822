"""Times and spans as manifests write them."""

import contextlib
import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.manifests.spans import parse_seconds, parse_span, show_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (12, 12.0),
        (1.5, 1.5),
        ("1.5", 1.5),
        (" 7. ", 7.0),
        (".5", 0.5),
        ("1e2", 100.0),
        ("0:00:11.180", 11.18),
        ("00:07:33.689", 453.689),
        ("01:02:03,5", 3723.5),
        ("90:30", 5430.0),
        ("PT00H00M18S", 18.0),
        ("PT1M2.5S", 62.5),
        ("pt1h", 3600.0),
        (datetime.timedelta(minutes=1), 60.0),
        (datetime.time(0, 1, 2, 500_000), 62.5),
    ],
)
def test_parse_seconds_accepts_common_formats(value: Any, seconds: float) -> None:
    assert parse_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        None,
        "x",
        "-1",
        -1,
        "1:60",
        "0:60:00",
        "1:2:3:4",
        "PT",
        "P1D",
        "inf",
        "nan",
        float("inf"),
        "1e999",
        "\u0661",
        [],
    ],
)
def test_parse_seconds_rejects_what_is_not_a_time(value: Any) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_seconds(value)


@settings(deadline=None)
@given(st.integers(0, 9999 * 3600 * 1000))
def test_all_formats_of_a_time_agree(milliseconds: int) -> None:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, hours = seconds // 60, seconds // 3600
    ways = [
        f"{milliseconds / 1000}",
        f"{hours:02}:{minutes % 60:02}:{seconds % 60:02}.{rest:03}",
        f"PT{hours}H{minutes % 60}M{seconds % 60}.{rest:03}S",
        show_seconds(milliseconds / 1000),
    ]
    assert {round(parse_seconds(way) * 1000) for way in ways} == {milliseconds}


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_a_time_or_rejected(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_seconds(text) >= 0


def test_parse_span_needs_an_end_after_its_start() -> None:
    assert parse_span("1", "0:02") == (1, 2)
    assert parse_span("", 2) == (None, 2)
    assert parse_span(1, None) == (1, None)
    for start, end in (("", ""), (2, 2), (3, 2), ("", 0), ("x", 2), (1, "x")):
        with pytest.raises(ValueError):
            parse_span(start, end)
