"""A simulated cluster that loses a node and gets another: the run goes on with what there is, exactly."""

import json
import subprocess
import sys
from pathlib import Path

import audit
import pytest

from evilm.train.attempts import attempts, lineage
from helpers.faults import all_clips, assert_close
from helpers.workflow import Workflow, losses


@pytest.mark.long
@pytest.mark.faults
def test_drained_lost_and_added_nodes_change_no_metric(
    small_workflow: Workflow, unbroken: Path, tmp_path: Path
) -> None:
    root, summary = small_workflow
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    out = tmp_path / "model"
    command = [sys.executable, "-m", "helpers.lost_nodes", str(root), str(tmp_path / "summary.json"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 16
    assert "will be taken away" in done.stderr + done.stdout
    assert [(start.start_step, start.world) for start in attempts(str(out))][:2] == [(0, 2), (4, 1)], (
        "from the checkpoint that the notice led to"
    )
    assert lineage(str(out))[-1][0] == 3
    assert attempts(str(out))[-1].world == 2, "the new node is used"
    (report,) = audit.check(str(out), all_clips(small_workflow))
    assert report.exactly_once
    assert audit.read(str(out)) == audit.read(str(unbroken))
    assert_close(losses(unbroken), losses(out))
