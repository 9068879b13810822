"""How a step's time is measured: the trace of some steps."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from evilm.train.timing import StepProfiler


def _run(out: Path, steps: range, made: range) -> None:
    profiler = StepProfiler(str(out), steps, torch.device("cpu"))
    for step in made:
        profiler.before(step)
        torch.ones(4) @ torch.ones(4)
        profiler.after(step)
    profiler.close()


@pytest.mark.parametrize(
    ("steps", "made", "name"),
    [
        (range(1, 3), range(5), "steps_1-3"),
        (range(2, 50), range(5), "steps_2-5"),  # the training ends first
        (range(1, 4), range(2, 5), "steps_2-4"),  # resumed within
    ],
)
def test_trace_holds_the_steps_that_were_made(tmp_path: Path, steps: range, made: range, name: str) -> None:
    _run(tmp_path, steps, made)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == f"{name}.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    first, last = map(int, name.removeprefix("steps_").split("-"))
    assert sum(event.get("name") == "aten::dot" for event in events) == last - first


def test_warns_if_no_step_was_traced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path, range(20, 25), range(5))
    assert "none of --profile-steps 20:25" in caplog.text
    assert not (tmp_path / "profile").exists()
    caplog.clear()
    _run(tmp_path, range(0), range(5))
    assert not caplog.text
