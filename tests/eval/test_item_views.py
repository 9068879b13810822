"""Scores of an item are means over random choices of the stored frames."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from evilm.config.finetune_command import HeadConfig
from evilm.eval.item_scoring import ItemJob, ItemScorer
from evilm.model.task_model import TaskSpec
from helpers.item_models import VOCAB, item_objective
from helpers.item_tables import questions, write_items
from helpers.stored_frames import store_frames


def scorer(folder: Path, kind: str, views: int, clips: int = 3) -> ItemScorer:
    labels = ("red", "blue") if kind == "answer" else ()
    model = item_objective(kind, labels).model
    if not (folder / "model").exists():
        model.save_pretrained(str(folder / "model"))
        VOCAB.save(str(folder / "model" / "vocab"))
        items = [dataclasses.replace(item, clip_id=f"train{item.clip_id[1:]}") for item in questions(clips)]
        write_items(folder / "items", kind, items, labels)
        store_frames(folder / "frames", {"train": [[clips]]}, num_frames=9)
    spec = TaskSpec("t", kind, labels, HeadConfig(hidden=8))
    places = (str(folder / "frames"), str(folder / "items"), "train")
    return ItemScorer(ItemJob(str(folder / "model"), spec, *places, batch_items=64, views=views))


@pytest.mark.parametrize("kind", ["answer", "retrieval"])
def test_views_are_averaged(tmp_path: Path, kind: str) -> None:
    first = {"batch": np.array([0])}
    one = scorer(tmp_path, kind, 1)(first)
    three = scorer(tmp_path, kind, 3)
    mean = three(first)
    own = []
    for loader in list(three._loaders):
        three._loaders = [loader]
        own.append(three(first))
    name = "probabilities" if kind == "answer" else "video"
    assert len({view[name].tobytes() for view in [one, *own]}) == 4, "each view shows other frames"
    if kind == "retrieval":
        assert np.allclose(np.linalg.norm(mean["video"], axis=1), 1, atol=1e-6)
        expected = np.mean([view["video"] for view in own], axis=0)
        assert np.allclose(mean["video"], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
        assert np.allclose(mean["text"], one["text"], atol=1e-6)
    else:
        by_label = [np.take_along_axis(view[name], np.argsort(view["top"], 1), 1) for view in [mean, *own]]
        assert np.allclose(by_label[0], np.mean(by_label[1:], axis=0), atol=1e-6)
