"""What a task benchmark scores: videos that the model has seen, answers that its head can give, labels, and marks."""

import logging
from pathlib import Path

import numpy as np
import pytest

from evilm.config.finetune_command import HeadConfig
from evilm.config.stages import Benchmark
from evilm.dataloader.item_collate import ItemCollate
from evilm.errors import ConfigError
from evilm.eval.label_scores import label_figures
from evilm.eval.task_benchmark import benchmark_task
from evilm.eval.task_subject import PREDICTIONS, open_subject
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.items.item import Item
from evilm.items.item_tables import ItemsManifest
from evilm.items.seen_clips import clip_hashes, write_seen
from evilm.model.task_model import TASK_FILE, TaskSpec, task_fingerprint
from evilm.shards import FrameManifest
from evilm.text.vocab import Vocab
from helpers.item_models import item_rows
from helpers.item_tables import write_items
from helpers.random_model import make_model, named_frames

VIDEOS = ["a", "b", "c", "d"]
LABELS = ["ball", "rings", "cube"]
"""The second is of several word pieces."""


@pytest.fixture
def frames(tmp_path: Path) -> FrameManifest:
    return named_frames(tmp_path / "frames", VIDEOS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pre-trained model that has seen none of the videos."""
    make_model(tmp_path / "model")
    write_seen(str(tmp_path / "model"), np.zeros((0, 2), np.uint64))
    return tmp_path / "model"


def question_items(folder: Path, split: str = "test", answers: tuple[str, ...] = ("ball",) * 3) -> ItemsManifest:
    """One question on each of b, c and d."""
    items = [Item(split, v, v, "what moves?", answer) for v, answer in zip(VIDEOS[1:], answers, strict=True)]
    return write_items(folder, "answer", items, LABELS, "msvd-qa")


def settings(model: Path, **values: object) -> Benchmark:
    return Benchmark.model_validate({"task": "msvd-qa", "model": str(model), **values})


def test_videos_that_chose_the_best_step_are_counted_on_test_and_not_on_val(
    frames: FrameManifest, model: Path, tmp_path: Path
) -> None:
    ids, hashes = clip_hashes(frames)
    assert ids == VIDEOS
    write_seen(str(model), hashes[:1], chosen_on=hashes[1:3])
    test, val = (question_items(tmp_path / split, split) for split in ("test", "val"))
    message = r"trained on 0 and validated on 2 of the 3 videos of msvd-qa, split test \(first: b\), so"
    with pytest.raises(ConfigError, match=message):
        open_subject(settings(model), frames, test)
    subject = open_subject(settings(model, allow_leak=True), frames, test)
    assert (subject.num_seen, subject.num_chosen) == (0, 2)
    subject = open_subject(settings(model, split="val"), frames, val)
    assert (subject.num_seen, subject.num_chosen) == (0, 0)


def test_the_mlm_heads_ceiling_has_only_answers_of_one_word_piece(
    frames: FrameManifest, model: Path, tmp_path: Path
) -> None:
    items = question_items(tmp_path / "items", answers=("ball", "rings", "owl"))
    subject = open_subject(settings(model), frames, items)
    assert items.splits["test"].ceiling == pytest.approx(2 / 3)
    assert subject.ceiling == pytest.approx(1 / 3)
    table = items.read("test")
    figures = label_figures(subject, table, np.array([True, False, False]), np.array([[0], [0], [0]]))
    assert figures["accuracy"].value == pytest.approx(1 / 3)
    assert (figures["accuracy_labelled"].value, figures["accuracy_labelled"].count) == (1.0, 1)
    labels = table["label"].to_numpy().astype(np.int64)
    collated = ItemCollate(Vocab.load(str(model / "vocab")), 12, "answer", subject.pieces)(item_rows(labels=labels))
    assert (collated.labels.numpy() >= 0).tolist() == subject.can_answer(labels).tolist(), "as in training"


@pytest.mark.parametrize("labels", [("ball", "cube"), ("cube", "ball", "rings")])
def test_a_classifier_of_other_classes_of_the_task_is_not_taken_for_a_pretrained_model(
    labels: tuple[str, ...], frames: FrameManifest, model: Path, tmp_path: Path
) -> None:
    items = write_items(
        tmp_path / "items", "label", [Item("test", "a", "a", "", "ball")], ["ball", "cube", "rings"], "kinetics-400"
    )
    config = settings(model, task="kinetics-400")
    assert not open_subject(config, frames, items).has_head, "a pre-trained model is probed"
    other = TaskSpec("hmdb51", "label", labels, HeadConfig())
    storage.write_json(str(model / TASK_FILE), other.as_json())
    assert not open_subject(config, frames, items).has_head, "so is one of another task, which the table names"
    own = TaskSpec("kinetics-400", "label", labels, HeadConfig())
    storage.write_json(str(model / TASK_FILE), own.as_json())
    with pytest.raises(
        ConfigError, match=rf"was fine-tuned on kinetics-400 with {len(labels)} classes, .* has 3 others"
    ):
        open_subject(config, frames, items)


def test_the_embedded_corpus_is_known_by_its_items_whatever_flags_name_it(
    frames: FrameManifest, model: Path, tmp_path: Path
) -> None:
    items = question_items(tmp_path / "items")
    named = settings(model, task_items=items.uri)
    assert open_subject(settings(model), frames, items).embedded, "the default"
    assert not open_subject(named, frames, items).embedded
    storage.write_json(storage.join(items.uri, "items.json"), items.as_json() | {"embedded": True})
    assert open_subject(named, frames, ItemsManifest.load(items.uri)).embedded


def test_reused_scores_are_printed_with_their_marks(
    frames: FrameManifest, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, hashes = clip_hashes(frames)
    write_seen(str(model), hashes[1:2], chosen_on=hashes[2:3])
    items = question_items(tmp_path / "items", answers=("ball", "rings", "owl"))
    out = str(tmp_path / "scores")
    config = settings(model, frames=frames.uri, task_items=items.uri, out=out, allow_leak=True)
    subject = open_subject(config, frames, items)
    figures = label_figures(subject, items.read("test"), np.array([True, False, False]), np.array([[0], [0], [0]]))
    summary = {
        "task": "msvd-qa", "split": "test", "zero_shot": True, "leak": True, "num_seen_clips": 1, "num_chosen_clips": 1,
        "ceiling": subject.ceiling, "metrics": {name: figure.as_dict() for name, figure in figures.items()},
    }  # fmt: skip
    inputs = {"model": task_fingerprint(str(model)), "frames": frames.fingerprint, "items": items.fingerprint}
    with Output(config, out, inputs) as output:
        storage.write_bytes(storage.join(out, PREDICTIONS), b"")
        output.close(summary)
    with caplog.at_level(logging.INFO):
        assert benchmark_task(config)["reused"]
    for part in (
        "is finished, reused\nmsvd-qa, test: 3 items on 3 clips; 33.33% of the answers have no label, zero-shot, "
        "LEAKED: 1 of the videos were used for training, 1 for validation\n",
        "accuracy: 33.3%, 95 % interval 0.0% to 100.0%, 3 videos\n",
        "coverage 100.0%, ceiling 33.3% (answers of one word piece)",
    ):
        assert part in caplog.text
