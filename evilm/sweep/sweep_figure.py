"""The figure of a sweep: the score against each swept setting, and the scores of all trials over epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.io.figures import even_rows, filled_rows, to_png
from evilm.sweep.sweep_results import Setting, short_names, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANCE = {"match_auc": 0.5, "vtm_accuracy": 0.5}
_LOG_FROM = 8.0
"""Ratio of the largest to the smallest number from which an axis is logarithmic; axes of shares never are."""
_RATES, _RATES_LOG_FROM = ("lr", "lr_scale", "weight_decay"), 2.0
"""Settings of which people compare ratios."""
_MOST_TICKS, _MOST_NAMED, _MOST_IN_ROW = 6, 10, 3
_DODGE_NUMBERS, _DODGE_NAMES = 0.2, 0.5
"""Share of the space between two neighbours over which settings with the same value are spread."""


def draw_sweep(settings: Sequence[Setting], score: str) -> bytes:
    """Draw the figure of a sweep as PNG; settings are ranked, the best first."""
    return to_png(sweep_figure(settings, score), dpi=100)


def sweep_figure(settings: Sequence[Setting], score: str) -> "Figure":
    """Draw a plot per swept setting, and one of scores over epochs.

    A setting that is not a number, if there is one, gives the colours. Otherwise the best setting is the darkest.
    """
    from matplotlib.figure import Figure

    short = short_names(settings[0].values)
    colours, legend = _colours(settings, short)
    rows = even_rows(len(short) + 1, _MOST_IN_ROW)
    figure = Figure(figsize=(4.6 * max(rows), 0.6 + 3.7 * len(rows)), layout="constrained")
    *of_settings, of_epochs = axes = filled_rows(figure, rows)
    for axis, name in zip(of_settings, short, strict=True):
        _draw_setting(axis, settings, name, colours)
        axis.set_xlabel(short[name])
    _draw_curves(of_epochs, settings, score, colours)
    for axis in axes:
        axis.set_ylabel(f"held-out {score}")
        axis.grid(alpha=0.3)
        if score in _CHANCE:
            axis.axhline(_CHANCE[score], color="0.35", linestyle=":", linewidth=1.3)
    figure.legend(handles=_handles(settings, score), loc="outside upper center", ncols=4, frameon=False)
    of_epochs.legend(handles=legend, fontsize="x-small", title_fontsize="x-small", loc="best")
    return figure


def _colours(settings: Sequence[Setting], short: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """Return a colour per setting, and the lines of the legend that explain them."""
    import matplotlib
    from matplotlib.lines import Line2D

    categories = [name for name in short if not _Axis.of(settings, name).is_numeric]
    if categories:
        name = min(categories, key=lambda name: len(_Axis.of(settings, name).labels))
        axis, scale = _Axis.of(settings, name), matplotlib.colormaps["tab10"]
        colours = [scale(axis.index(setting) % 10) for setting in settings]
        labels = [f"{short[name]} {label}" for label in axis.labels]
        return colours, [Line2D([], [], color=scale(k % 10), label=label) for k, label in enumerate(labels)]
    scale = matplotlib.colormaps["viridis"]
    colours = [scale(0.9 * index / max(1, len(settings) - 1)) for index in range(len(settings))]
    lines = [
        Line2D([], [], color=colour, label=", ".join(f"{short[name]} {shown(v)}" for name, v in setting.values.items()))
        for setting, colour in zip(settings[:_MOST_NAMED], colours, strict=False)
    ]
    if len(settings) > _MOST_NAMED:
        lines.append(Line2D([], [], color="none", label=f"and {len(settings) - _MOST_NAMED} more"))
    return colours, lines


def _handles(settings: Sequence[Setting], score: str) -> list[Any]:
    """Return the lines of the legend for how trials ended, the mean of seeds, and chance."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="0.35", marker="o", linestyle="", label="ran to the end")]
    if any(setting.early_scores for setting in settings):
        handles.append(
            Line2D([], [], color="0.35", marker="o", markerfacecolor="none", linestyle="", label="stopped early")
        )
    if any(setting.spread for setting in settings):
        handles.append(Line2D([], [], color="0.35", marker="_", label="mean and deviation of seeds"))
    if score in _CHANCE:
        handles.append(Line2D([], [], color="0.35", linestyle=":", label="chance"))
    return handles


