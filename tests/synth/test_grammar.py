"""Captions of the embedded corpus: bounded in words, and true of the scenes and pixels."""

import re
from collections import Counter

import pytest

from evilm.synth import PlannedClip
from evilm.synth import words as names
from evilm.synth.grammar import MAX_WORDS, MIN_WORDS, participle, third_person
from evilm.synth.world import STEPS
from helpers.synth_clips import centres, named_objects, some


def test_captions_are_bounded_in_words_and_distinct_in_test(plan: list[PlannedClip]) -> None:
    captions = [clip.caption for clip in plan]
    assert 150 <= len({word.strip(".,") for caption in captions for word in caption.lower().split()}) <= 320
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= MIN_WORDS
    assert max(lengths) <= MAX_WORDS
    tests = [clip.caption.lower() for clip in plan if clip.split == "test"]
    assert len(set(tests)) == len(tests)


def test_captions_name_every_colour_and_shape(plan: list[PlannedClip]) -> None:
    for clip in plan:
        said = clip.caption.lower()
        for item in clip.scene.objects:
            assert any(name in said for name in names.COLOURS[item.colour]), clip
            assert any(one in said or many in said for one, many in names.SHAPES[item.shape]), clip


def test_direction_words_are_true_of_the_pixels(plan: list[PlannedClip]) -> None:
    wanted = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "rise": (1, -1), "climb": (1, -1), "down": (1, 1),
              "fall": (1, 1), "sink": (1, 1), "drop": (1, 1)}  # fmt: skip
    checked: Counter[str] = Counter()
    for clip in plan:
        said = named_objects(clip)[0].replace("from right to left", "left").replace("from left to right", "right")
        for word, (axis, sign) in wanted.items():
            moves = clip.scene.layout == "solo" and clip.scene.objects[0].motion not in ("bounce", "orbit")
            if moves and checked[word] < 6 and re.search(rf"\b{word}", said):
                checked[word] += 1
                path = centres(clip)
                assert (path[-2] - path[1])[axis] * sign > 0.12 * 144, clip
    assert all(checked[word] == 6 for word in wanted)


def test_place_words_are_true_of_the_scene(plan: list[PlannedClip]) -> None:
    """Said first in "a red star left of a blue ring": the star, and it is on the left. Swapped, the words would lie."""
    places = [
        (r"left (of|side of)", 0, -1),
        (r"right (of|side of)", 0, 1),
        (r"(above|over) an?\b", 1, -1),
        (r"(below|under) an?\b", 1, 1),
        (r"(above it|at the top)", 1, 1),
        (r"(below it|at the bottom)", 1, -1),
        (r"on (the|its) right\b(?! side)", 0, -1),
        (r"on (the|its) left\b(?! side)", 0, 1),
    ]
    checked: Counter[str] = Counter()
    for clip in some(plan, lambda clip: clip.scene.layout == "beside", 400):
        said, (first, second) = named_objects(clip)
        for words, axis, sign in places:
            if re.search(words, said):
                checked[words] += 1
                assert (first.start[axis] - second.start[axis]) * sign > 0.3, (clip, words)
    assert sum(checked.values()) == 400
    assert min(checked.values()) > 5


def test_captions_say_who_follows_whom(plan: list[PlannedClip]) -> None:
    for clip in some(plan, lambda clip: clip.scene.layout == "follow", 60):
        said, (first, second) = named_objects(clip)
        step = STEPS[first.motion]
        ahead = sum((first.start[k] - second.start[k]) * step[k] for k in (0, 1))
        assert (ahead > 0) == (" by a" in said), clip


def test_objects_never_have_the_colour_of_their_background(plan: list[PlannedClip]) -> None:
    for clip in plan:
        assert not {item.colour for item in clip.scene.objects} & set(names.CAMOUFLAGE[clip.scene.background])


@pytest.mark.parametrize(
    ("verb", "third", "ing"),
    [("move", "moves", "moving"), ("spin", "spins", "spinning"), ("flash", "flashes", "flashing"),
     ("go", "goes", "going"), ("stay", "stays", "staying"), ("get", "gets", "getting"), ("pass", "passes", "passing")],
)  # fmt: skip
def test_verbs_are_conjugated(verb: str, third: str, ing: str) -> None:
    assert (third_person(verb), participle(verb)) == (third, ing)
