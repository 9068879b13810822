"""Clips of the embedded corpus, and where their objects were drawn, by the pixels alone."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evilm.config.data import CorpusConfig
from evilm.synth import (
    PlannedClip,
    clip_frames,
)
from evilm.synth import words as names
from evilm.synth.world import ObjectSpec

CONFIG = CorpusConfig()
SMALL = CorpusConfig(train_clips=6, val_clips=2, test_clips=4)


def drawn_mask(clip: PlannedClip) -> np.ndarray:
    """Where objects were drawn, by the pixels alone: the difference from the same scene without objects."""
    bare = replace(clip, scene=replace(clip.scene, objects=()))
    difference = clip_frames(clip, CONFIG).astype(int) - clip_frames(bare, CONFIG)
    return np.abs(difference).sum(-1) > 40


def only(clip: PlannedClip, index: int) -> PlannedClip:
    """The clip with one of its objects, in normal light."""
    return replace(clip, scene=replace(clip.scene, objects=(clip.scene.objects[index],), event=""))


def centres(clip: PlannedClip, index: int = 0) -> np.ndarray:
    """Centre (x, y) in pixels of one object in each frame."""
    mask = drawn_mask(only(clip, index))
    rows, cols = np.mgrid[: mask.shape[1], : mask.shape[2]]
    area = np.maximum(mask.sum((1, 2)), 1)
    return np.stack([(mask * cols).sum((1, 2)) / area, (mask * rows).sum((1, 2)) / area], axis=1)


def some(plan: list[PlannedClip], wanted: Callable[[PlannedClip], bool], num: int = 4) -> list[PlannedClip]:
    """Return the first clips for which `wanted` holds, at least one."""
    found = [clip for clip in plan if wanted(clip)][:num]
    assert found
    return found


def named_objects(clip: PlannedClip) -> tuple[str, list[ObjectSpec]]:
    """The caption without its words about scene and light, and the objects in the order in which it names them."""
    said = clip.caption.lower()
    for phrase in (*names.SCENES[clip.scene.background], *names.EVENTS.get(clip.scene.event, ())):
        said = said.replace(phrase, "")

    def place(item: ObjectSpec) -> int:
        found = re.search("|".join(rf"\b{name}\b" for name in names.COLOURS[item.colour]), said)
        assert found, clip
        return found.start()

    return said, sorted(clip.scene.objects, key=place)
