"""Ends that are asked for, without Ray: signals that come twice, and the last moment before a node goes."""

import os
import signal
import time
from pathlib import Path

import pytest

from evilm.train import preemption
from evilm.train.preemption import STOP_FILE, Stopped, StopSignal, run_until_asked

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_repeated_signal_within_a_moment_counts_once(number: int, tmp_path: Path) -> None:
    """GNU timeout sends it to its child and to the whole group."""

    def work() -> dict[str, int]:
        for _ in range(2):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        while not (tmp_path / STOP_FILE).exists():
            time.sleep(0.01)
        time.sleep(0.3)  # the step that is under way
        return {"interrupted": 3}

    with pytest.raises(Stopped, match="at step 3, which is kept") as stopped:
        run_until_asked(work, str(tmp_path))
    assert stopped.value.exit_code == 128 + number


def test_later_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_AGAIN_S", 0.3)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    began = time.monotonic()
    with pytest.raises(Stopped, match="between two checkpoints"):
        run_until_asked(work, str(tmp_path))
    assert time.monotonic() - began < 10
    assert not (tmp_path / STOP_FILE).exists()


def test_one_more_checkpoint_is_requested_before_a_node_is_taken(tmp_path: Path) -> None:
    watch = StopSignal(str(tmp_path), rank=0)
    try:
        assert watch.flags()[3] == 0
        watch._expect(time.time() + 5)
        assert watch.flags()[3] == 0, "so soon that the checkpoint of the notice is the last one"
        watch._expect(time.time() + 120)
        assert watch.flags(save_s=4)[3] == 0
        assert watch.flags(save_s=60)[3] == 1, "two minutes are three saves"
        assert watch.flags(save_s=60)[3] == 0, "once for each deadline"
        watch._expect(time.time() + 120)
        watch._expect(time.time() + 17.5)
        assert watch.flags()[3] == 0
        time.sleep(2.6)
        assert watch.flags()[3] == 1, "the earliest of the deadlines, less 15 s"
    finally:
        watch.close()
