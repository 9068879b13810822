"""The audit of a training: which clips it saw, and what it reports of those missed or repeated."""

import json
import shutil
from pathlib import Path

import audit
import pytest

from helpers.faults import all_clips
from helpers.workflow import Workflow


@pytest.fixture
def audited(small_workflow: Workflow) -> Path:
    """The output of a training that was audited: five epochs of four steps of 16 clips. Read it only."""
    return small_workflow[0] / "model"


def test_audit_reports_repeated_and_missing_clips(audited: Path, small_workflow: Workflow) -> None:
    clips = all_clips(small_workflow)
    assert audit.split_clips(str(audited)) == clips
    reports = audit.check(str(audited), clips)
    assert [report.exactly_once for report in reports] == [True] * 5
    other, *_ = audit.check(str(audited), [*clips, "never shown"])
    assert (other.exactly_once, other.missing) == (False, 1)
    steps = audit.read_steps(str(audited))
    plan = {"num_clips": 64, "batch_clips": 16, "steps_per_epoch": 4}
    twice = audit._check_epoch(0, plan, steps | {3: steps[2]}, clips)
    assert (len(twice.repeated), twice.missing, twice.exactly_once) == (16, 16, False)
    assert str(twice) == "epoch 1, finished: 48 clips, 32 once, 16 consumed more than once, 16 missing"
    gone = audit._check_epoch(0, plan, {step: ids for step, ids in steps.items() if step != 3}, clips)
    assert (gone.missing_steps, gone.missing, gone.exactly_once) == ((3,), 16, False)
    strange = audit._check_epoch(0, plan, steps | {3: list("abcdefghijklmnop")}, clips)
    assert (strange.foreign, strange.missing, strange.exactly_once) == (16, 16, False)


def test_audit_reports_padded_and_dropped_clips(audited: Path) -> None:
    steps, plan = audit.read_steps(str(audited)), {"num_clips": 62, "batch_clips": 16, "steps_per_epoch": 4}
    for more in ({}, {"tail": "pad"}):  # an audit of before there were even steps does not name its tail
        padded = audit._check_epoch(0, plan | more, steps | {3: steps[3][:14] + steps[0][:2]}, None)
        assert (padded.padded, padded.as_planned, padded.exactly_once, padded.clips) == (2, True, False, 62)
        assert str(padded) == (
            "epoch 1, finished: 62 clips, 60 once, 2 again, to fill the last step (schedule.tail = pad)"
        )
    even = audit._check_epoch(0, plan | {"tail": "even"}, steps | {2: steps[2][:15], 3: steps[3][:15]}, None)
    assert str(even) == "epoch 1, finished: 62 clips, each exactly once"
    plan |= {"num_clips": 66, "tail": "drop"}
    left = audit._check_epoch(0, plan, steps, None)
    assert (left.left_out, left.missing, left.as_planned, left.exactly_once) == (2, 0, True, False)
    assert str(left) == "epoch 1, finished: 64 clips, 64 once, 2 left out (schedule.tail = drop)"


def test_audit_command_compares_with_the_frames_of_the_split(
    audited: Path, small_workflow: Workflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(str(audited)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"epoch {number}, finished: 64 clips, each exactly once" for number in range(1, 6)
    ]
    out = tmp_path / "model"
    shutil.copytree(audited, out)
    plan = json.loads((out / "audit" / "plan.json").read_text())
    (out / "audit" / "plan.json").write_text(json.dumps(plan | {"frames": str(tmp_path / "gone")}))
    assert audit.main(str(out)) == 0
    assert "their ids held against no split" in capsys.readouterr().out
    assert audit.main(str(out), str(tmp_path / "gone")) == 1
    assert audit.main(str(out), str(small_workflow[0] / "frames")) == 0
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"inputs": {"frames": "0" * 16}}))
    assert audit.main(str(out), str(small_workflow[0] / "frames")) == 1
    assert "holds other frames now" in capsys.readouterr().err
