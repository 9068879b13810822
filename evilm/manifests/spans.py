"""Stretches of longer videos: where a clip begins and ends, as manifests write it."""

import datetime
import math
import re
from typing import Any

from evilm.config.secrets import public_text
from evilm.manifests.records import as_text

_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d+)?)", re.ASCII)
_ISO = re.compile(r"PT(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+", re.ASCII)

Span = tuple[float | None, float | None]
"""Start and end in seconds; None from the start, or to the end."""


def parse_seconds(value: Any) -> float:
    """Parse a time in seconds: a number, [HH:]MM:SS[.mmm], or PT..H..M..S.

    Raises:
        ValueError: anything else, also what is negative or not finite.
    """
    if isinstance(value, datetime.time):
        value = value.isoformat()
    text = as_text(value).strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif clock := _CLOCK.fullmatch(text):
        seconds = _sum(clock)
    elif (iso := _ISO.fullmatch(text)) and any(iso.groups()):
        seconds = _sum(iso)
    else:
        raise _not_a_time(text)
    if not math.isfinite(seconds):
        raise _not_a_time(text)
    return seconds


def parse_span(start: Any, end: Any) -> Span:
    """Parse a start and an end, of which one may be empty, to seconds.

    Raises:
        ValueError: a time that can't be read, or nothing between the two.
    """
    begin, stop = (None if as_text(value).strip() == "" else parse_seconds(value) for value in (start, end))
    if begin is None and stop is None:
        raise ValueError("neither start nor end")
    if stop is not None and stop <= (begin or 0):
        raise ValueError(f"the end {show_seconds(stop)} s is not after the start {show_seconds(begin or 0)} s")
    return begin, stop


def show_seconds(seconds: float) -> str:
    """Format seconds to the millisecond, without trailing zeros; the same number always gives the same text."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _not_a_time(text: str) -> ValueError:
    return ValueError(f"not a time: {public_text(text)[:40]!r} (seconds, [HH:]MM:SS[.mmm] or PT..H..M..S)")


def _sum(match: re.Match[str]) -> float:
    hours, minutes, seconds = (float(part.replace(",", ".")) if part else 0.0 for part in match.groups())
    if match.re is _CLOCK and (seconds >= 60 or (match[1] and minutes >= 60)):
        raise _not_a_time(match[0])
    return hours * 3600 + minutes * 60 + seconds
