"""Deal the micro-batches of a step to workers, and bring each to the device of its worker.

With fewer workers than wanted, some take several micro-batches, one after the other.

A step's clips are cut into `TrainConfig.num_micro_batches` slices whose sizes differ by one clip at most. Dropout
is seeded by micro-batch, and losses are normalised over the whole step, so the number of workers changes only the order
of sums.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from evilm.config.training import TrainConfig
from evilm.dataloader.collate import Batch
from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import Step, TrainSampler, micro_batch_slice
from evilm.errors import ConfigError
from evilm.train.timing import StepTimer


def micro_batches_of(rank: int, world: int, num_micro_batches: int) -> range:
    """Return the micro-batches of one worker: consecutive, as even as possible."""
    mine = np.array_split(np.arange(num_micro_batches), world)[rank]
    return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


def worker_sizes(num_items: int, num_micro_batches: int, world: int) -> list[int]:
    """Return how many of a step's items each worker computes."""
    slices = [micro_batch_slice(num_items, number, num_micro_batches) for number in range(num_micro_batches)]
    mine = (micro_batches_of(rank, world, num_micro_batches) for rank in range(world))
    return [sum(slices[number].stop - slices[number].start for number in numbers) for numbers in mine]


@dataclass(frozen=True)
class MicroBatchSampler:
    """A worker's micro-batches of every step as the steps of a data loader, one after the other."""

    whole: TrainSampler
    num_micro_batches: int
    mine: range

    @property
    def num_steps(self) -> int:
        """Return micro-batches per epoch."""
        return self.whole.num_steps * len(self.mine)

    @property
    def window(self) -> int:
        """Return the row groups mixed with each other."""
        return self.whole.window

    def step(self, number: int) -> Step:
        """Return this worker's micro-batch `number`, counted over all epochs."""
        count = len(self.mine)
        step, which = divmod(number, count)
        whole = self.whole.step(step)
        mine = micro_batch_slice(len(whole.rows), self.mine[which], self.num_micro_batches)
        return replace(whole, mine=mine, until=whole.until * count + count - 1)


def split_micro_batches(loader: DataLoader, num_micro_batches: int, mine: range) -> DataLoader:
    """Make a data loader of whole steps yield these micro-batches of them."""
    if len(mine) > 1:
        loader.order = cast(Any, MicroBatchSampler(cast(TrainSampler, loader.order), num_micro_batches, mine))
    return loader


def check_world(settings: TrainConfig, world: int) -> None:
    """Refuse numbers of workers that the steps can't be dealt to.

    Raises:
        ConfigError: it says which numbers can be.
    """
    num_micro_batches = settings.num_micro_batches
    if world > num_micro_batches:
        raise ConfigError(
            f"{world} workers can't share the {num_micro_batches} micro-batches of a step (cluster.num_workers x "
            f"schedule.gradient_accumulation_steps); use at most {num_micro_batches} workers"
        )


def on_device(batches: Iterable[Batch], device: torch.device, timer: StepTimer | None = None) -> Iterator[Batch]:
    """Yield batches on `device`.

    The host asks for a batch as soon as it has queued the step before, so the copy from page-locked memory runs beside
    that step; the step that uses the batch waits for its copy only on the device.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            there = batch.to(device)
            ended.record()
        compute = torch.cuda.current_stream(device)
        compute.wait_event(ended)
        there.record_stream(compute)
        if timer:
            timer.copied(began, ended)
        yield there


def pinned(loader: DataLoader, device: torch.device) -> DataLoader:
    """Let a data loader put its batches where a GPU copies from while the step before is computed."""
    if device.type == "cuda":
        loader.finish = Batch.pin_memory
    return loader
