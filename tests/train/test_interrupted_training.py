"""Faults in the middle of a training: signals, damaged checkpoints, NaN losses."""

import json
import shutil
from pathlib import Path

import audit
import pytest

from evilm.errors import ClusterError, EvilmError
from evilm.train.attempts import attempts, lineage
from evilm.train.checkpoint_manager import newest_first
from evilm.train.preemption import Stopped
from helpers.faults import all_clips, some_clip, train
from helpers.workflow import Workflow, losses

STEPS = 16
pytestmark = pytest.mark.faults


@pytest.fixture
def interrupted(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training whose worker was killed after step 8, and that got Ctrl-C between steps 11 and 12."""
    out = tmp_path_factory.mktemp("interrupted") / "model"
    with pytest.raises(Stopped, match="checkpoint saved at step 12; run the same command again") as stopped:
        train(small_workflow, out, (0, 8, "kill"), (0, 11, "interrupt driver"))
    assert stopped.value.exit_code == 130
    return out


def _restart(out: Path) -> int:
    """The step from which the replacement of the killed worker went on."""
    first, second, *_ = attempts(str(out))
    assert first.start_step == 0
    assert second.start_step in (3, 6), "the newest checkpoint, or the one before where it was not complete yet"
    return second.start_step


@pytest.mark.long
def test_damaged_newest_checkpoint_is_skipped(
    small_workflow: Workflow, unbroken: Path, interrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    shutil.copytree(interrupted, out)
    newest, before = newest_first(str(out))
    assert (newest, before) == ("step_00000012-002", "step_00000009-002")
    weights = out / "checkpoints" / newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    registry = out / "checkpoints" / "checkpoint_manager_snapshot.json"
    registry.write_text(registry.read_text()[:40])  # as a kill may leave Ray's own list
    train(small_workflow, out)
    start = _restart(out)
    assert lineage(str(out)) == [(1, 0, start), (2, start, 9), (3, 9, None)]
    assert losses(out) == losses(unbroken)
    assert newest_first(str(out)) == ["step_00000016-003", "step_00000015-003"], "the last two; the best is the last"


@pytest.mark.long
@pytest.mark.restart
def test_killed_worker_and_ctrl_c_cost_no_step(small_workflow: Workflow, unbroken: Path, interrupted: Path) -> None:
    from mlflow import MlflowClient

    run_id = json.loads((interrupted / "mlflow.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{interrupted.parent / 'mlflow.db'}")
    assert client.get_run(run_id).info.status == "KILLED"
    assert newest_first(str(interrupted))[0] == "step_00000012-002"
    assert not list(interrupted.glob("stop*.json"))

    train(small_workflow, interrupted)
    start = _restart(interrupted)
    assert lineage(str(interrupted)) == [(1, 0, start), (2, start, 12), (3, 12, None)], "Ctrl-C cost no step"
    assert losses(interrupted) == losses(unbroken)
    assert (interrupted / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == list(range(1, STEPS + 1))
    (report,) = audit.check(str(interrupted), all_clips(small_workflow))
    assert report.exactly_once
    assert audit.read(str(interrupted)) == audit.read(str(unbroken))


@pytest.mark.long
def test_nan_loss_stops_or_is_skipped_by_all_workers(small_workflow: Workflow, tmp_path: Path) -> None:
    out, clip = tmp_path / "model", some_clip(small_workflow)
    with pytest.raises(EvilmError, match=rf"step \d+: mvm loss is not finite, at clips .*{clip}.*nonfinite skip") as e:
        train(small_workflow, out, nan_at=clip, workers=2)
    assert not isinstance(e.value, ClusterError), "no failure of the cluster, and not tried again"
    assert "\n" not in str(e.value)
    summary = train(small_workflow, out, nan_at=clip, workers=2, **{"schedule.nonfinite": "skip"})
    assert summary["skipped_steps"] == 1
    (report,) = [json.loads(line) for line in (out / "nonfinite.jsonl").read_text().splitlines()]
    assert clip in report["clip_ids"]
    assert len(report["clip_ids"]) == 2, "the clips of its micro-batch"
    with_loss = {step for step, metrics in losses(out).items() if "train/loss" in metrics}
    assert set(range(1, STEPS + 1)) - with_loss == {report["step"]}
