"""Turn matplotlib figures into PNG files; drawn without pyplot, whose state all threads of a process share."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_png(figure: "Figure", dpi: int = 90) -> bytes:
    """Return a figure as a PNG file."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # captions may be in any script; DejaVu Sans has most
        figure.savefig(sink, dpi=dpi, format="png")
    return sink.getvalue()
