"""The figure of an inspection, and the headings of contact sheets."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.contact_sheets import heading
from evilm.inspect.shard_figure import draw_stats, stats_figure
from evilm.inspect.shard_stats import Stats


@pytest.fixture
def stats() -> Stats:
    """Clips that differ in captions and JPEG sizes only."""
    numbers = {"duration_s": 1.0, "fps": 12.0, "width": 64, "height": 64, "source_bytes": 1000, "rotation": 0}
    same = numbers | {"codec": "h264", "decoder": "pyav", "source": "", "flags": 0, "captions": 1, "frames": 2}
    rows = [same | {"caption_words": [3 + n % 5], "video": n, "clip": n, "caption": n} for n in range(26)]
    schema = Stats.joined([]).clips.schema
    return Stats(pa.Table.from_pylist(rows, schema), Counter(), np.arange(900, 1000))


def titles(figure: Any) -> Sequence[str]:
    return [axes.get_title() for axes in figure.axes]


def test_what_is_the_same_for_all_clips_is_text_instead_of_a_single_bar(stats: Stats) -> None:
    figure = stats_figure(stats, RejectCounts({"truncated": 3}))
    assert titles(figure) == ["length of captions", "size of stored frames (JPEG)"]
    text = figure.get_suptitle()
    for part in ("26 clips, 3 quarantined", "frame rate of videos: 12 frames per second", "codec of videos: h264 (26)"):
        assert part in text
    assert "quarantined, by reason: truncated (3)" in text.replace("\n", " ")


def test_several_reasons_are_bars_with_a_unit(stats: Stats) -> None:
    figure = stats_figure(stats, RejectCounts({"truncated": 3, "too_short": 1}))
    assert titles(figure)[-1] == "quarantined, by reason"
    assert all(axes.get_xlabel() or "size" in axes.get_title() for axes in figure.axes)
    assert draw_stats(stats, RejectCounts({"truncated": 3, "too_short": 1})).startswith(b"\x89PNG")


def test_no_clips_have_a_figure() -> None:
    figure = stats_figure(Stats.joined([]), RejectCounts())
    assert "0 clips, 0 quarantined" in figure.get_suptitle()
    assert draw_stats(Stats.joined([]), RejectCounts()).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("width", "squashed", "expected"),
    [(320, True, "320 × 240 squashed to a square"), (320, False, "320 × 240  ·"), (240, True, "240 × 240  ·")],
)
def test_heading_says_if_frames_have_another_aspect_ratio(width: int, squashed: bool, expected: str) -> None:
    row = {"clip_id": "a", "duration_s": 1.0, "fps": 12.0, "width": width, "height": 240, "codec": "h264", "flags": 0}
    assert expected in heading(row, squashed)
