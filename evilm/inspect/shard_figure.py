"""The picture of an inspection: how long, large and wordy the clips are, and what was quarantined."""

import io

from evilm.ingest.quarantine import RejectCounts
from evilm.inspect.shard_stats import MEASURES, Stats, top
from evilm.io.text_table import bytes_as_text, number_as_text

_BINS = 40
_MOST = 12
_BLUE, _RED = "#3b6fb6", "#b6543b"


def draw_stats(stats: Stats, reasons: RejectCounts) -> bytes:
    """Histograms of all that is measured, and bars of codecs, flags and reasons, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {
        "codec": dict(top(stats.kinds.get("codec", {}), _MOST)),
        "flags": dict(top(stats.kinds.get("flags", {}), _MOST)),
        "quarantined because": dict(top(reasons.counts, _MOST)),
    }
    rows = -(-(len(MEASURES) + len(bars)) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(17, 3.5 * rows), layout="constrained")
    for axis in axes.flat[len(MEASURES) + len(bars) :]:
        axis.set_axis_off()
    places = iter(axes.flat)
    for (name, title), axis in zip(MEASURES.items(), places, strict=False):
        _draw_histogram(axis, title, stats, name)
    for title, counts in bars.items():
        _draw_bars(axes.flat[len(MEASURES) + list(bars).index(title)], title, counts)
    figure.savefig(buffer := io.BytesIO(), dpi=90, format="png")
    pyplot.close(figure)
    return buffer.getvalue()


def _draw_histogram(axis: object, title: str, stats: Stats, name: str) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import EngFormatter, MaxNLocator

    assert isinstance(axis, Axes)
    values = stats.measures[name]
    axis.set_title(title, fontsize="medium")
    axis.spines[["top", "right"]].set_visible(False)
    if not len(values):
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="grey")
        axis.set(xticks=[], yticks=[])
        return
    counts, edges = values.histogram(_BINS)
    axis.stairs(counts, edges, fill=True, color=_BLUE)
    write = bytes_as_text if name.endswith("bytes") else number_as_text
    median = values.summary()["median"]
    axis.axvline(median, color=_RED, linewidth=1.2, label=f"median {write(median)}")
    axis.set_ylabel("frames" if name == "jpeg_bytes" else "clips")
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if name.endswith("bytes"):
        axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
    elif edges[1] - edges[0] == 1:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=min(8, len(counts)), integer=True, min_n_ticks=1))
    axis.set_ylim(bottom=0)
    axis.margins(x=0.02)
    axis.legend(fontsize="small", frameon=False)
    if values.summary()["max"] > edges[-1]:
        axis.set_xlabel(f"the last bar goes on to {write(values.summary()['max'])}", fontsize="small", color="grey")


def _draw_bars(axis: object, title: str, counts: dict[str, int]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axis, Axes)
    axis.set_title(title, fontsize="medium")
    axis.spines[["top", "right"]].set_visible(False)
    if not counts:
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", color="grey")
        axis.set(xticks=[], yticks=[])
        return
    names = list(counts)[::-1]
    drawn = axis.barh(names, [counts[name] for name in names], color=_RED if "aside" in title else _BLUE, height=0.6)
    axis.bar_label(drawn, labels=[f" {counts[name]:,}" for name in names], fontsize="small")
    axis.margins(x=0.18)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.set_ylim(-0.6, max(len(names), 4) - 0.4)
