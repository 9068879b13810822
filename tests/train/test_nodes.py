"""A simulated cluster that loses a node and gets another: the run goes on with what there is, exactly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import audit
import pytest
from faults import all_clips, assert_close, losses

from evilm.train.attempts import attempts, lineage


@pytest.mark.long
@pytest.mark.faults
def test_a_notice_a_lost_node_and_a_new_one_cost_no_clip_and_change_no_number(
    small_workflow: tuple[Path, dict[str, Any]], unbroken: Path, tmp_path: Path
) -> None:
    root, summary = small_workflow
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    script = Path(__file__).parents[1] / "nodes.py"
    out = tmp_path / "model"
    command = [sys.executable, str(script), str(root), str(tmp_path / "summary.json"), str(out)]
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
