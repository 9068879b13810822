"""Ends that are asked for, without Ray: signals that come twice, and the last moment before a node goes."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from evilm.config.resources import ClusterConfig
from evilm.io import storage
from evilm.io.ownership import claim
from evilm.train import preemption
from evilm.train.preemption import Stopped, StopSignal, run_until_asked, stop_file, torch_config

pytestmark = pytest.mark.faults


class _Clock:
    """In place of the module `time`: stands still, however slow the machine is, until a test moves it."""

    now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(preemption, "time", clock)
    return clock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_repeated_signal_within_a_moment_counts_once(number: int, tmp_path: Path, clock: _Clock) -> None:
    """GNU timeout sends it to its child and to the whole group."""

    def work() -> dict[str, int]:
        for moved_s in (1.5, 0):
            os.kill(os.getpid(), number)
            _wait_for(Path(stop_file(str(tmp_path), 1)))
            clock.now += moved_s
        time.sleep(0.3)  # the step that is under way
        return {"interrupted": 3}

    with pytest.raises(Stopped, match=r"^interrupted; checkpoint saved at step 3; run") as stopped:
        run_until_asked(work, str(tmp_path), 1)
    assert stopped.value.exit_code == 128 + number


def test_later_second_signal_stops_at_once(tmp_path: Path, clock: _Clock) -> None:
    over = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        _wait_for(Path(stop_file(str(tmp_path), 1)))
        clock.now += 2.5
        os.kill(os.getpid(), signal.SIGTERM)
        assert over.wait(60), "waited for, though the signal came again"

    with pytest.raises(Stopped, match="between two checkpoints"):
        run_until_asked(work, str(tmp_path), 1)
    over.set()
    assert not (Path(stop_file(str(tmp_path), 1))).exists()


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def test_request_to_stop_another_run_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_ASK_S", 0.01)
    owner = claim(str(tmp_path))
    watch = StopSignal(str(tmp_path), rank=0, run=owner.number)
    try:
        storage.write_json(stop_file(str(tmp_path), owner.number + 1), {})
        time.sleep(0.2)
        assert watch.flags()[0] == 0
        storage.write_json(stop_file(str(tmp_path), owner.number), {})
        while not watch.flags()[0]:
            time.sleep(0.01)
    finally:
        watch.close()
        owner.release()


def test_one_more_checkpoint_is_requested_before_a_node_is_taken(tmp_path: Path, clock: _Clock) -> None:
    watch = StopSignal(str(tmp_path), rank=0)
    try:
        assert watch.flags()[3] == 0
        watch._expect(clock.now + 5)
        assert watch.flags()[3] == 0, "so soon that the checkpoint of the notice is the last one"
        watch._expect(clock.now + 120)
        assert watch.flags(save_s=4)[3] == 0
        assert watch.flags(save_s=60)[3] == 1, "two minutes are three saves"
        assert watch.flags(save_s=60)[3] == 0, "once for each deadline"
        watch._expect(clock.now + 120)
        watch._expect(clock.now + 17.5)
        assert watch.flags()[3] == 0
        clock.now += 2.4
        assert watch.flags()[3] == 0
        clock.now += 0.2
        assert watch.flags()[3] == 1, "the earliest of the deadlines, less 15 s"
    finally:
        watch.close()


@pytest.mark.parametrize(("asked_s", "given_s"), [(60.0, 60), (0.5, 1), (604_800.0, 604_800)])
def test_workers_wait_for_each_other_as_long_as_the_settings_say(asked_s: float, given_s: int) -> None:
    assert torch_config(ClusterConfig(collective_timeout_s=asked_s)).timeout_s == given_s
