"""Training with its output on an object store: stopped, a checkpoint cut short, gone on with, the same numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import all_clips, losses

from evilm import storage
from evilm.train import audit
from evilm.train.attempts import lineage
from evilm.train.keeper import newest_first


@pytest.mark.slow
def test_a_training_on_an_object_store_is_stopped_and_goes_on(
    small_workflow: tuple[Path, dict[str, Any]], unbroken: Path, s3_bucket: str, tmp_path: Path
) -> None:
    root, summary = small_workflow
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    script, out = Path(__file__).parents[1] / "remote.py", f"{s3_bucket}/model"
    command = [sys.executable, str(script), str(root), str(tmp_path / "summary.json"), out, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stopped = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert stopped == {"exit_code": 143, "checkpoints": ["step_00000008-001", "step_00000006-001"]}, "SIGTERM"
    assert "step_00000008-001 can't be used: weights.safetensors has" in done.stderr
    assert lineage(out) == [(1, 0, 6), (2, 6, None)], "from the checkpoint before the damaged one"
    assert newest_first(out) == ["step_00000016-002", "step_00000015-002"]
    (report,) = audit.check(out, all_clips(small_workflow))
    assert report.exactly_once
    assert audit.read(out) == audit.read(str(unbroken))
    for name in ("metrics.jsonl", "model.safetensors"):
        (tmp_path / name).write_bytes(storage.read_bytes(storage.join(out, name)))
    assert losses(tmp_path) == losses(unbroken)
    assert (tmp_path / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
