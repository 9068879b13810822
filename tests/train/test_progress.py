"""Progress lines for a job log, the same through a restart."""

import json
import time
from typing import Any

import pytest
import torch

from evilm.config.training import ScheduleConfig
from evilm.train.progress import Cadence, Progress, evaluation_line, metrics_line
from evilm.train.timing import StepTimer


class _Loader:
    wait_s = 0.0


def _losses(step: int) -> dict[str, float]:
    return {"loss": 1 / (step + 1), "mlm_loss": 0.1 * step}


@pytest.mark.parametrize("killed", [0, 3, 5])
def test_resumed_run_logs_the_same_means(killed: int) -> None:
    loader: Any = _Loader()
    unbroken = Progress(100, 8, 0)
    for step in range(7):
        unbroken.add(_losses(step), skipped=step == 2)
    first = Progress(100, 8, 0)
    for step in range(killed):
        first.add(_losses(step), skipped=step == 2)
    resumed = Progress(100, 8, killed, json.loads(json.dumps(first.state)))
    for step in range(killed, 7):
        resumed.add(_losses(step), skipped=step == 2)
    one, other = unbroken.flush(7, loader), resumed.flush(7, loader)
    assert {n: v for n, v in one.items() if "/" not in n} == {n: v for n, v in other.items() if "/" not in n}
    assert one["loss"] == pytest.approx(sum(1 / (step + 1) for step in range(7) if step != 2) / 6)
    assert unbroken.state == {"sums": {}, "count": 0}, "a line begins anew"


@pytest.mark.parametrize(("seconds", "shown"), [(59.6, "1:00"), (754, "12:34"), (3661, "1:01:01"), (90000, "25:00:00")])
def test_line_shows_step_losses_speed_and_time_left(seconds: float, shown: str) -> None:
    times = {"time/clips_per_s": 123.4, "time/data_wait_ratio": 0.034, "time/eta_s": seconds}
    metrics = {"loss": 2.5, "mlm_loss": 1.25, "vtm_loss": 1.25, "vtm_accuracy": 0.5} | times
    assert metrics_line(metrics, 11, 40, 10, {"vtm_chance": 0.512}) == (
        "step 11/40 (epoch 2) | loss 2.5: mlm 1.25  vtm 1.25 | accuracy (chance): vtm 50.0% (51.2%)"
        f" | 123 clips/s, waiting 3% | {shown} left"
    )


def test_time_left_is_averaged_over_several_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = 100.0, 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    loader: Any = _Loader()
    progress = Progress(1000, 8, 0)
    for step in range(10, 101, 10):
        now += 60.0 if step == 100 else 10.0  # the last one had an evaluation in it
        left = progress.flush(step, loader)["time/eta_s"]
    assert left == pytest.approx(900 * 130 / 80)
    for step in range(110, 501, 10):
        now += 10.0
        left = progress.flush(step, loader)["time/eta_s"]
    assert left == pytest.approx(500), "of long ago nothing is left"


def test_lines_are_five_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress, due = Progress(1000, 8, 0), []
    for _ in range(12):
        due.append(progress.is_line_due())
        now += 1.0
    assert [second for second, is_due in enumerate(due) if is_due] == [0, 5, 10]


def test_extra_point_at_the_end_does_not_change_the_next_mean() -> None:
    unbroken, stopped = Progress(9, 4, 0), Progress(3, 4, 0)
    loader: Any = _Loader()
    for progress in (unbroken, stopped):
        for loss in (1.0, 2.0, 6.0):
            progress.add({"loss": loss})
    assert stopped.flush(3, loader, keep=True)["loss"] == 3.0
    continued = Progress(9, 4, 3, json.loads(json.dumps(stopped.state)))
    for progress in (unbroken, continued):
        progress.add({"loss": 11.0})
    assert continued.flush(4, loader)["loss"] == unbroken.flush(4, loader)["loss"] == 5.0
    assert continued.state == {"sums": {}, "count": 0}


@pytest.mark.parametrize(("epochs", "points"), [(12, 24), (100, 20), (1, 2)])
def test_short_run_still_logs_twenty_points(epochs: int, points: int) -> None:
    schedule = ScheduleConfig(epochs=epochs, log_every_steps=20)
    due = Cadence(schedule, steps_per_epoch=2, num_steps=2 * epochs)
    assert sum(map(due.log, range(1, 2 * epochs + 1))) == points


def test_long_run_logs_as_often_as_it_is_set_to() -> None:
    due = Cadence(ScheduleConfig(epochs=10, log_every_steps=20), steps_per_epoch=100, num_steps=1000)
    assert [step for step in range(1, 101) if due.log(step)] == [20, 40, 60, 80, 100]


def test_line_of_an_evaluation_shows_chance_beside_accuracies_and_other_figures() -> None:
    metrics = {"loss": 5.5, "mlm_loss": 4.9, "mlm_accuracy": 0.13, "mlm_chance": 0.08, "code_usage": 0.98}
    assert evaluation_line(metrics, 1, 12) == (
        "epoch 1/12 val | loss 5.5: mlm 4.9 | accuracy (chance): mlm 13.0% (8.0%) | code_usage 0.98"
    )
    assert evaluation_line({"loss": 2.5, "score": 0.5}, 1, 1) == "epoch 1/1 val | loss 2.5 | score 0.5"
    assert evaluation_line({"word_loss": 31.17, "word_map": 0.208, "word_map_chance": 0.069}, 4, 8) == (
        "epoch 4/8 val | word 31.17 | word_map 0.208 (0.069)"
    )


def test_ten_seconds_without_a_line_are_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = Progress(1000, 8, 0)
    assert not progress.is_silent()
    now += 11
    assert [progress.is_silent(), progress.is_silent()] == [True, False]
    assert progress.is_line_due(), "metrics are shown all the same"
    now += 9
    assert not progress.is_silent()


def test_what_takes_longer_than_ten_seconds_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("evilm.train.progress._SILENCE_S", 0.01)
    monkeypatch.setattr("evilm.train.progress._LOOK_S", 0.01)
    caplog.set_level("INFO", logger="evilm")
    progress = Progress(40, 8, 0)

    def wait_for(line: str) -> None:
        while line not in caplog.messages:
            time.sleep(0.01)

    with progress.reported():
        wait_for("step 0/40 | first step")
        progress.reached(3)
        wait_for("step 3/40")
        with progress.paused("evaluating"):
            wait_for("step 3/40 | evaluating")
    caplog.clear()
    time.sleep(0.1)
    assert len(caplog.messages) <= 1, "nothing is logged once the block has ended, but for a line under way"


def test_rates_leave_out_what_is_not_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress, timer, loader = Progress(1000, 8, 0), StepTimer(torch.device("cpu")), _Loader()
    for _ in range(2):
        timer.mark("wait")
        now += 1
        timer.mark("optimizer")
        with progress.paused("evaluating"):
            now += 50  # an evaluation
        timer.skip()
        now += 0.5
    timer.mark("wait")
    assert progress.flush(2, loader)["time/clips_per_s"] == pytest.approx(16 / 3)  # type: ignore[arg-type]
    assert timer.read() == pytest.approx({"wait": 1.0, "optimizer": 2.0})
