"""Turn matplotlib figures into PNG files; drawn without pyplot, whose state all threads of a process share."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def to_png(figure: "Figure", dpi: int = 90) -> bytes:
    """Return a figure as a PNG file."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # captions may be in any script; DejaVu Sans has most
        figure.savefig(sink, dpi=dpi, format="png")
    return sink.getvalue()


def filled_rows(figure: "Figure", counts: Sequence[int]) -> "list[Axes]":
    """Add rows of axes, each row as wide as the figure whatever it holds, so that no cell is empty.

    `counts` are the axes in each row, from the top.
    """
    grid = figure.add_gridspec(max(1, len(counts)), 1)
    rows = [grid[row].subgridspec(1, count) for row, count in enumerate(counts)]
    return [figure.add_subplot(row[place]) for row, count in zip(rows, counts, strict=True) for place in range(count)]


def even_rows(count: int, most: int) -> list[int]:
    """Divide `count` axes into as few rows as possible of at most `most`, as equal as possible, longer ones last."""
    rows = -(-count // most)
    return [(count + row) // rows for row in range(rows)]
