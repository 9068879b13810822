"""Tables 1-4 of the paper, with the scores under a root."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evilm.config.items import TASK_NAMES
from evilm.config.models import EViLMConfig
from evilm.config.stages import Report
from evilm.errors import ConfigError
from evilm.eval.item_figures import share
from evilm.eval.paper_tables import OurRow, our_rows, published, render_tables
from evilm.eval.report import report
from evilm.eval.task_scores import read_scores
from evilm.io import storage
from evilm.model.cost import parameter_rows
from evilm.model.evilm_model import EViLMModel


def write_scores(root: Path, folder: str, task: str, **facts: object) -> dict[str, float]:
    """Write a benchmark's summary of 40 items, 30 of them right, and return its first figure."""
    figure = share(np.arange(40) < 30, [f"video{n}" for n in range(40)], 0.2).as_dict()
    names = ("t2v_r1", "t2v_r5", "t2v_r10") if task.endswith("retrieval") else ("accuracy",)
    about = {"task": task, "model": str(root / "model"), "split": "test", "zero_shot": False, "leak": False}
    counts = {"coverage": 1.0, "ceiling": 0.9, "num_items": 40, "metrics": dict.fromkeys(names, figure)}
    storage.write_json(str(root / folder / "summary.json"), about | counts | facts)
    return figure


def rows_of(root: Path) -> list[OurRow]:
    return our_rows(read_scores(str(root)))


def cells(text: str, table: int, begin: str) -> list[list[str]]:
    """Return the rows of a table whose first cell begins so."""
    part = text.split(f"## Table {table}:")[1].split("## Table")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0].startswith(begin)]


