"""What a person watches: lines for a job log, the same through a restart."""

import json
import math
from typing import Any

import pytest

from evilm.train.progress import Progress, metrics_line
from evilm.train.validation import better


class _Feed:
    wait_s = 0.0


def _losses(step: int) -> dict[str, float]:
    return {"loss": 1 / (step + 1), "mlm_loss": 0.1 * step}


@pytest.mark.parametrize("killed", [0, 3, 5])
def test_a_resumed_run_logs_the_means_of_the_unbroken_one(killed: int) -> None:
    loader: Any = _Feed()
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
def test_a_line_says_where_it_is_and_how_long_it_takes(seconds: float, shown: str) -> None:
    times = {"time/clips_per_s": 123.4, "time/data_wait_ratio": 0.034, "time/eta_s": seconds}
    metrics = {"loss": 2.5, "mlm_loss": 1.25, "vtm_loss": 1.25, "vtm_accuracy": 0.5} | times
    assert metrics_line(metrics, 11, 40, 10) == (
        "step 11/40 (epoch 2) | loss 2.5: mlm 1.25  vtm 1.25 | accuracy: vtm 50.0% | 123 clips/s, waiting 3%"
        f" | {shown} left"
    )


def test_the_time_left_is_told_from_more_than_the_last_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = 100.0, 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    loader: Any = _Feed()
    progress = Progress(1000, 8, 0)
    for step in range(10, 101, 10):
        now += 60.0 if step == 100 else 10.0  # the last one had an evaluation in it
        left = progress.flush(step, loader)["time/eta_s"]
    assert left == pytest.approx(900 * 130 / 80)
    for step in range(110, 501, 10):
        now += 10.0
        left = progress.flush(step, loader)["time/eta_s"]
    assert left == pytest.approx(500), "of long ago nothing is left"


def test_lines_come_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress, due = Progress(1000, 8, 0), []
    for _ in range(12):
        due.append(progress.is_line_due())
        now += 1.0
    assert [second for second, is_due in enumerate(due) if is_due] == [0, 5, 10]


def test_nan_is_never_the_best() -> None:
    assert better({"loss": math.nan}, "loss", {}) is None
    assert better({"loss": math.inf}, "loss", {}) is None
    assert better({"loss": 2.0}, "loss", {"value": math.nan}) == 2.0, "of a run of before"
    assert better({"loss": 2.0}, "loss", {"value": 1.0}) is None
    assert better({"auc": 2.0}, "auc", {"value": 1.0}) == 2.0
