"""Each clip once in an epoch and the same numbers, through kills and other numbers of workers."""

from pathlib import Path

import audit
import pytest

from evilm.errors import ClusterError
from evilm.train.attempts import attempts, lineage
from helpers.faults import all_clips, assert_close, train
from helpers.workflow import Workflow, losses


@pytest.mark.long
@pytest.mark.faults
def test_changing_worker_counts_see_each_clip_once(small_workflow: Workflow, unbroken: Path, tmp_path: Path) -> None:
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
    """With dropout, which is drawn by micro-batch; four micro-batches a step."""
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
def test_uneven_batches_neither_skip_nor_repeat_clips(small_workflow: Workflow, tmp_path: Path) -> None:
    out = tmp_path / "model"
    train(small_workflow, out, (1, 5, "kill"), workers=2, **{"schedule.batch_clips": 6, "schedule.eval_clips": 0})
    steps = audit.read_steps(str(out))
    assert [len(clips) for clips in steps.values()] == [6] * 9 + [5] * 2
    (report,) = audit.check(str(out), audit.split_clips(str(out)))
    assert (report.exactly_once, report.clips) == (True, 64)