def test_published_numbers_are_in_their_rows(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    text = render_tables(rows_of(tmp_path))
    for table in published():
        for row in table.rows:
            (shown,) = [r for r in cells(text, table.number, row.model) if row.gflops == r[2]][:1]
            assert shown[1:3] == [row.parameters, row.gflops]
            assert shown[3:-1] == [row.figures.get(column, "") for column in table.columns]
            assert shown[-1] == ("as published: " if row.peer else "") + row.source
            assert row.note in text


def test_published_figures_belong_to_a_column_and_a_known_task():
    for table in published():
        assert set(table.columns.values()) - {""} <= set(TASK_NAMES)
        assert {column for row in table.rows for column in row.figures} <= set(table.columns)


def test_numbers_of_the_paper_are_those_printed():
    rows = {table.number: {row.model: list(row.figures.values()) for row in table.rows} for table in published()}
    assert rows[1]["E-ViLM (paper)"] == ["84.7", "94.2", "60.7", "89.2", "39.3", "41.5"]
    assert rows[2]["E-ViLM (paper)"] == ["27.0 / 51.7 / 64.4", "23.8 / 44.9 / 53.2"]
    assert (rows[3]["E-ViLM (paper)"], rows[3]["E-ViLM without MVM (paper)"]) == (["41.6", "41.9"], ["39.6", "39.7"])
    assert rows[4]["E-ViLM (paper)"] == ["65.2", "6.6 / 18.2 / 26.9", "8.8 / 23.0 / 32.6"]


def test_our_row_has_value_and_interval_and_is_empty_elsewhere(tmp_path: Path):
    figure = write_scores(tmp_path, "msvd-qa-scores", "msvd-qa")
    text = render_tables(rows_of(tmp_path))
    low, high = 100 * figure["low"], 100 * figure["high"]
    score = f"75.0 [{low:.1f}, {high:.1f}], test, 40 items"
    assert cells(text, 1, "**") == [["**evilm, this root**", *[""] * 7, score, "fine-tuned"]]
    assert cells(text, 2, "**") == [["**evilm**", *[""] * 4, "not scored yet"]]


def test_retrieval_cell_has_three_recalls(tmp_path: Path):
    write_scores(tmp_path, "didemo-retrieval-scores", "didemo-retrieval", split="val")
    ((*_, cell, how),) = cells(render_tables(rows_of(tmp_path)), 2, "**")
    assert (cell.count("75.0 ["), cell.count(" / "), cell.endswith(", val, 40 items"), how) == (
        3,
        2,
        True,
        "fine-tuned",
    )


def test_leak_and_coverage_are_marked(tmp_path: Path):
    write_scores(tmp_path, "msrvtt-qa-scores", "msrvtt-qa", leak=True, coverage=0.9312)
    ((*_, cell, _, _),) = cells(render_tables(rows_of(tmp_path)), 1, "**")
    assert cell.endswith(", test, 40 items, LEAKED, coverage 93.1 %")


def test_models_are_told_apart_by_folder_and_training(tmp_path: Path):
    storage.write_json(str(tmp_path / "scratch" / "run.json"), {"settings": {"from_scratch": True}})
    storage.write_json(str(tmp_path / "scratch" / "task.json"), {"task": "msvd-qa"})
    storage.write_json(str(tmp_path / "retrieval" / "task.json"), {"task": "msrvtt-retrieval"})
    write_scores(tmp_path, "msvd-qa-scores", "msvd-qa")
    write_scores(tmp_path, "msvd-qa-scores-scratch", "msvd-qa", model=str(tmp_path / "scratch"))
    write_scores(tmp_path, "tgif-frame-scores", "tgif-frame", zero_shot=True)
    write_scores(tmp_path, "msrvtt-mc-scores-zero", "msrvtt-mc", zero_shot=True)
    write_scores(tmp_path, "msrvtt-mc-scores", "msrvtt-mc", zero_shot=True, model=str(tmp_path / "retrieval"))
    write_scores(tmp_path, "hmdb51-scores", "hmdb51", zero_shot=True, probe={"feature": "cls"})
    rows = [(row.table, row.name, row.how, sorted(row.scores)) for row in rows_of(tmp_path)]
    assert sorted(rows) == [
        (1, "evilm, this root", "fine-tuned", ["MSRVTT MC", "MSVD-QA"]),
        (1, "evilm, this root", "zero-shot", ["TGIF frame"]),
        (1, "evilm, this root: scratch", "fine-tuned from scratch", ["MSVD-QA"]),
        (3, "evilm, this root", "strict linear probe", ["HMDB51"]),
        (4, "evilm, this root: zero", "zero-shot", ["MSRVTT MC"]),
    ]
    assert "items, fine-tuned on msrvtt-retrieval |" in render_tables(rows_of(tmp_path))


def test_the_variant_of_a_task_is_named(tmp_path: Path):
    figure = write_scores(tmp_path, "msrvtt-retrieval-7k-scores", "msrvtt-retrieval")
    (row,) = rows_of(tmp_path)
    assert row.name == "evilm, this root: 7k"
    assert row.scores["MSRVTT"].metrics["t2v_r1"]["value"] == figure["value"]


def test_the_mean_of_hmdb51s_three_splits_is_in_the_row_of_the_first(tmp_path: Path):
    for fold, value in (("", 0.4), ("-fold2", 0.5), ("-fold3", 0.45)):
        metrics = {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        for ending in ("", "-long"):
            write_scores(tmp_path, f"hmdb51{fold}-scores{ending}", "hmdb51", metrics=metrics)
    rows = cells(render_tables(rows_of(tmp_path)), 3, "**")
    cell = "40.0 [30.0, 50.0], mean of 3 splits 45.0, split 1, test, 40 items"
    assert sorted((name, shown) for name, _, _, shown, *_ in rows) == [
        ("**evilm, this root**", cell),
        ("**evilm, this root: long**", cell),
    ]
    write_scores(tmp_path, "hmdb51-fold3-scores", "hmdb51", leak=True)
    names = [row.name.removeprefix("evilm, this root") for row in rows_of(tmp_path)]
    assert sorted(names) == ["", ": fold2", ": fold3", ": long"], "a leaked split stays apart"


def test_parameters_and_macs_are_counted_from_the_models_config(tmp_path: Path):
    config = EViLMConfig(input_px=64, dim=32, decoder_layers=1, decoder_heads=2, num_codes=32)
    student = EViLMModel(config, pretrained_video=False)
    student.save_pretrained(str(tmp_path / "model"))
    write_scores(tmp_path, "hmdb51-scores", "hmdb51")
    (row,) = rows_of(tmp_path)
    assert row.parameters == f"{parameter_rows(student)['total'] / 1e6:.3g}M"
    assert row.gmacs.endswith(" GMACs")
    assert float(row.gmacs.split()[0]) > 0


def test_damaged_summaries_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_scores(tmp_path, "msvd-qa-scores", "msvd-qa", metrics={"accuracy": "high"})
    (tmp_path / "hmdb51-scores").mkdir()
    (tmp_path / "hmdb51-scores" / "summary.json").write_text("{")
    assert rows_of(tmp_path) == []
    assert "left out of the tables" in caplog.text


def test_empty_root_is_rejected(tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing at"):
        rows_of(tmp_path / "none")
    with pytest.raises(ConfigError, match="nothing at"):
        report(Report(root=str(tmp_path / "none"), tables=True))


def test_report_prints_and_writes_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_scores(tmp_path, "msvd-qa-scores", "msvd-qa")
    write_scores(tmp_path, "hmdb51-scores", "hmdb51", leak=True)
    summary = report(Report(root=str(tmp_path), tables=True))
    out = tmp_path / "tables"
    assert {**summary, "seconds": 0} == {"root": str(tmp_path), "out": str(out), "rows": 2, "seconds": 0}
    assert (out / "tables.md").read_text() in capsys.readouterr().out
    with Image.open(io.BytesIO((out / "tables.png").read_bytes())) as picture:
        width, height = picture.size
    assert 1000 <= width <= 2000
    assert 700 <= height <= 1500
    assert report(Report(root=str(tmp_path), tables=True, out=str(tmp_path / "x")))["out"] == str(tmp_path / "x")


def test_scores_on_the_embedded_corpus_are_marked(tmp_path: Path):
    write_scores(tmp_path, "msvd-qa-scores", "msvd-qa", embedded=True)
    write_scores(tmp_path, "hmdb51-scores", "hmdb51", embedded=False)
    text = render_tables(rows_of(tmp_path))
    assert text.count("embedded corpus, not comparable") == 1
