"""The figure of a training: its losses and accuracies over steps, train and val."""

from collections import defaultdict
from pathlib import Path

from evilm.io.figures import to_png
from evilm.tracking.metrics_file import read_points


def draw_losses(metrics: Path) -> bytes:
    """Draw every loss and accuracy of a metrics file, as PNG."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for point in read_points(metrics):
        for name, value in point["metrics"].items():
            split, _, metric = name.partition("/")
            if split in ("train", "val") and metric not in ("lr", "grad_norm"):
                curves[metric][split].append((point["step"], value))
    columns = min(4, max(1, len(curves)))
    rows = -(-max(1, len(curves)) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained" if curves else None)
    for place, (name, splits) in enumerate(sorted(curves.items()), start=1):
        axis = figure.add_subplot(rows, columns, place)
        for split, points in sorted(splits.items()):
            axis.plot(*zip(*points, strict=True), label=split, marker="o" if split == "val" else None, markersize=3)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize="small")
    return to_png(figure)
