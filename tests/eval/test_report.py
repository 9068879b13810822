"""The report of a whole workflow, complete or not."""

from pathlib import Path

import pytest

from evilm.config.stages import Report
from evilm.errors import ConfigError
from evilm.eval.report import report
from evilm.io import storage
from evilm.model.metrics import proportion


def write(root: Path, stage: str, **summary: object) -> None:
    """The summary of a stage."""
    storage.write_json(str(root / stage / "summary.json"), summary)


def test_report_shows_stages_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(
        tmp_path, "corpus", clips={"val": 160, "train": 2000, "test": 240}, heldout_clips=120, words=190, seconds=61.2
    )
    write(
        tmp_path, "frames", clips={"train": 2000}, num_quarantined=3, reasons={"no_file": 3}, num_shards=8, seconds=20
    )
    write(tmp_path, "tokenizer", num_codes=256, steps=630, val={"code_usage": 0.4712, "word_map": 0.31}, seconds=100)
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "run.json").write_text("{}")
    write(tmp_path, "model", steps=504, val={"vtm_accuracy": 0.86, "vtm_chance": 0.5, "mlm_accuracy": 0.26})
    figure = proportion([1] * 60 + [0] * 40, 0.2).as_dict()  # type: ignore[arg-type]
    write(
        tmp_path,
        "benchmark",
        split="test",
        num_clips=100,
        num_choices=5,
        metrics={"choice_accuracy": figure},
        seconds=9,
    )
    summary = report(Report(root=str(tmp_path)))
    shown = capsys.readouterr().out
    assert "2,400 clips (train 2,000, val 160, test 240), 120 of unseen combinations, 190 words" in shown
    assert "3 quarantined (no_file 3)" in shown
    assert "held-out code usage 47.1%, word mAP 0.310" in shown
    assert "multiple choice of 5 60.0% (chance 20.0%, 8.2 standard errors)" in shown
    assert "held-out accuracy MLM 26.0%, VTM 86.0% (chance 50.0%)" in shown
    states = {name: stage["state"] for name, stage in summary["stages"].items()}
    assert states == {
        "corpus": "done", "frames": "done", "vocab": "not run", "tokenizer": "done", "codes": "unfinished",
        "model": "done", "benchmark": "done",
    }  # fmt: skip
    assert (summary["metrics"], summary["seconds"]) == ({"choice_accuracy": 0.6}, 190.2)


def test_report_of_an_empty_root_is_rejected(tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing at"):
        report(Report(root=str(tmp_path / "none")))


def test_damaged_summaries_do_not_stop_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "corpus", clips=7, words=None)
    write(tmp_path, "model", val={}, parameters="many")
    storage.write_json(str(tmp_path / "vocab" / "summary.json"), [1])
    summary = report(Report(root=str(tmp_path)))
    assert summary["stages"]["vocab"]["state"] == "damaged"
    assert "not run" in capsys.readouterr().out
