"""The picture of a sweep: score against the swept value, or parallel coordinates of several, and scores over epochs."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from evilm.sweep.sweep_results import Setting, short_names, shown
from evilm.sweep.trial_folder import mode_of

_CHANCE = {"match_auc": 0.5, "vtm_accuracy": 0.5}
_PAPER = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
_LOG_FROM = 8.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""


def draw_sweep(settings: Sequence[Setting], score: str) -> bytes:
    """A PNG with two panels.

    Args:
        settings: best first, each with its trials.
        score: name of the score.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    many = len(settings[0].values) > 1
    widths = [1.6, 1.0] if many else [1.1, 1.0]
    picture, (left, right) = pyplot.subplots(
        1, 2, figsize=(13 if many else 11, 4.4), layout="constrained", width_ratios=widths
    )
    colours = _colours(settings)
    (_draw_parallel if many else _draw_one)(left, settings, score, colours)
    _draw_curves(right, settings, score, colours)
    buffer = io.BytesIO()
    picture.savefig(buffer, dpi=100, format="png")
    pyplot.close(picture)
    return buffer.getvalue()


def _colours(settings: Sequence[Setting]) -> list[Any]:
    """A colour for each setting: by rank, the best dark."""
    import matplotlib

    scale = matplotlib.colormaps["viridis"]
    return [scale(0.9 * index / max(1, len(settings) - 1)) for index in range(len(settings))]


def _draw_one(axis: Any, settings: Sequence[Setting], score: str, colours: list[Any]) -> None:
    """Every trial at its value; means and standard deviations of the values whose trials ran to the end."""
    (name,) = settings[0].values
    values = [setting.values[name] for setting in settings]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = dict(zip(map(shown, values), values if numeric else range(len(values)), strict=True))
    ordered = sorted(settings, key=lambda setting: places[shown(setting.values[name])])
    for setting, colour in zip(settings, colours, strict=True):
        at = places[shown(setting.values[name])]
        axis.plot([at] * len(setting.scores), setting.scores, "o", color=colour, zorder=3)
        early = setting.early_scores
        axis.plot([at] * len(early), early, "o", color=colour, markerfacecolor="none", zorder=3)
    ended = [setting for setting in ordered if setting.mean is not None]
    axis.errorbar(
        [places[shown(setting.values[name])] for setting in ended],
        [setting.mean for setting in ended],
        yerr=[setting.spread or 0.0 for setting in ended],
        color="0.35", linewidth=1.2, capsize=4, zorder=2, label="mean ± sd over seeds",
    )  # fmt: skip
    axis.plot([], [], "o", color="0.35", label="ran to the end")
    axis.plot([], [], "o", color="0.35", markerfacecolor="none", label="stopped early")
    if numeric and min(values) > 0 and max(values) >= _LOG_FROM * min(values):
        axis.set_xscale("log")
    axis.set_xticks(list(places.values()), list(places), minor=False)
    axis.minorticks_off()
    _chance(axis, score)
    axis.set_xlabel(name)
    axis.set_ylabel(f"held-out {score}")
    axis.legend(fontsize="small")


def _draw_parallel(axis: Any, settings: Sequence[Setting], score: str, colours: list[Any]) -> None:
    """A line per trial across one axis per setting and one for the score, good scores up; dashed: stopped early."""
    short = short_names(settings[0].values)
    columns = {name: _scale([setting.values[name] for setting in settings]) for name in short}
    trials = [
        (setting, colour, tried, value)
        for setting, colour in zip(settings, colours, strict=True)
        for tried in setting.tried
        if (value := tried.outcome.last(score)) is not None
    ]
    scores = [value for *_, value in trials] or [0.0]
    low, high = min(scores), max(scores)
    better_up = mode_of(score) == "max"

    def height(value: float) -> float:
        place = (value - low) / (high - low) if high > low else 0.5
        return place if better_up else 1 - place

    for setting, colour, tried, value in reversed(trials):
        ys = [columns[name][shown(setting.values[name])] for name in short]
        ys.append(height(value))
        style = "-" if tried.outcome.state == "done" else "--"
        axis.plot(range(len(ys)), ys, style, color=colour, linewidth=1.6, alpha=0.9)
    for place, scale in enumerate(columns.values()):
        axis.axvline(place, color="0.6", linewidth=0.8, zorder=0)
        for label, y in scale.items():
            axis.annotate(label, (place, y), xytext=(4, 3), textcoords="offset points", fontsize="small", bbox=_PAPER)
    last = len(short)
    axis.axvline(last, color="0.6", linewidth=0.8, zorder=0)
    for value in np.linspace(low, high, 5):
        at = (last, height(float(value)))
        axis.annotate(f"{value:.3f}", at, xytext=(4, -3), textcoords="offset points", fontsize="small", bbox=_PAPER)
    axis.set_xticks(range(last + 1), [*short.values(), f"held-out {score}"])
    axis.set_yticks([])
    axis.set_xlim(-0.15, last + 0.25)
    axis.set_ylim(-0.06, 1.08)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    axis.plot([], [], "-", color="0.35", label="ran to the end")
    axis.plot([], [], "--", color="0.35", label="stopped early")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2, frameon=False)


def _draw_curves(axis: Any, settings: Sequence[Setting], score: str, colours: list[Any]) -> None:
    """The score of every trial over epochs: where stopped ones ended, and whether it was too early to say."""
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
    _chance(axis, score)
    axis.set_xlabel("epochs")
    axis.set_ylabel(f"held-out {score}")
    axis.set_title("ring: stopped early; order of the legend: best first", fontsize="small")
    axis.legend(fontsize="x-small", ncols=1 if len(settings) <= 8 else 2)


def _chance(axis: Any, score: str) -> None:
    if score in _CHANCE:
        axis.axhline(_CHANCE[score], color="black", linestyle=":", linewidth=1, label="guessing")


def _scale(values: Sequence[Any]) -> dict[str, float]:
    """The place of each value on an axis from 0 to 1: by size where they are numbers, else by rank."""
    distinct = list({shown(value): value for value in values}.values())
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
    if not numeric:
        return {shown(value): place / max(1, len(distinct) - 1) for place, value in enumerate(distinct)}
    sizes = np.array(distinct, dtype=float)
    if sizes.min() > 0 and sizes.max() >= _LOG_FROM * sizes.min():
        sizes = np.log(sizes)
    span = float(np.ptp(sizes)) or 1.0
    return {shown(v): float((size - sizes.min()) / span) for v, size in zip(distinct, sizes, strict=True)}
