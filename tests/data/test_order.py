"""The order of clips: each once per epoch, the same for any number of workers, other in each epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.data.order import EVAL_EPOCH, EvalOrder, TrainOrder, epoch_order, part_of, step_sizes
from evilm.errors import ConfigError

_GROUPS = [[5, 5, 3], [5, 1], [4]]
_TOTAL = 23


def _rows(array: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in array.tolist()]


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
    window=st.integers(1, 8),
)
def test_every_row_stands_in_an_epoch_exactly_once(groups: list[list[int]], seed: int, epoch: int, window: int) -> None:
    everything = sorted((s, g, r) for s, sizes in enumerate(groups) for g, n in enumerate(sizes) for r in range(n))
    assert sorted(_rows(epoch_order(groups, seed, epoch, window))) == everything


def test_order_repeats_by_seed_and_epoch_and_differs_otherwise() -> None:
    first = _rows(epoch_order(_GROUPS, 1, 0, 2))
    assert first == _rows(epoch_order(_GROUPS, 1, 0, 2))
    assert first != _rows(epoch_order(_GROUPS, 1, 1, 2))
    assert first != _rows(epoch_order(_GROUPS, 2, 0, 2))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_out_the_same_global_steps(world: int) -> None:
    alone = TrainOrder(_GROUPS, 8, seed=3, window=2)
    parts = [TrainOrder(_GROUPS, 8, 3, 2, rank=rank, world=world) for rank in range(world)]
    for step in range(2 * alone.num_steps):
        whole = alone.step(step)
        dealt = [row for part in parts for row in _rows(part.step(step).rows[part.step(step).mine])]
        assert dealt == _rows(whole.rows)


@settings(max_examples=100, deadline=None)
@given(num_clips=st.integers(1, 300), batch=st.integers(1, 40), parts=st.integers(1, 8))
def test_even_steps_hold_each_clip_once_and_are_as_many_as_padded_ones(num_clips: int, batch: int, parts: int) -> None:
    padded = step_sizes(num_clips, batch, "pad")
    if num_clips // len(padded) < parts:
        with pytest.raises(ConfigError, match=r"too few for \d parts .*; use fewer parts, or tail = pad"):
            step_sizes(num_clips, batch, "even", parts)
        return
    sizes = step_sizes(num_clips, batch, "even", parts)
    assert (len(sizes), sizes.sum()) == (len(padded), num_clips)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert sorted(sizes, reverse=True) == list(sizes)
    assert num_clips % batch or list(sizes) == list(padded)
    for size in {int(size) for size in sizes}:
        slices = [part_of(size, part, parts) for part in range(parts)]
        assert [clip for mine in slices for clip in range(size)[mine]] == list(range(size))
        assert all(mine.stop > mine.start for mine in slices), "no part is empty"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_of_even_steps_has_each_clip_once_for_any_number_of_workers(world: int) -> None:
    orders = [TrainOrder(_GROUPS, 6, 3, 2, rank=rank, world=world) for rank in range(world)]
    for epoch in range(2):
        steps = [[order.step(epoch * 4 + k) for order in orders] for k in range(4)]
        assert [len(whole.rows) for whole, *_ in steps] == [6, 6, 6, 5]
        rows = [row for parts in steps for part in parts for row in _rows(part.rows[part.mine])]
        assert (len(rows), len(set(rows)), {part.epoch for part in steps[0]}) == (_TOTAL, _TOTAL, {epoch})
    assert (orders[0].num_padded, orders[0].mean_clips) == (0, _TOTAL / 4)


def test_the_tail_of_an_epoch_is_padded_with_its_first_clips_or_dropped() -> None:
    padded, dropped = TrainOrder(_GROUPS, 8, 0, 2, "pad"), TrainOrder(_GROUPS, 8, 0, 2, "drop")
    assert (padded.num_steps, padded.num_padded) == (3, 1)
    assert (dropped.num_steps, dropped.num_padded) == (2, -7)
    epoch = [row for step in range(3) for row in _rows(padded.step(step).rows)]
    assert len(set(epoch)) == _TOTAL
    assert epoch[_TOTAL:] == epoch[:1]
    assert padded.step(3).epoch == 1


def test_too_large_a_batch_is_refused_where_the_tail_is_dropped() -> None:
    with pytest.raises(ConfigError, match="batch_clips = 64 is more than the 23 clips"):
        TrainOrder(_GROUPS, 64, 0, 2, "drop")
    with pytest.raises(ConfigError, match="the split train holds no clips"):
        TrainOrder([], 64, 0, 2)
    assert len(TrainOrder(_GROUPS, 64, 0, 2).step(0).rows) == _TOTAL
    assert len(TrainOrder(_GROUPS, 64, 0, 2, "pad").step(0).rows) == 64


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_each_row_once_over_all_workers(world: int) -> None:
    orders = [EvalOrder(_GROUPS, 4, max_clips=22, rank=rank, world=world) for rank in range(world)]
    steps = [order.step(k) for order in orders for k in range(order.num_steps)]
    rows = [row for step in steps for row in _rows(step.rows[step.mine])]
    assert len(rows) == len(set(rows)) == 22
    assert {step.epoch for step in steps} == {EVAL_EPOCH}


def test_a_worker_touches_few_of_the_row_groups_of_a_step() -> None:
    orders = [TrainOrder([[16] * 64], 128, 0, 16, rank=rank, world=8) for rank in range(8)]
    for step in range(8):
        groups = [{(s, g) for s, g, _ in _rows(order.step(step).rows[order.step(step).mine])} for order in orders]
        assert len(set().union(*groups)) == 16, "the step is mixed from all of a window"
        assert max(map(len, groups)) <= 4
