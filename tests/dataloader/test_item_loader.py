"""Items joined with the frames of their clips: each once in an epoch, for any number of workers and after a resume."""

import numpy as np
import pytest

from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.item_loader import ClipIndex, ItemLoader, ItemRows, ItemTable
from evilm.dataloader.sampler import EvalSampler, TrainSampler
from evilm.errors import ConfigError, ShardError
from evilm.items.item import Item
from helpers.item_tables import questions, write_items
from helpers.random_model import make_frames

NUM_CLIPS, EACH = 26, 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    return ClipIndex(make_frames(tmp_path_factory.mktemp("frames"), NUM_CLIPS))


@pytest.fixture(scope="module")
def table(clips: ClipIndex, tmp_path_factory: pytest.TempPathFactory) -> ItemTable:
    items = write_items(tmp_path_factory.mktemp("items"), "answer", questions(NUM_CLIPS, EACH), ("red", "blue"))
    return ItemTable(items, "train", clips)


def load(table: ItemTable, clips: ClipIndex, steps: range, rank: int = 0, world: int = 1, **changes) -> list[ItemRows]:
    """Load the rows of some steps of 10 items, without collation."""
    order = TrainSampler(table.groups, 10, 0, 3, "even", rank, world)
    loader = ItemLoader(table, clips, order, lambda rows: rows, ClipAugmentation(0, 2))
    return list(loader.batches(steps.start, steps.stop))


def test_an_epoch_shows_each_item_once_for_any_number_of_workers(table, clips):
    steps = TrainSampler(table.groups, 10, 0, 3).num_steps
    whole = load(table, clips, range(2 * steps))
    for epoch in (0, 1):
        seen = [item for rows in whole[epoch * steps : (epoch + 1) * steps] for item in rows.item_ids]
        assert sorted(seen) == sorted(item.item_id for item in questions(NUM_CLIPS, EACH))
    parts = [load(table, clips, range(2 * steps), rank, 3) for rank in range(3)]
    for rows, *slices in zip(whole, *parts, strict=True):
        assert [item for part in slices for item in part.item_ids] == rows.item_ids
        assert [part.first_item for part in slices] == list(
            np.cumsum([0, *(len(part.item_ids) for part in slices)])[:-1]
        )
        assert {part.step_items for part in slices} == {len(rows.item_ids)}
    assert [rows.item_ids for rows in whole[:steps]] != [rows.item_ids for rows in whole[steps:]]


def test_a_resumed_loader_goes_on_with_the_same_items_and_frames(table, clips):
    whole, rest = load(table, clips, range(8)), load(table, clips, range(5, 8))
    for expected, rows in zip(whole[5:], rest, strict=True):
        assert rows.item_ids == expected.item_ids
        np.testing.assert_array_equal(rows.frames, expected.frames)


def test_a_clip_is_decoded_once_for_all_its_items(table, clips):
    for rows in load(table, clips, range(4)):
        assert len(rows.frames) == len(set(rows.clip_ids))
        clip_at = [rows.clip_ids[list(rows.clip_of).index(place)] for place in range(len(rows.frames))]
        assert [clip_at[place] for place in rows.clip_of] == rows.clip_ids


def test_frames_are_those_of_the_items_clip(table, clips):
    (rows,) = load(table, clips, range(1))
    from evilm.dataloader.clip_reader import load_clips

    for clip_id, place in zip(rows.clip_ids, rows.clip_of, strict=True):
        shard, group, row = clips.place_of[clip_id]
        found = np.empty_like(rows.frames[place])
        load_clips(clips.pairs[shard], group).decode(row, range(2), found)
        np.testing.assert_array_equal(rows.frames[place], found)


def test_an_evaluation_shows_each_item_once_for_any_number_of_workers(table, clips):
    for world in (1, 2, 4):
        seen = []
        for rank in range(world):
            order = EvalSampler(table.groups, 7, len(table), 1, rank, world)
            loader = ItemLoader(table, clips, order, lambda rows: rows, ClipAugmentation(0, 2))
            seen += [item for rows in loader.batches(0, order.num_steps) for item in rows.item_ids]
        assert sorted(seen) == sorted(item.item_id for item in questions(NUM_CLIPS, EACH))


@pytest.fixture(scope="module")
def captioned(clips: ClipIndex, tmp_path_factory: pytest.TempPathFactory) -> ItemTable:
    items = [Item("train", f"{c}-{k}", f"c{c:03d}", f"caption {k} of {c}") for k in range(4) for c in range(NUM_CLIPS)]
    return ItemTable(write_items(tmp_path_factory.mktemp("captions"), "retrieval", items), "train", clips, True, 3)


def test_an_epoch_of_retrieval_draws_one_caption_of_each_clip_and_wrong_ones_of_others(captioned, clips):
    steps = TrainSampler(captioned.groups, 10, 0, 3).num_steps
    drawn: dict[str, set[str]] = {}
    for rows in load(captioned, clips, range(6 * steps)):
        for clip_id, text, wrong in zip(rows.clip_ids, rows.texts, rows.options, strict=True):
            assert text.endswith(f" of {int(clip_id[1:])}")
            assert len(set(wrong)) == 3
            assert not any(other.endswith(f" of {int(clip_id[1:])}") for other in wrong)
            drawn.setdefault(clip_id, set()).add(text)
    assert len(drawn) == NUM_CLIPS
    assert np.mean([len(texts) for texts in drawn.values()]) > 2


def test_captions_do_not_depend_on_workers(captioned, clips):
    whole = load(captioned, clips, range(3))
    parts = [load(captioned, clips, range(3), rank, 2) for rank in range(2)]
    for rows, *slices in zip(whole, *parts, strict=True):
        assert [text for part in slices for text in part.texts] == rows.texts
        assert [wrong for part in slices for wrong in part.options] == rows.options


def test_too_few_other_captions_are_named(clips, tmp_path):
    items = write_items(tmp_path, "retrieval", [Item("train", f"{c}", f"c{c:03d}", "the same") for c in range(4)])
    with pytest.raises(ConfigError, match=r"head.num_negatives = 2.*lower it"):
        load(ItemTable(items, "train", clips, True, 2), clips, range(1))


def test_an_item_about_a_clip_without_frames_is_named(clips, tmp_path):
    items = write_items(tmp_path, "answer", [Item("train", "a", "lost", "what?", "red")], ("red",))
    with pytest.raises(ShardError, match=r"1 items.*such as lost"):
        ItemTable(items, "train", clips)
