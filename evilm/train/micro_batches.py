"""The parts of a step, and who works them off: with fewer workers than wanted, some take several, one after the other.

A step's clips are cut into `TrainConfig.parts` slices, equal but for one clip. Dropout is seeded by the part, and
losses are normalised over the whole step, so the number of workers changes nothing but the order of sums.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from evilm.config.training import TrainConfig
from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import Step, TrainSampler, part_of
from evilm.errors import ConfigError


def micro_batches_of(rank: int, world: int, parts: int) -> range:
    """The parts of one worker: consecutive, as even as they come."""
    mine = np.array_split(np.arange(parts), world)[rank]
    return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


@dataclass(frozen=True)
class MicroBatchSampler:
    """A worker's parts of every step as the steps of a feed: part after part, step after step."""

    whole: TrainSampler
    parts: int
    mine: range

    @property
    def num_steps(self) -> int:
        """Parts per epoch."""
        return self.whole.num_steps * len(self.mine)

    @property
    def window(self) -> int:
        """Row groups mixed with each other."""
        return self.whole.window

    def step(self, number: int) -> Step:
        """This worker's part number `number`, counted over all epochs."""
        count = len(self.mine)
        step, which = divmod(number, count)
        whole = self.whole.step(step)
        mine = part_of(len(whole.rows), self.mine[which], self.parts)
        return replace(whole, mine=mine, until=whole.until * count + count - 1)


def split_micro_batches(loader: DataLoader, parts: int, mine: range) -> DataLoader:
    """Let a data loader of whole steps give these parts of them."""
    if len(mine) > 1:
        loader.order = cast(Any, MicroBatchSampler(cast(TrainSampler, loader.order), parts, mine))
    return loader


def check_world(settings: TrainConfig, world: int) -> None:
    """Refuse numbers of workers that the steps can't be dealt to.

    Raises:
        ConfigError: it says which numbers can be.
    """
    parts = settings.parts
    if world > parts:
        raise ConfigError(
            f"{world} workers can't share the {parts} micro-batches of a step (cluster.num_workers x "
            f"schedule.gradient_accumulation_steps); use at most {parts} workers"
        )
