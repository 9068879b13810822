"""Answers outside the vocabulary, ceiling and coverage of the real extracts, against counts made here by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from evilm.config.stages import BuildItems
from evilm.items.build_items import build_items
from evilm.items.item_tables import ItemsManifest
from helpers.random_model import named_frames

Rows = list[tuple[str, str]]
"""Video and answer of each question."""


class Raw(NamedTuple):
    """A data set's extract, read without our readers."""

    folder: str
    rows: Callable[[Path, str], Rows]
    labels: Callable[[Path], set[str]]


def msrvtt(folder: Path, split: str) -> Rows:
    return [(f"video{row['video_id']}", row["answer"]) for row in json.loads((folder / f"{split}_qa.json").read_text())]


def msvd(folder: Path, split: str) -> Rows:
    pairs = [line.split() for line in (folder / "youtube_mapping.txt").read_text().splitlines()]
    names = {number: name for name, number in pairs}
    rows = json.loads((folder / f"{split}_qa.json").read_text())
    return [(names[f"vid{row['video_id']}"], row["answer"]) for row in rows]


def tgif(folder: Path, split: str) -> Rows:
    lines = (folder / f"{split.capitalize()}_frameqa_question.csv").read_text().splitlines()[1:]
    return [(line.split("\t")[0], line.split("\t")[2]) for line in lines]


RAW = {
    "msrvtt-qa": Raw("msrvtt_qa", msrvtt, lambda f: set(json.loads((f / "msrvtt_train_ans2label.json").read_text()))),
    "msvd-qa": Raw("msvd_qa", msvd, lambda f: set((f / "answer_set.txt").read_text().split("\n")) - {""}),
    "tgif-frame": Raw("tgif_qa", tgif, lambda f: set(json.loads((f / "frameqa_trainval_ans2label.json").read_text()))),
}


@pytest.mark.parametrize(
    ("task", "split", "percent"),
    [("msrvtt-qa", "val", 8.05), ("msrvtt-qa", "test", 6.9), ("msvd-qa", "test", 9.3), ("tgif-frame", "test", 1.75)],
)
def test_counts_of_the_extracts(shared_data: Path, tmp_path: Path, task: str, split: str, percent: float) -> None:
    raw = RAW[task]
    folder = shared_data / "annotations" / raw.folder
    rows, labels = raw.rows(folder, split), raw.labels(folder)
    outside = sum(answer not in labels for _, answer in rows)
    assert round(100 * outside / len(rows), 2) == pytest.approx(percent, abs=0.05), "as the fact sheet has it"
    config = BuildItems(task=task, annotations=str(folder), out=str(tmp_path / "items"))
    build_items(config.override({"items.max_missing_share": 1.0}))
    found = ItemsManifest.load(str(tmp_path / "items")).splits[split]
    assert (found.num_items, found.ceiling) == (len(rows), pytest.approx(1 - outside / len(rows), abs=1e-12))

    videos = sorted({video for video, _ in rows})
    missing = set(videos[::7])
    frames = named_frames(tmp_path / "frames", [video for video in videos if video not in missing])
    joined = config.override({"frames": frames.uri, "out": str(tmp_path / "joined"), "items.max_missing_share": 1.0})
    build_items(joined)
    found = ItemsManifest.load(str(tmp_path / "joined")).splits[split]
    kept = [answer for video, answer in rows if video not in missing]
    assert found.coverage == pytest.approx(1 - len(missing) / len(videos), abs=1e-12)
    assert (found.num_items, found.num_missing_items) == (len(kept), len(rows) - len(kept))
    assert found.ceiling == pytest.approx(sum(answer in labels for answer in kept) / len(kept), abs=1e-12)
