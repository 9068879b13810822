"""The figure of a sweep: axes of settings, colours, and trials that do not hide each other."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from evilm.sweep.sweep_figure import sweep_figure
from evilm.sweep.sweep_results import Setting, Tried, rank
from evilm.sweep.trial_folder import TrialOutcome, make_trials


def ranked(*values: dict[str, Any]) -> list[Setting]:
    """Settings with two trials each, one of which was stopped early in every second setting."""
    found = []
    for number, own in enumerate(values):
        for trial in make_trials(number, own, 2, "somewhere"):
            points = [(8, {"loss": 9.0}), (16, {"loss": 8.0 - number / 10 + trial.repeat / 100})]
            stopped = number % 2 and trial.repeat
            outcome = TrialOutcome("stopped", points[:1]) if stopped else TrialOutcome("done", points, {"seconds": 1.0})
            found.append(Tried(trial, outcome, 16))
    return rank(found, "loss")


def ticks(figure: Figure, place: int) -> list[str]:
    axis = figure.axes[place].xaxis
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def test_learning_rates_are_on_a_logarithmic_axis_with_plain_numbers() -> None:
    figure = sweep_figure(ranked(*({"optim.lr": lr} for lr in (0.0003, 0.001, 0.003))), "loss")
    assert figure.axes[0].get_xscale() == "log"
    assert ticks(figure, 0) == ["0.0003", "0.001", "0.003"]
    assert figure.axes[0].get_xlabel() == "lr"


def test_many_values_have_few_ticks() -> None:
    figure = sweep_figure(ranked(*({"optim.lr": 0.0001 * 1.3**k, "arch.dropout": 0.01 * k} for k in range(20))), "loss")
    for place in (0, 1):
        labels = ticks(figure, place)
        assert 2 <= len(labels) <= 9
        assert not any("10^" in label or "e-" in label for label in labels)


def test_categories_have_colours_of_their_own() -> None:
    shapes = ("block", "tube", "random")
    values = [{"objectives.mask_shape": shape, "optim.lr": lr} for shape in shapes for lr in (0.001, 0.01)]
    figure = sweep_figure(ranked(*values), "loss")
    *_, of_epochs = figure.axes
    legend = of_epochs.get_legend()
    assert legend
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(f"mask_shape {shape}" for shape in shapes)
    assert len({line.get_color() for line in of_epochs.get_lines()}) == 3


def test_settings_with_the_same_value_do_not_hide_each_other() -> None:
    figure = sweep_figure(
        ranked(*({"a.shape": shape, "b.lr": lr} for shape in ("x", "y") for lr in (0.001, 0.01))), "loss"
    )
    for place in (0, 1):
        points = [line for line in figure.axes[place].get_lines() if line.get_marker() == "o"]
        places = {round(float(x), 9) for line in points for x in line.get_xdata()}
        assert len(places) == 4


@pytest.mark.parametrize("count", range(1, 7))
def test_no_cell_is_empty(count: int) -> None:
    figure = sweep_figure(ranked(*({f"a.s{n}": n + k for n in range(count)} for k in range(2))), "loss")
    assert len(figure.axes) == count + 1
    rows: dict[float, float] = {}
    for axes in figure.axes:
        box = axes.get_position()
        rows[round(box.y0, 2)] = max(box.x1, rows.get(round(box.y0, 2), 0.0))
    assert max(rows.values()) - min(rows.values()) < 0.02, "each row ends at the right edge"
