"""Each clip once in an epoch and the same numbers, through kills and other numbers of workers."""

import json
import shutil
from pathlib import Path
from typing import Any

import audit
import pytest
from faults import all_clips, assert_close, losses, train

from evilm.errors import ClusterError
from evilm.train.attempts import attempts, lineage

Workflow = tuple[Path, dict[str, Any]]


@pytest.mark.long
@pytest.mark.faults
def test_two_workers_then_one_then_two_again_see_each_clip_once(
    small_workflow: Workflow, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    with pytest.raises(ClusterError):  # told to end at step 4, which Ray makes up for; then a kill, which it may not
        train(small_workflow, out, (1, 4, "terminate"), (1, 8, "kill"), workers=2, **{"cluster.max_failures": 1})
    with pytest.raises(ClusterError):
        train(small_workflow, out, (0, 12, "kill"), workers=1, **{"cluster.max_failures": 0})
    train(small_workflow, out, workers=2)
    starts = attempts(str(out))
    assert [attempt.world for attempt in starts] == [2, 2, 1, 2]
    assert starts[1].start_step in (5, 6, 7), "SIGTERM cost no step"
    assert len(lineage(str(out))) == 4
    (report,) = audit.check(str(out), all_clips(small_workflow))
    assert (report.exactly_once, report.clips, report.finished) == (True, 64, True)
    assert audit.read(str(out)) == audit.read(str(unbroken)), "the same clips in the same steps"
    assert_close(losses(unbroken), losses(out))


@pytest.mark.long
def test_one_two_and_four_workers_give_the_same_losses_over_fifty_steps(
    small_workflow: Workflow, tmp_path: Path
) -> None:
    """With dropout, which is drawn by part of a step; four parts each."""
    fifty = {"schedule.epochs": 4, "schedule.max_steps": 50, "schedule.checkpoint_every_steps": 50}
    for workers in (1, 2, 4):
        settings = fifty | {"schedule.gradient_accumulation_steps": 4 // workers, "schedule.eval_clips": 0}
        train(small_workflow, tmp_path / str(workers), workers=workers, **settings)
    one = losses(tmp_path / "1")
    assert list(one) == list(range(1, 51))
    for workers in (2, 4):
        worst = assert_close(one, losses(tmp_path / str(workers)), rel=5e-3)
        print(f"{workers} workers against one, 50 steps: losses differ by at most {worst:.1e} of themselves")


@pytest.mark.long
@pytest.mark.faults
def test_a_batch_that_does_not_divide_the_epoch_costs_no_clip_and_repeats_none(
    small_workflow: Workflow, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(small_workflow, out, (1, 5, "kill"), workers=2, **{"schedule.batch_clips": 6, "schedule.eval_clips": 0})
    steps = audit.read_steps(str(out))
    assert [len(clips) for clips in steps.values()] == [6] * 9 + [5] * 2
    (report,) = audit.check(str(out), audit.split_clips(str(out)))
    assert (report.exactly_once, report.clips) == (True, 64)


@pytest.fixture
def audited(small_workflow: Workflow) -> Path:
    """The output of a training that was audited: five epochs of four steps of 16 clips. Read it only."""
    return small_workflow[0] / "model"


def test_an_audit_finds_what_was_seen_twice_or_missed(audited: Path, small_workflow: Workflow) -> None:
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


def test_an_audit_says_what_was_padded_or_left_out(audited: Path) -> None:
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


def test_the_command_reads_the_split_from_the_frames(
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
