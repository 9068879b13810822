"""A sweep over settings of the tokenizer, one of which gives a tokenizer that is of no use."""

import csv
from pathlib import Path
from typing import Any

import pytest

from evilm.config.command_line import parse
from evilm.config.stages import Sweep
from evilm.errors import CollapseError
from evilm.sweep.run_sweep import sweep
from evilm.sweep.trial_folder import keep_input_error, read_outcome
from helpers.paths import SMALL

CODEBOOK = "--set=train_tokenizer.arch.codebook"


def _sweep(workflow: tuple[Path, dict[str, Any]], tmp_path: Path, *flags: str) -> dict[str, Any]:
    root, _ = workflow
    places = [f"--{name}={root / name}" for name in ("frames", "vocab")]
    settings = ["--schedule.epochs", "1", "--seeds", "1", "--concurrent", "1", "--no-tracking.enabled"]
    settings += ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "sweep")]
    config = parse("sweep", ["--preset", str(SMALL), *places, *settings, *flags])
    assert isinstance(config, Sweep)
    return sweep(config)


@pytest.mark.long
def test_a_collapsed_tokenizer_fails_its_own_trials_only(
    small_workflow: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train_tokenizer.arch.codebook.revive_below: [0.0, 0.1]\n")
    random = [f"{CODEBOOK}.init=random", f"{CODEBOOK}.min_usage=0.5"]
    summary = _sweep(small_workflow, tmp_path, "--space", str(space), *random)
    assert summary["trials"] == {"done": 1, "stopped": 0, "failed": 1}
    assert summary["best"]["values"] == {"train_tokenizer.arch.codebook.revive_below": 0.1}
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert "the tokenizer has collapsed" in failed["error"]


@pytest.mark.long
def test_a_collapsed_tokenizer_that_all_trials_share_ends_the_sweep(
    small_workflow: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: [1.0e-3, 2.0e-3]\n")
    with pytest.raises(CollapseError, match="the tokenizer has collapsed"):
        _sweep(small_workflow, tmp_path, "--space", str(space), f"{CODEBOOK}.min_usage=1.0",
               f"{CODEBOOK}.init=random", f"{CODEBOOK}.revive_below=0.0")  # fmt: skip


def test_a_trial_whose_inputs_can_be_built_after_all_is_tried(tmp_path: Path) -> None:
    out = str(tmp_path / "trial")
    keep_input_error(out, "the tokenizer has collapsed")
    assert read_outcome(out, 8).state == "failed"
    assert read_outcome(out, 8).error == "the tokenizer has collapsed"
    keep_input_error(out, "")
    assert read_outcome(out, 8).state == "unfinished"


def test_a_trial_that_failed_by_itself_stays_failed(tmp_path: Path) -> None:
    (tmp_path / "failed.json").write_text('{"error": "step 3: loss is not finite"}')
    keep_input_error(str(tmp_path), "")
    assert read_outcome(str(tmp_path), 8).state == "failed"
