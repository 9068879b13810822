"""Plain-text tables for people at a terminal."""

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Align columns under a ruled header; columns named in `right` are set flush right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line_of(cells: Sequence[str]) -> str:
        set_cells = (
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(set_cells).rstrip()

    return "\n".join([line_of(lines[0]), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line_of, lines[1:])])


def text_histogram(counts: Sequence[float]) -> str:
    """Draw counts as a row of bars, one character each; the highest is full, and nothing but zero is empty."""
    most = max(counts, default=0)
    if most <= 0:
        return " " * len(counts)
    return "".join(_BLOCKS[max(1, round(8 * count / most)) if count else 0] for count in counts)


def count_of(number: int, what: str) -> str:
    """Format a count with its noun: `1 shard`, `2,000 shards`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def bytes_as_text(number: float) -> str:
    """Format a number of bytes: `812 B`, `27.4 kB`, `1.31 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if number < 100 or unit != "B" else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.4g} TB"


def number_as_text(value: float) -> str:
    """Format a number with four digits; whole thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
