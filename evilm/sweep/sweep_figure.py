"""The figure of a sweep: the score against each swept setting, and the scores of all trials over epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evilm.io.figures import to_png
from evilm.sweep.sweep_results import Setting, short_names, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHANCE = {"match_auc": 0.5, "vtm_accuracy": 0.5}
_LOG_FROM = 8.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""


def draw_sweep(settings: Sequence[Setting], score: str) -> bytes:
    """Draw a PNG with a plot per swept setting, and one of scores over epochs; the best setting is dark."""
    import matplotlib
    from matplotlib.figure import Figure

    scale = matplotlib.colormaps["viridis"]
    colours = [scale(0.9 * index / max(1, len(settings) - 1)) for index in range(len(settings))]
    short = short_names(settings[0].values)
    figure = Figure(figsize=(5 * len(short) + 6, 4.4), layout="constrained")
    *of_settings, of_epochs = figure.subplots(1, len(short) + 1, width_ratios=[*[1.0] * len(short), 1.2])
    for axis, name in zip(of_settings, short, strict=True):
        _draw_setting(axis, settings, name, colours)
    of_settings[0].set_ylabel(f"held-out {score}")
    _draw_curves(of_epochs, settings, score, colours)
    if score in _CHANCE:
        for axis in (*of_settings, of_epochs):
            axis.axhline(_CHANCE[score], color="black", linestyle=":", linewidth=1, label="guessing")
    for axis in (of_settings[0], of_epochs):
        axis.legend(fontsize="small" if axis is of_settings[0] else "x-small")
    return to_png(figure, dpi=100)


def _draw_setting(axis: "Axes", settings: Sequence[Setting], name: str, colours: list[Any]) -> None:
    """Draw every trial at its value of one setting, and mean and standard deviation of those that ran to the end."""
    values = [setting.values[name] for setting in settings]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    distinct = list({shown(value): value for value in values}.values())
    places = {shown(value): value if numeric else place for place, value in enumerate(distinct)}
    for setting, colour in zip(settings, colours, strict=True):
        at = places[shown(setting.values[name])]
        axis.plot([at] * len(setting.scores), setting.scores, "o", color=colour, zorder=3)
        early = setting.early_scores
        axis.plot([at] * len(early), early, "o", color=colour, markerfacecolor="none", zorder=3)
        if setting.mean is not None:
            axis.errorbar(at, setting.mean, yerr=setting.spread or 0.0, color=colour, marker="_", capsize=4)
    axis.plot([], [], "o", color="0.35", label="ran to the end")
    axis.plot([], [], "o", color="0.35", markerfacecolor="none", label="stopped early")
    if numeric and min(values) > 0 and max(values) >= _LOG_FROM * min(values):
        axis.set_xscale("log")
    axis.set_xticks(list(places.values()), list(places), minor=False)
    axis.minorticks_off()
    axis.set_xlabel(name)


def _draw_curves(axis: "Axes", settings: Sequence[Setting], score: str, colours: list[Any]) -> None:
    """Draw the score of every trial over epochs: where stopped ones ended, and whether it was too early to say."""
    short = short_names(settings[0].values)
    for setting, colour in zip(settings, colours, strict=True):
        label = ", ".join(f"{short[name]} {shown(value)}" for name, value in setting.values.items())
        for number, tried in enumerate(setting.tried):
            curve = [(step / tried.steps_per_epoch, m[score]) for step, m in tried.outcome.points if score in m]
            if not curve:
                continue
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=1.2, label="" if number else label)
            if tried.outcome.state == "stopped":
                axis.plot(*curve[-1], "o", color=colour, markerfacecolor="white", markersize=5)
    axis.set_xlabel("epochs")
    axis.set_title("ring: stopped early; order of the legend: best first", fontsize="small")
