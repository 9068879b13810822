"""The picture of a training: its losses and accuracies over steps, train and val."""

from collections import defaultdict
from pathlib import Path

from evilm.tracking.metrics_file import read_points


def draw_losses(metrics: Path, to: Path) -> Path:
    """Draw every loss and accuracy of a metrics file into a PNG.

    Args:
        metrics: a metrics file, JSON lines.
        to: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for point in read_points(metrics):
        for name, value in point["metrics"].items():
            split, _, metric = name.partition("/")
            if split in ("train", "val") and metric not in ("lr", "grad_norm"):
                curves[metric][split].append((point["step"], value))
    names = sorted(curves) or ["loss"]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for split, points in sorted(curves[name].items()):
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=split, marker="o" if split == "val" else None, markersize=3)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize="small") if curves[name] else None
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    figure.savefig(to, dpi=90)
    pyplot.close(figure)
    return to
