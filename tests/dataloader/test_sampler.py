"""The order of clips: each once per epoch, the same for any number of workers, other in each epoch."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.dataloader.sampler import (
    EVAL_EPOCH,
    NEGATIVE_GROUP_CLIPS,
    EvalSampler,
    TrainSampler,
    batch_sizes,
    micro_batch_slice,
)
from evilm.errors import ConfigError

_GROUPS = [[5, 5, 3], [5, 1], [4]]
_TOTAL = 23


def _rows(array: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in array.tolist()]


def _listed(groups: Sequence[Sequence[int]], seed: int, epoch: int, window: int, ends: np.ndarray) -> np.ndarray:
    """The definition of the order, with all rows of the epoch in one list: (row, 3), padded where `ends` go beyond."""
    rng = np.random.default_rng([seed, epoch])
    units = np.array([(s, g, rows) for s, sizes in enumerate(groups) for g, rows in enumerate(sizes)], dtype=np.int64)
    units = units[rng.permutation(len(units))]
    mixed = []
    for start in range(0, len(units), window):
        block = np.array([(s, g, row) for s, g, rows in units[start : start + window] for row in range(rows)])
        mixed.append(block[rng.permutation(len(block))])
    rows = np.concatenate(mixed)
    step = np.searchsorted(ends, np.arange(len(rows)), side="right")
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0], step))]
    return np.concatenate([rows] * -(-int(ends[-1]) // len(rows)))[: ends[-1]]


_groups = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    groups=_groups,
    batch=st.integers(1, 30),
    tail=st.sampled_from(["even", "pad", "drop"]),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
    window=st.integers(1, 8),
)
def test_steps_follow_the_defined_order(groups, batch, tail, seed, epoch, window) -> None:
    num_clips = sum(map(sum, groups))
    if tail == "drop":
        batch = min(batch, num_clips)
    order = TrainSampler(groups, batch, seed, window, tail)
    ends = np.concatenate([[0], np.cumsum(batch_sizes(num_clips, batch, tail))])
    listed = _listed(groups, seed, epoch, window, ends)
    for step in [*range(order.num_steps), 0, order.num_steps // 2]:  # in turn, and back again
        assert np.array_equal(order.step(epoch * order.num_steps + step).rows, listed[ends[step] : ends[step + 1]])


def test_every_row_is_in_an_epoch_exactly_once() -> None:
    order = TrainSampler(_GROUPS, 4, 7, 2)
    rows = [row for step in range(order.num_steps) for row in _rows(order.step(step).rows)]
    assert sorted(rows) == sorted((s, g, r) for s, gs in enumerate(_GROUPS) for g, n in enumerate(gs) for r in range(n))


def test_order_depends_on_seed_and_epoch_only() -> None:
    def epoch(seed: int, number: int) -> list[tuple[int, ...]]:
        order = TrainSampler(_GROUPS, 4, seed, 2)
        return [
            row for step in range(order.num_steps) for row in _rows(order.step(number * order.num_steps + step).rows)
        ]

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)


@pytest.mark.parametrize(("batch", "tail", "world"), [(3, "even", 1), (8, "pad", 2), (20, "drop", 1), (6, "even", 3)])
def test_row_groups_are_kept_until_their_last_step(batch, tail, world) -> None:
    order = TrainSampler(_GROUPS, batch, 5, 2, tail, rank=world - 1, world=world)
    for epoch in range(2):
        last: dict[tuple[int, int], int] = {}
        for step in range(epoch * order.num_steps, (epoch + 1) * order.num_steps):
            found = order.step(step)
            for index, (s, g, _) in enumerate(_rows(found.rows)):
                padded = tail == "pad" and found.until[index] == step
                assert last.get((s, g), step) >= step or padded
                last[s, g] = max(last.get((s, g), 0), int(found.until[index]))
            assert (found.until >= step).all()


def test_resumed_epoch_has_the_same_steps() -> None:
    groups = [[9] * 50] * 20
    whole, late = TrainSampler(groups, 16, 0, 4), TrainSampler(groups, 16, 0, 4)
    steps = [whole.step(step) for step in range(whole.num_steps)]
    for step in (500, 501, 30, 502):
        assert np.array_equal(late.step(step).numbers, steps[step].numbers)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_same_global_steps(world: int) -> None:
    alone = TrainSampler(_GROUPS, 8, seed=3, window=2)
    workers = [TrainSampler(_GROUPS, 8, 3, 2, rank=rank, world=world) for rank in range(world)]
    for step in range(2 * alone.num_steps):
        whole = alone.step(step)
        dealt = [row for each in workers for row in _rows(each.step(step).rows[each.step(step).mine])]
        assert dealt == _rows(whole.rows)


@settings(max_examples=100, deadline=None)
@given(num_clips=st.integers(1, 300), batch=st.integers(1, 40), num_micro_batches=st.integers(1, 8))
def test_tail_even_uses_each_clip_once_in_as_many_steps_as_tail_pad(
    num_clips: int, batch: int, num_micro_batches: int
) -> None:
    padded = batch_sizes(num_clips, batch, "pad")
    if num_clips // len(padded) < num_micro_batches:
        with pytest.raises(ConfigError, match=r"too few for \d micro-batches .*; use fewer, or tail = pad"):
            batch_sizes(num_clips, batch, "even", num_micro_batches)
        return
    sizes = batch_sizes(num_clips, batch, "even", num_micro_batches)
    assert (len(sizes), sizes.sum()) == (len(padded), num_clips)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert sorted(sizes, reverse=True) == list(sizes)
    assert num_clips % batch or list(sizes) == list(padded)
    for size in {int(size) for size in sizes}:
        slices = [micro_batch_slice(size, number, num_micro_batches) for number in range(num_micro_batches)]
        assert [clip for mine in slices for clip in range(size)[mine]] == list(range(size))
        assert all(mine.stop > mine.start for mine in slices), "no micro-batch is empty"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_even_epoch_has_each_clip_once_for_any_number_of_workers(world: int) -> None:
    orders = [TrainSampler(_GROUPS, 6, 3, 2, rank=rank, world=world) for rank in range(world)]
    for epoch in range(2):
        steps = [[order.step(epoch * 4 + k) for order in orders] for k in range(4)]
        assert [len(whole.rows) for whole, *_ in steps] == [6, 6, 6, 5]
        rows = [row for parts in steps for part in parts for row in _rows(part.rows[part.mine])]
        assert (len(rows), len(set(rows)), {part.epoch for part in steps[0]}) == (_TOTAL, _TOTAL, {epoch})
    assert (orders[0].num_padded, orders[0].mean_clips) == (0, _TOTAL / 4)


def test_tail_is_padded_with_first_clips_or_dropped() -> None:
    padded, dropped = TrainSampler(_GROUPS, 8, 0, 2, "pad"), TrainSampler(_GROUPS, 8, 0, 2, "drop")
    assert (padded.num_steps, padded.num_padded) == (3, 1)
    assert (dropped.num_steps, dropped.num_padded) == (2, -7)
    epoch = [row for step in range(3) for row in _rows(padded.step(step).rows)]
    assert len(set(epoch)) == _TOTAL
    assert epoch[_TOTAL:] == epoch[:1]
    assert padded.step(3).epoch == 1


def test_batch_larger_than_the_split_is_rejected_with_tail_drop() -> None:
    with pytest.raises(ConfigError, match="batch_clips = 64 is more than the 23 clips"):
        TrainSampler(_GROUPS, 64, 0, 2, "drop")
    with pytest.raises(ConfigError, match="the split train holds no clips"):
        TrainSampler([], 64, 0, 2)
    assert len(TrainSampler(_GROUPS, 64, 0, 2).step(0).rows) == _TOTAL
    assert len(TrainSampler(_GROUPS, 64, 0, 2, "pad").step(0).rows) == 64


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_each_row_once_over_all_workers(world: int) -> None:
    orders = [EvalSampler(_GROUPS, 4, max_clips=22, rank=rank, world=world) for rank in range(world)]
    steps = [order.step(k) for order in orders for k in range(order.num_steps)]
    rows = [row for step in steps for row in _rows(step.rows[step.mine])]
    assert len(rows) == len(set(rows)) == 22
    assert {step.epoch for step in steps} == {EVAL_EPOCH}


@settings(max_examples=50, deadline=None)
@given(micro_batch=st.integers(1, 300), pool=st.integers(1, 40), world=st.integers(1, 5), clips=st.integers(1, 1200))
def test_evaluation_negatives_and_pools_do_not_depend_on_batches(micro_batch, pool, world, clips) -> None:
    size = -(-NEGATIVE_GROUP_CLIPS // pool) * pool
    seen: list[int] = []
    for rank in range(world):
        order = EvalSampler([[7] * 10] * 30, micro_batch, clips, pool, rank, world)
        for step in map(order.step, range(order.num_steps)):
            mine = step.numbers[step.mine]
            first = int(mine[0]) // size * size
            assert step.numbers.tolist() == list(range(first, min(first + size, clips, 2100)))
            assert mine[0] % pool == 0
            assert len(mine) % pool == 0 or mine[-1] == step.numbers[-1]
            assert len(mine) <= max(micro_batch, pool)
            seen += mine.tolist()
    assert sorted(seen) == list(range(min(clips, 2100)))


def test_evaluation_batches_are_dealt_to_workers_in_turn() -> None:
    orders = [EvalSampler([[64] * 4], 32, 256, rank=rank, world=3) for rank in range(3)]
    assert [order.num_steps for order in orders] == [3, 3, 2]
    assert [order.step(0).mine.start for order in orders] == [0, 32, 64]


def test_worker_reads_few_row_groups_per_step() -> None:
    orders = [TrainSampler([[16] * 64], 128, 0, 16, rank=rank, world=8) for rank in range(8)]
    for step in range(8):
        groups = [{(s, g) for s, g, _ in _rows(order.step(step).rows[order.step(step).mine])} for order in orders]
        assert len(set().union(*groups)) == 16, "the step is mixed from all of a window"
        assert max(map(len, groups)) <= 4
