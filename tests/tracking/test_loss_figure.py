"""The figure of a training: which metrics it draws, and where chance lies."""

import json
import math
from pathlib import Path

import pytest

from evilm.tracking.loss_figure import draw_losses, loss_figure


def write(path: Path, points: dict[int, dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps({"time_ms": 0, "step": s, "metrics": m}) + "\n" for s, m in points.items()))
    return path


def pretraining(step: int) -> dict[str, float]:
    names = {"mlm": 5.0, "vtm": 0.1, "mvm": 3.0}
    metrics = {f"train/{name}_loss": loss - step / 100 for name, loss in names.items()}
    metrics |= {f"train/{name}_accuracy": 0.6 + (step + k) / 100 for k, name in enumerate(names)}
    metrics |= {name.replace("train", "val"): value for name, value in metrics.items()}
    return metrics | {
        "train/loss": 8.1 - step,
        "train/lr": 1.0,
        "val/code_usage": 0.5,
        "val/mvm_chance": 0.25,
        "chance/vtm_chance": 0.5,
    }


def test_constants_sums_and_chance_have_no_panels(tmp_path: Path) -> None:
    figure = loss_figure(write(tmp_path / "m", {k: pretraining(k) for k in range(3)}))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "masked words (MLM): loss",
        "masked regions (MVM): loss",
        "matching (VTM): loss",
        "masked words (MLM): accuracy",
        "masked regions (MVM): accuracy",
        "matching (VTM): accuracy",
    ]
    assert {axes.get_ylabel() for axes in figure.axes[:3]} == {"nats"}


def test_chance_lies_inside_of_its_panel(tmp_path: Path) -> None:
    figure = loss_figure(write(tmp_path / "m", {k: pretraining(k) for k in range(3)}))
    by_title = {axes.get_title(): axes for axes in figure.axes}
    for title, chance in (
        ("matching (VTM): loss", math.log(2)),
        ("matching (VTM): accuracy", 0.5),
        ("masked regions (MVM): accuracy", 0.25),
    ):
        low, high = by_title[title].get_ylim()
        assert low < chance < high


def test_copies_of_a_metric_are_drawn_once(tmp_path: Path) -> None:
    own = {"val/loss": 2.0, "val/score": 0.1, "val/accuracy": 0.1}
    own |= {"train/loss": 3.0, "train/answer_loss": 3.0, "train/answer_accuracy": 0.2}
    points = {k: {name: value + k / 10 for name, value in own.items()} for k in range(3)}
    figure = loss_figure(write(tmp_path / "m", points))
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2]


@pytest.mark.parametrize(
    "points", [{}, {0: {"time/attempt": 1.0}}, {1: {"train/loss": math.nan}}, {1: {"val/loss": 1.0}}]
)
def test_short_trainings_have_a_figure(tmp_path: Path, points: dict[int, dict[str, float]]) -> None:
    assert draw_losses(write(tmp_path / "m", points)).startswith(b"\x89PNG")


def test_many_metrics_fill_their_rows(tmp_path: Path) -> None:
    names = [f"val/a{n}_loss" for n in range(5)] + [f"val/t2v_r{n}" for n in range(3)]
    figure = loss_figure(write(tmp_path / "m", {k: {name: k + n for n, name in enumerate(names)} for k in range(2)}))
    rows: dict[float, list[float]] = {}
    for axes in figure.axes:
        box = axes.get_position()
        rows.setdefault(round(box.y0, 2), []).append(box.x1)
    assert sorted(len(ends) for ends in rows.values()) == [2, 3, 3]
    assert max(max(ends) for ends in rows.values()) - min(max(ends) for ends in rows.values()) < 0.02
