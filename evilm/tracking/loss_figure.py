"""The figure of a training: its losses and, below them, its accuracies over steps, of train and val, with chance."""

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from evilm.io.figures import even_rows, filled_rows, to_png
from evilm.tracking.metrics_file import read_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[tuple[int, float]]
"""Steps and values."""
_SPLITS = {"train": "tab:blue", "val": "tab:orange"}
_TITLES = {
    "mlm": "masked words (MLM)",
    "vtm": "matching (VTM)",
    "mvm": "masked regions (MVM)",
    "word": "words of codes",
    "commitment": "commitment to codes",
    "codebook": "codebook",
}
_NOT_DRAWN = ("lr", "grad_norm")
_CHANCE = {"vtm_loss": math.log(2), "match_auc": 0.5}
_OF_CHANCE = "chance"
"""Ending of metrics that are the values of others for constant predictions; drawn as lines in their panels."""
_SQUARED = ("commitment_loss", "codebook_loss")
_SHARES = ("accuracy", "accuracy_labelled", "usage", "map", "score", "auc", "r1", "r5", "r10")
"""Last parts of the names of metrics from 0 to 1."""
_MOST_IN_ROW = 4


def draw_losses(metrics: Path) -> bytes:
    """Draw the figure of a metrics file as PNG."""
    return to_png(loss_figure(metrics))


def loss_figure(metrics: Path) -> "Figure":
    """Draw every loss and accuracy of a metrics file that changes."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = _read_curves(metrics)
    chance = _CHANCE | _chance_levels(curves)
    losses, others = _chosen(curves)
    rows = [*even_rows(len(losses), _MOST_IN_ROW), *even_rows(len(others), _MOST_IN_ROW)]
    figure = Figure(
        figsize=(3.6 * max(rows, default=1), 0.5 + 2.6 * max(1, len(rows))), layout="constrained" if rows else None
    )
    axes = filled_rows(figure, rows)
    for axis, name in zip(axes, [*losses, *others], strict=True):
        _draw_metric(axis, name, curves[name], chance.get(name))
    for axis in axes[len(axes) - rows[-1] :] if rows else ():
        axis.set_xlabel("step")
    drawn = {split for name in (*losses, *others) for split in curves[name]}
    handles = [Line2D([], [], color=colour, label=split) for split, colour in _SPLITS.items() if split in drawn]
    if any(name in chance for name in (*losses, *others)):
        handles.append(Line2D([], [], color="0.35", linestyle=":", label="constant predictions"))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _read_curves(metrics: Path) -> dict[str, dict[str, Curve]]:
    """Return the finite values of each metric by split."""
    curves: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for point in read_points(metrics):
        for name, value in point["metrics"].items():
            split, _, metric = name.partition("/")
            if (split in _SPLITS or split == _OF_CHANCE) and metric not in _NOT_DRAWN and math.isfinite(value):
                curves[metric][split].append((point["step"], value))
    objectives = {_objective(name) for name in curves if name.endswith("_loss")}
    if len(objectives) == 1 and not objectives & _TITLES.keys():  # its name is only in metrics of train
        prefix = f"{objectives.pop()}_"
        for name in [name for name in curves if name.startswith(prefix)]:
            for split, curve in curves.pop(name).items():
                curves[name.removeprefix(prefix)].setdefault(split, curve)
    return curves


def _chance_levels(curves: dict[str, dict[str, Curve]]) -> dict[str, float]:
    """Return the value of a metric for constant predictions, by the metric's name."""
    found = {}
    for name in curves:
        if name.endswith(_OF_CHANCE):
            base = name.removesuffix(_OF_CHANCE)
            found |= dict.fromkeys((f"{base}accuracy", base.rstrip("_")), _last(curves[name]))
    return found


def _chosen(curves: dict[str, dict[str, Curve]]) -> tuple[list[str], list[str]]:
    """Return the names of losses and of other metrics that say something, each once.

    The sum of several losses, metrics that stay the same, and copies of others are left out.
    """
    chosen: list[str] = []
    parts = [name for name in curves if name.endswith("_loss")]
    for name in sorted(curves, key=lambda name: (_objective(name) not in _TITLES, name)):
        is_sum = name == "loss" and len(parts) > 1
        values = [value for curve in curves[name].values() for _, value in curve]
        is_constant = len(values) > 1 and len(set(values)) == 1
        own = curves[name].items()
        is_copy = any(all(curves[other].get(split) == curve for split, curve in own) for other in chosen)
        if not (is_sum or is_constant or is_copy or name.endswith(_OF_CHANCE)):
            chosen.append(name)
    losses = [name for name in chosen if name.endswith("loss")]
    return losses, [name for name in chosen if name not in losses]


def _draw_metric(axis: "Axes", name: str, splits: dict[str, Curve], chance: float | None) -> None:
    """Draw one metric of train and val, and its value for constant predictions."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for split, points in sorted(splits.items()):
        marker = "o" if split == "val" or len(points) == 1 else None
        axis.plot(*zip(*points, strict=True), color=_SPLITS[split], marker=marker, markersize=3, linewidth=1.3)
    if chance is not None:
        axis.axhline(chance, color="0.35", linestyle=":", linewidth=1.3)
        values = [chance, *(value for points in splits.values() for _, value in points)]
        margin = 0.05 * (max(values) - min(values) or 1.0)
        axis.set_ylim(min(values) - margin, max(values) + margin)
    title = _TITLES.get(_objective(name), "").strip()
    plain = name.replace("_", " ")
    axis.set_title(f"{title}: {_kind(name)}" if title else plain, fontsize="medium")
    if name.rpartition("_")[2] in _SHARES or name.endswith("accuracy_labelled"):
        axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    elif name.endswith("loss"):
        axis.set_ylabel("squared distance" if name in _SQUARED else "nats")
    elif name.endswith("perplexity"):
        axis.set_ylabel("codes")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.grid(alpha=0.3)


def _objective(name: str) -> str:
    return name.rpartition("_")[0]


def _kind(name: str) -> str:
    """Return what is measured: the last part of a name."""
    return {"map": "mean average precision"}.get(kind := name.rpartition("_")[2], kind)


def _last(splits: dict[str, Curve]) -> float:
    """Return the newest value of a metric."""
    return max(curve[-1] for curve in splits.values())[1]
