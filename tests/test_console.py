"""Console output: plain lines on a pipe, a progress bar on a terminal, and no failure on a console without UTF-8."""

import json
import os
import pty
import re
import subprocess
import sys

_SCRIPT = """
import logging, sys, time
from evilm.console import announce, log_to_console, print_summary
log_to_console()
log = logging.getLogger("evilm.test")
log.info("frames: 600 of 2,400 clips, 2 of 10 shards, 3.1 clips/s, 45 s left")
print("12:00:00 step 20/756 (epoch 1) | loss 12.22", file=sys.stderr)  # as Ray prints what a worker logs
log.warning("read https://user:secret@host/x")
with announce("waiting"):
    pass
print("12:00:00 step 756/756 (epoch 12) | loss 1.25", file=sys.stderr)
print_summary({"out": "/runs/é", "num_clips": 2400, "val": {"loss": 1.23456}, "inputs": {"a": "b"},
    "metrics": {"t2v_r10": {"value": 0.3375, "chance": 0.0417}, "accuracy": {"value": 0.5, "chance": None}}})
"""


def run_script(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=os.environ | environment, capture_output=True, text=True, check=True
    )


def test_pipe_gets_plain_lines_and_json_last() -> None:
    shown = run_script(PYTHONIOENCODING="utf-8")
    assert json.loads(shown.stdout)["out"] == "/runs/é"
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in shown.stderr.splitlines()]
    assert lines == [
        "frames: 600 of 2,400 clips, 2 of 10 shards, 3.1 clips/s, 45 s left",
        "step 20/756 (epoch 1) | loss 12.22",
        "read https://host/x",
        "waiting",
        "step 756/756 (epoch 12) | loss 1.25",
    ]


def test_console_without_utf8_still_gets_valid_json() -> None:
    shown = run_script(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "\\u00e9" in shown.stdout
    assert json.loads(shown.stdout)["out"] == "/runs/é"


def test_terminal_gets_a_bar_and_a_short_summary() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", _SCRIPT], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the end of a terminal, on Linux
            pass
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "━" in text
    assert "600 of 2,400 clips" in text
    assert "20 of 756 (epoch 1) | loss 12.22" in text
    assert "\x1b[33m" in text, "warnings are yellow"
    assert "secret" not in text
    *_, last = text.split("step 756/756")
    assert "num_clips: 2,400" in last
    assert "val: loss 1.235" in last
    assert "metrics: t2v_r10 0.3375 (chance 0.0417)  accuracy 0.5" in last
    assert "full summary: /runs/é/summary.json" in last
    assert "{" not in last
