"""The figure of an inspection: how long, large and wordy the clips are, and what was quarantined."""

import textwrap
from typing import TYPE_CHECKING

from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.shard_stats import MEASURES, Stats, histogram, summarise, top
from evilm.io.figures import even_rows, filled_rows, to_png
from evilm.io.text_table import bytes_as_text, count_of, number_as_text

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS, _MOST, _MOST_IN_ROW, _LINE_CHARS = 40, 12, 4, 150
_BLUE, _RED, _GLUE = "#3b6fb6", "#b6543b", "\xa0"
_TITLES = {
    "duration_s": ("length of clips", "seconds"),
    "fps": ("frame rate of videos", "frames per second"),
    "width": ("width of videos", "pixels"),
    "height": ("height of videos", "pixels"),
    "aspect": ("aspect ratio of videos", "width / height"),
    "caption_words": ("length of captions", "words"),
    "captions": ("captions per clip", "captions"),
    "frames": ("stored frames per clip", "frames"),
    "source_bytes": ("size of video files", ""),
    "jpeg_bytes": ("size of stored frames (JPEG)", ""),
}
"""Title and unit of each of `MEASURES`."""
_SELF_EVIDENT = ("aspect", "captions", "frames")
"""Measures whose title says the unit."""


def draw_stats(stats: Stats, reasons: RejectCounts) -> bytes:
    """Draw the figure of an inspection as PNG."""
    return to_png(stats_figure(stats, reasons))


def stats_figure(stats: Stats, reasons: RejectCounts) -> "Figure":
    """Draw histograms of all that is measured, and bars of codecs, flags and reasons.

    Values that all clips share are written below the title instead of being drawn.
    """
    from matplotlib.figure import Figure

    kinds, clips = stats.kinds(), len(stats.clips)
    values = {name: stats.measure(name) for name in MEASURES}
    bars = {
        "codec of videos": kinds["codec"],
        "clips with a flag": kinds["flags"],
        "quarantined, by reason": reasons.counts,
    }
    drawn = [name for name, found in values.items() if len(found) and found.min() < found.max()]
    charts = [title for title, counts in bars.items() if len(counts) > 1]
    same = [_constant(name, found) for name, found in values.items() if name not in drawn]
    same += [_only(title, counts) for title, counts in bars.items() if title not in charts]
    rows = even_rows(len(drawn) + len(charts), _MOST_IN_ROW)
    figure = Figure(figsize=(17, 1.0 + 3.4 * max(1, len(rows))), layout="constrained" if rows else None)
    quarantined = sum(reasons.counts.values())
    glued = "  ·  ".join(text.replace(" ", _GLUE) for text in same)  # a line ends between two of them
    lines = [line.replace(_GLUE, " ") for line in textwrap.wrap(glued, _LINE_CHARS)]
    title = f"{count_of(clips, 'clip')}, {quarantined:,} quarantined"
    figure.suptitle("\n".join([title, *lines]), fontsize="large", parse_math=False)
    axes = filled_rows(figure, rows)
    for axis, name in zip(axes, drawn, strict=False):
        axis.set_title(_TITLES[name][0], fontsize="medium")
        _draw_histogram(axis, name, values[name])
    for axis, title in zip(axes[len(drawn) :], charts, strict=True):
        axis.set_title(title, fontsize="medium")
        _draw_bars(axis, top(bars[title], _MOST), _RED if title.startswith("quarantined") else _BLUE)
    return figure


def _constant(name: str, values: "np.ndarray") -> str:
    """Describe a measure that all clips have in common."""
    title, unit = _TITLES[name]
    if not len(values):
        return f"{title}: not measured"
    write = bytes_as_text if name.endswith("bytes") else number_as_text
    return f"{title}: {write(float(values[0]))} {unit if name not in _SELF_EVIDENT else ''}".strip()


def _only(title: str, counts: dict[str, int]) -> str:
    """Describe the only kind there is."""
    return f"{title}: " + (", ".join(f"{name} ({number:,})" for name, number in counts.items()) or "none")


def _draw_histogram(axis: "Axes", name: str, values: "np.ndarray") -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    counts, edges = histogram(values, _BINS)
    axis.stairs(counts, edges, fill=True, color=_BLUE)
    write = bytes_as_text if name.endswith("bytes") else number_as_text
    found = summarise(values)
    axis.axvline(found["median"], color=_RED, linewidth=1.2, label=f"median {write(found['median'])}")
    axis.set_ylabel({"jpeg_bytes": "frames", "caption_words": "captions"}.get(name, "clips"))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    unit = _TITLES[name][1]
    if name.endswith("bytes"):
        axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axis.legend(fontsize="small", frameon=False)
    if found["max"] > edges[-1] * (1 + 1e-5):  # `summarise` rounds
        unit = f"{unit} (last bar: up to {write(found['max'])})".strip()
    axis.set_xlabel(unit, fontsize="small")


def _draw_bars(axis: "Axes", counts: dict[str, int], colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    names = list(counts)[::-1]
    drawn = axis.barh(names, [counts[name] for name in names], color=colour, height=0.6)
    axis.bar_label(drawn, labels=[f" {counts[name]:,}" for name in names], fontsize="small")
    axis.margins(x=0.18)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.set_xlabel("clips", fontsize="small")
    axis.set_ylim(-0.6, max(len(names), 4) - 0.4)