@dataclass(frozen=True)
class _Axis:
    """The values of one swept setting as places on an axis."""

    name: str
    labels: list[str]
    """Distinct values as text; sorted if they are numbers."""
    values: list[Any]
    is_numeric: bool
    is_log: bool

    @classmethod
    def of(cls, settings: Sequence[Setting], name: str) -> "_Axis":
        """Return the axis of a setting."""
        distinct = list({shown(setting.values[name]): setting.values[name] for setting in settings}.items())
        is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for _, value in distinct)
        distinct = sorted(distinct, key=lambda pair: pair[1]) if is_numeric else distinct
        values = [value for _, value in distinct]
        is_rate = name.rpartition(".")[2] in _RATES
        log_from = _RATES_LOG_FROM if is_rate else _LOG_FROM
        is_log = is_numeric and values[0] > 0 and values[-1] >= log_from * values[0] and (is_rate or values[-1] > 1)
        return cls(name, [label for label, _ in distinct], values, is_numeric, is_log)

    def index(self, setting: Setting) -> int:
        """Return the number of a setting's value among all values."""
        return self.labels.index(shown(setting.values[self.name]))

    def place(self, setting: Setting, shift: float) -> float:
        """Return where a setting is drawn, shifted by a share of the space between two neighbours."""
        if not self.is_numeric:
            return self.index(setting) + shift
        value = self.values[self.index(setting)]
        if self.is_log:
            ratios = [high / low for low, high in zip(self.values, self.values[1:], strict=False)]
            return value * min(ratios) ** shift
        gaps = [high - low for low, high in zip(self.values, self.values[1:], strict=False)]
        return value + shift * min(gaps, default=0.0)


def _draw_setting(axes: "Axes", settings: Sequence[Setting], name: str, colours: list[Any]) -> None:
    """Draw every trial at its value of one setting, and mean and standard deviation of those that ran to the end."""
    axis = _Axis.of(settings, name)
    together = [[s for s in settings if axis.index(s) == place] for place in range(len(axis.labels))]
    for setting, colour in zip(settings, colours, strict=True):
        others = together[axis.index(setting)]
        order = next(place for place, other in enumerate(others) if other is setting)
        dodge = _DODGE_NUMBERS if axis.is_numeric else _DODGE_NAMES
        at = axis.place(setting, dodge * ((order + 0.5) / len(others) - 0.5))
        axes.plot([at] * len(setting.scores), setting.scores, "o", color=colour, zorder=3, markersize=5)
        early = setting.early_scores
        axes.plot([at] * len(early), early, "o", color=colour, markerfacecolor="none", zorder=3, markersize=5)
        if setting.mean is not None and setting.spread is not None:
            axes.errorbar(at, setting.mean, yerr=setting.spread, color=colour, marker="_", capsize=4)
    if axis.is_log:
        axes.set_xscale("log")
    if not axis.is_numeric or len(axis.labels) <= _MOST_TICKS:
        ticks = axis.values if axis.is_numeric else range(len(axis.labels))
        turned = 30 if sum(map(len, axis.labels)) > 36 else 0
        axes.set_xticks(list(ticks), axis.labels, rotation=turned, minor=False)
        axes.minorticks_off()
    elif axis.is_log:
        _write_plainly(axes)


def _write_plainly(axes: "Axes") -> None:
    """Write a logarithmic axis at 1 and 3 times powers of ten, without exponents."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0), numticks=_MOST_TICKS))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: np.format_float_positional(value, 6, fractional=False, trim="-"))
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_curves(axes: "Axes", settings: Sequence[Setting], score: str, colours: list[Any]) -> None:
    """Draw the score of every trial over epochs, with a ring where one was stopped."""
    for setting, colour in zip(settings, colours, strict=True):
        for tried in setting.tried:
            curve = [(step / tried.steps_per_epoch, m[score]) for step, m in tried.outcome.points if score in m]
            if not curve:
                continue
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.2)
            if tried.outcome.state == "stopped":
                axes.plot(*curve[-1], "o", color=colour, markerfacecolor="white", markersize=5)
    axes.set_xlabel("epochs")
