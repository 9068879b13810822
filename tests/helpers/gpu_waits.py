"""Counts what the host waits for in steps of a training on a pretended card."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from evilm.config.training import TrainConfig
from evilm.dataloader.collate import Batch
from evilm.dataloader.sampler import micro_batch_slice
from evilm.objectives.objective import Objective
from helpers import gpu_models as small
from helpers.pretend.card import PretendCard
from helpers.pretend.waits import Read

WARM_UP, STEPS, CLIPS = 2, 2, 6
"""Steps before those that are counted: the optimizer makes its moments in the first, the average is a copy in it."""


@dataclass(frozen=True)
class Waits:
    """Of all counted steps together."""

    reads: list[Read]
    """Blocking reads, boolean indexing and copies that wait."""
    queued: list[int]
    """For each wait for an event: kernels that were queued behind it, which keep the card busy meanwhile."""


def count_waits(kind: str, config: TrainConfig, codebook: dict[str, Any] | None = None) -> Waits:
    """Train on a pretended card, from page-locked batches as the loop does, and count from the third step on."""
    make, batch, _ = small.KINDS[kind]
    numbers = range(config.schedule.gradient_accumulation_steps)
    slices = [micro_batch_slice(CLIPS, number, len(numbers)) for number in numbers]
    how = {"jitter": 0.3} if kind == "student" else {}
    held = [[batch(CLIPS, step, mine, **how) for mine in slices] for step in range(WARM_UP + STEPS)]
    return count_waits_of(lambda: make(codebook) if codebook else make(), held, config)


def count_waits_of(make: Callable[[], Objective], held: list[list[Batch]], config: TrainConfig) -> Waits:
    """Count likewise for an objective and `WARM_UP` + `STEPS` steps, each a list of micro-batches."""
    numbers = range(config.schedule.gradient_accumulation_steps)
    with PretendCard() as card:
        pinned: list[list[Batch]] = [[one.pin_memory() for one in step] for step in held]
        objective = make()
        _, train_step = small.make_state(objective, config, "cuda:0")
        objective.train()
        stream = small.on_device((one for step in pinned for one in step), torch.device("cuda", 0))
        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                card.clear()
            here = [next(stream) for _ in numbers]
            train_step.step(step, 100, numbers, here, [0.0] * 4)
        return Waits(list(card.reads), [queued for _, queued in card.waits])
