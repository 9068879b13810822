"""Training with its output on an object store: stopped, a checkpoint cut short, gone on with, the same numbers."""

from pathlib import Path

import audit
import pytest

from evilm.io import storage
from evilm.train.attempts import lineage
from evilm.train.checkpoint_manager import CHECKPOINTS, newest_first
from evilm.train.preemption import Stopped
from helpers.faults import all_clips, train
from helpers.workflow import Workflow, losses


@pytest.mark.long
@pytest.mark.faults
def test_training_on_s3_continues_after_sigterm(
    small_workflow: Workflow, unbroken: Path, s3_bucket: str, tmp_path: Path
) -> None:
    out = f"{s3_bucket}/model"
    with pytest.raises(Stopped) as stopped:
        train(small_workflow, out, (0, 7, "terminate driver"))
    assert stopped.value.exit_code == 143, "SIGTERM"
    assert newest_first(out) == ["step_00000008-001", "step_00000006-001"]
    newest = storage.join(out, CHECKPOINTS, newest_first(out)[0], "weights.safetensors")
    storage.write_bytes(newest, storage.read_bytes(newest)[:-1])
    train(small_workflow, out)
    assert lineage(out) == [(1, 0, 6), (2, 6, None)], "from the checkpoint before the damaged one"
    assert newest_first(out) == ["step_00000016-002", "step_00000015-002"]
    (report,) = audit.check(out, all_clips(small_workflow))
    assert report.exactly_once
    assert audit.read(out) == audit.read(str(unbroken))
    for name in ("metrics.jsonl", "model.safetensors"):
        (tmp_path / name).write_bytes(storage.read_bytes(storage.join(out, name)))
    assert losses(tmp_path) == losses(unbroken)
    assert (tmp_path / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
