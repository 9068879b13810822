"""The embedded corpus in the layouts of downstream data sets: read by their readers, and true of each scene."""

from collections import Counter
from pathlib import Path

import pytest

from evilm.config.data import CorpusConfig
from evilm.config.items import ITEM_LAYOUTS, TASK_NAMES, ItemsConfig
from evilm.config.stages import BuildItems
from evilm.items.annotation_files import EMBEDDED_MARK, Annotations
from evilm.items.build_items import build_items
from evilm.items.item_tables import ItemsManifest
from evilm.synth import PlannedClip, plan_corpus
from evilm.synth.corpus_annotations import FOLDER, ask, write_annotations
from evilm.synth.words import COLOURS, SHAPES
from helpers.random_model import named_frames


@pytest.fixture(scope="module")
def planned() -> list[PlannedClip]:
    return plan_corpus(CorpusConfig(train_clips=120, val_clips=20, test_clips=40))


@pytest.fixture(scope="module")
def written(planned: list[PlannedClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_annotations(planned, 0, str(root))
    return root / FOLDER


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_layout_is_read_back_with_its_clips(task: str, planned: list[PlannedClip], written: Path) -> None:
    folder = written / ("tgif-qa" if task.startswith("tgif") else task)
    items = list(ITEM_LAYOUTS.get(task).read(Annotations(str(folder)), ItemsConfig(protocol="7k", val_share=0.2)))
    expected = {"test"} if task == "msrvtt-mc" else {"train", "val", "test"}
    assert {item.split for item in items} == expected
    assert len({(item.split, item.item_id) for item in items}) == len(items)
    assert {item.video or item.clip_id for item in items} <= {clip.videoid for clip in planned}
    assert EMBEDDED_MARK in Annotations(str(folder)).names()


def test_items_of_every_task_find_their_frames(planned: list[PlannedClip], written: Path, tmp_path: Path) -> None:
    frames = named_frames(tmp_path / "frames", [clip.videoid for clip in planned])
    for task in TASK_NAMES:
        folder, out = written / ("tgif-qa" if task.startswith("tgif") else task), str(tmp_path / task)
        build_items(BuildItems(task=task, annotations=str(folder), frames=frames.uri, out=out))
        items = ItemsManifest.load(out)
        assert {split.coverage for split in items.splits.values()} == {1.0}, task
        assert items.embedded


def test_answers_are_true_of_the_scene(planned: list[PlannedClip]) -> None:
    types: Counter[str] = Counter()
    for clip in planned:
        main, objects = clip.scene.objects[0], clip.scene.objects
        for question in ask(clip.scene):
            types[question.type] += 1
            if question.type == "color":
                (shape,) = [
                    name for name, words in SHAPES.items() if words[0][0] in question.text.split("?")[0].split()
                ]
                assert {COLOURS[item.colour][0] for item in objects if item.shape == shape} == {question.answer}
            elif question.type == "object":
                (colour,) = [name for name, words in COLOURS.items() if words[0] in question.text.rstrip("?").split()]
                assert {SHAPES[item.shape][0][0] for item in objects if item.colour == colour} == {question.answer}
            elif question.type == "number":
                count = sum(item.shape == main.shape for item in objects)
                assert question.answer == {1: "one", 2: "two", 3: "three"}[count]
    assert set(types) == {"color", "object", "how", "number", "location"}


def test_wrong_options_are_captions_of_other_scenes(planned: list[PlannedClip], written: Path) -> None:
    by_caption = {clip.caption: clip.scene for clip in planned if clip.split == "test"}
    items = ITEM_LAYOUTS.get("msrvtt-mc").read(Annotations(str(written / "msrvtt-mc")), ItemsConfig())
    for item in items:
        right = by_caption[item.answer]
        for wrong in set(item.options) - {item.answer}:
            assert by_caption[wrong].background != right.background
            assert by_caption[wrong].objects[0].triple != right.objects[0].triple


def test_no_answer_about_the_light_is_right_much_more_often_than_others(tmp_path: Path) -> None:
    write_annotations(plan_corpus(CorpusConfig(train_clips=400, val_clips=0, test_clips=0)), 0, str(tmp_path))
    annotations = Annotations(str(tmp_path / FOLDER / "tgif-qa"))
    items = ITEM_LAYOUTS.get("tgif-transition").read(annotations, ItemsConfig(val_share=0.2))
    counts = Counter(item.answer for item in items)
    assert set(counts) == {"get brighter", "get darker", "stay the same"}
    assert max(counts.values()) < 0.5 * sum(counts.values())
