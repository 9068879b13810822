"""Captions that clips are held against in matching."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.steps.negatives import NEGATIVES, hard_negatives

CAPTIONS = [
    "a red ball rolls to the left",
    "a red ball rolls to the right",
    "a blue star blinks in the fog",
    "a blue moon blinks in the fog",
    "a green cube falls on sand",
    "a green cube jumps on sand",
]
IDS = [f"c{n}" for n in range(len(CAPTIONS))]


def test_hard_negatives_are_the_captions_most_alike():
    assert hard_negatives(0, 0, IDS, CAPTIONS) == [1, 0, 3, 2, 5, 4]


def test_words_of_most_captions_count_nothing():
    captions = ["in the fog a ball", "in the fog a cube", "in the fog a ball of the sea", "in the fog a cube of snow"]
    assert hard_negatives(0, 0, list("abcd"), captions)[:2] == [2, 3]


def test_a_caption_that_says_no_more_is_no_negative():
    captions = ["a red ball rolls", "a red ball", "a blue cube", "two green stars"]
    chosen = hard_negatives(0, 0, list("abcd"), captions)
    assert chosen[0] != 1, "it is true of the first clip as well"
    assert chosen[1] == 0, "the other way round it may be false"


def test_the_choice_goes_with_the_clips_not_with_their_places():
    order = [3, 0, 5, 2, 4, 1]
    moved = hard_negatives(7, 1, [IDS[k] for k in order], [CAPTIONS[k] for k in order])
    straight = hard_negatives(7, 1, IDS, CAPTIONS)
    assert {IDS[order[k]]: IDS[order[m]] for k, m in enumerate(moved) if m is not None} == {
        IDS[k]: IDS[m] for k, m in enumerate(straight) if m is not None
    }


def test_nothing_to_choose_from():
    assert hard_negatives(0, 0, ["a"], ["x"]) == [None]
    assert hard_negatives(0, 0, ["a", "b"], ["same", "same"]) == [None, None]
    assert hard_negatives(0, 0, [], []) == []


@pytest.mark.parametrize("kind", ["random", "hard"])
@settings(max_examples=40, deadline=None)
@given(
    captions=st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=4).map(" ".join), max_size=12),
    seed=st.integers(0, 3),
)
def test_every_clip_gets_another_clips_other_caption_where_there_is_one(kind, captions: list[str], seed: int):
    clip_ids = [f"c{n}" for n in range(len(captions))]
    chosen = NEGATIVES[kind](seed, 2, clip_ids, captions)
    assert chosen == NEGATIVES[kind](seed, 2, clip_ids, captions)
    for own, other in enumerate(chosen):
        if other is None:
            assert set(captions) == {captions[own]}
        else:
            assert captions[other] != captions[own]


def test_each_caption_is_used_once_where_that_is_possible():
    captions = [f"a {colour} {shape} {number}" for number, colour in enumerate(("red", "blue")) for shape in "uvwxyz"]
    chosen = hard_negatives(0, 0, captions, captions)
    assert sorted(other for other in chosen if other is not None) == list(range(len(captions)))
