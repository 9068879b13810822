"""Captions that clips are held against in matching."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.dataloader import negatives
from evilm.seeds import derangement, draw_captions

CAPTIONS = [
    "a red ball rolls to the left",
    "a red ball rolls to the right",
    "a blue star blinks in the fog",
    "a blue moon blinks in the fog",
    "a green cube falls on sand",
    "a green cube jumps on sand",
]
IDS = [f"c{n}" for n in range(len(CAPTIONS))]


def hard_negatives(seed: int, epoch: int, clip_ids: list[str], captions: list[str]) -> list[int | None]:
    """Of clips with one caption each."""
    alone = [[caption] for caption in captions]
    return negatives.hard_negatives(seed, epoch, clip_ids, captions, alone, range(len(clip_ids)))


def test_hard_negatives_are_the_most_similar_captions():
    assert hard_negatives(0, 0, IDS, CAPTIONS) == [1, 0, 3, 2, 5, 4]


def test_frequent_words_do_not_count_as_similar():
    captions = ["in the fog a ball", "in the fog a cube", "in the fog a ball of the sea", "in the fog a cube of snow"]
    assert hard_negatives(0, 0, list("abcd"), captions)[:2] == [2, 3]


def test_caption_contained_in_another_is_no_negative():
    captions = ["a red ball rolls", "a red ball", "a blue cube", "two green stars"]
    chosen = hard_negatives(0, 0, list("abcd"), captions)
    assert chosen[0] != 1, "it is true of the first clip as well"
    assert chosen[1] == 0, "the other way round it may be false"


def test_choice_does_not_depend_on_the_order_of_clips():
    order = [3, 0, 5, 2, 4, 1]
    moved = hard_negatives(7, 1, [IDS[k] for k in order], [CAPTIONS[k] for k in order])
    straight = hard_negatives(7, 1, IDS, CAPTIONS)
    assert {IDS[order[k]]: IDS[order[m]] for k, m in enumerate(moved) if m is not None} == {
        IDS[k]: IDS[m] for k, m in enumerate(straight) if m is not None
    }


def test_no_negative_without_another_caption():
    assert hard_negatives(0, 0, ["a"], ["x"]) == [None]
    assert hard_negatives(0, 0, ["a", "b"], ["same", "same"]) == [None, None]
    assert hard_negatives(0, 0, [], []) == []


@pytest.mark.parametrize("kind", ["random", "hard"])
@settings(max_examples=40, deadline=None)
@given(
    captions=st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=4).map(" ".join), max_size=12),
    seed=st.integers(0, 3),
)
def test_negative_is_a_different_caption_of_another_clip(kind, captions: list[str], seed: int):
    clip_ids = [f"c{n}" for n in range(len(captions))]
    alone = [[caption] for caption in captions]
    choose, every = negatives.NEGATIVES[kind], range(len(captions))
    chosen = choose(seed, 2, clip_ids, captions, alone, every)
    assert chosen == choose(seed, 2, clip_ids, captions, alone, every)
    assert chosen[3:7] == choose(seed, 2, clip_ids, captions, alone, every[3:7]), "a worker's own clips"
    for own, other in enumerate(chosen):
        if other is None:
            assert set(captions) == {captions[own]}
        else:
            assert captions[other] != captions[own]


def test_each_caption_is_used_once_where_possible():
    captions = [f"a {colour} {shape} {number}" for number, colour in enumerate(("red", "blue")) for shape in "uvwxyz"]
    chosen = hard_negatives(0, 0, captions, captions)
    assert sorted(other for other in chosen if other is not None) == list(range(len(captions)))


def test_no_caption_of_a_clip_is_a_negative_for_it():
    own = [["a red ball rolls", "a red cube rolls"], ["a red cube rolls", "a star"], ["a red ball rolls"], ["a moon"]]
    drawn = [captions[0] for captions in own]
    for seed in range(8):
        for choose in (derangement, negatives.hard_negatives):
            chosen = choose(seed, 0, list("abcd"), drawn, own, range(4))
            assert all(drawn[other] not in own[clip] for clip, other in enumerate(chosen) if other is not None)
            assert chosen[0] == 3, "the others say what is true of the first clip"


def test_drawn_caption_depends_on_seed_epoch_and_clip():
    own = [["a", "b", "c"], ["only"], ["x", "y"]]
    ids = ["one", "two", "three"]
    drawn = [draw_captions(0, epoch, ids, own) for epoch in range(300)]
    assert drawn == [draw_captions(0, epoch, ids, own) for epoch in range(300)]
    assert drawn[5] == draw_captions(0, 5, ids[::-1], own[::-1])[::-1]
    assert draw_captions(1, 0, ids * 9, own * 9) == draw_captions(1, 0, ids, own) * 9
    counts = [sum(captions[0] == text for captions in drawn) for text in own[0]]
    assert min(counts) > 70, "each of three about as often"


def test_hard_negatives_of_a_large_step_are_chosen_in_parts(monkeypatch: pytest.MonkeyPatch):
    captions = [f"a {colour} {shape}" for colour in "pqrstuvwxy" for shape in ("ball", "cube", "star")]
    clip_ids = [f"c{n}" for n in range(len(captions))]
    alone = [[caption] for caption in captions]
    monkeypatch.setattr(negatives, "_BLOCK_CLIPS", 12)
    compared = []
    monkeypatch.setattr(
        negatives, "_compare", lambda part, true=negatives._compare: compared.append(part) or true(part)
    )
    chosen = negatives.hard_negatives(0, 0, clip_ids, captions, alone, range(30))
    assert [len(part) for part in compared] == [10, 10, 10]
    assert all(other is not None and clip // 10 == other // 10 for clip, other in enumerate(chosen))
    compared.clear()
    assert negatives.hard_negatives(0, 0, clip_ids, captions, alone, range(12, 18)) == chosen[12:18]
    assert len(compared) == 1, "not those of other workers"
