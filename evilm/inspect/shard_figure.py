"""The figure of an inspection: how long, large and wordy the clips are, and what was quarantined."""

from typing import TYPE_CHECKING

from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.shard_stats import MEASURES, Stats, histogram, summarise, top
from evilm.io.figures import to_png
from evilm.io.text_table import bytes_as_text, number_as_text

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_BINS, _MOST = 40, 12
_BLUE, _RED = "#3b6fb6", "#b6543b"


def draw_stats(stats: Stats, reasons: RejectCounts) -> bytes:
    """Draw histograms of all that is measured, and bars of codecs, flags and reasons, as PNG."""
    from matplotlib.figure import Figure

    kinds = stats.kinds()
    bars = {"codec": kinds["codec"], "flags": kinds["flags"], "quarantined because": reasons.counts}
    rows = -(-(len(MEASURES) + len(bars)) // 4)
    figure = Figure(figsize=(17, 3.5 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, 4, place + 1) for place in range(len(MEASURES) + len(bars))]
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=False):
        axis.set_title(title, fontsize="medium")
        _draw_histogram(axis, name, stats.measure(name))
    for axis, (title, counts) in zip(axes[len(MEASURES) :], bars.items(), strict=True):
        axis.set_title(title, fontsize="medium")
        _draw_bars(axis, top(counts, _MOST), _RED if title.startswith("quarantined") else _BLUE)
    return to_png(figure)


def _draw_histogram(axis: "Axes", name: str, values: "np.ndarray") -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if not len(values):
        return _draw_nothing(axis, "not measured")
    counts, edges = histogram(values, _BINS)
    axis.stairs(counts, edges, fill=True, color=_BLUE)
    write = bytes_as_text if name.endswith("bytes") else number_as_text
    found = summarise(values)
    axis.axvline(found["median"], color=_RED, linewidth=1.2, label=f"median {write(found['median'])}")
    axis.set_ylabel("frames" if name == "jpeg_bytes" else "clips")
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if name.endswith("bytes"):
        axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axis.legend(fontsize="small", frameon=False)
    if found["max"] > edges[-1]:
        axis.set_xlabel(f"the last bar goes on to {write(found['max'])}", fontsize="small", color="grey")
    return None


def _draw_bars(axis: "Axes", counts: dict[str, int], colour: str) -> None:
    if not counts:
        return _draw_nothing(axis, "none")
    names = list(counts)[::-1]
    drawn = axis.barh(names, [counts[name] for name in names], color=colour, height=0.6)
    axis.bar_label(drawn, labels=[f" {counts[name]:,}" for name in names], fontsize="small")
    axis.margins(x=0.18)
    axis.set_ylim(-0.6, max(len(names), 4) - 0.4)
    return None


def _draw_nothing(axis: "Axes", why: str) -> None:
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", color="grey")
    axis.set(xticks=[], yticks=[])
