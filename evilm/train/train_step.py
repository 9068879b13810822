"""One update of the weights: losses of this worker's micro-batches, gradients, and what to do with NaN.

On a GPU the host only queues work: the numbers of a step are copied to the host behind it and read one step later, when
they are there. Whether a step's loss and gradient are finite is decided on the device; the optimizer's fused kernel
leaves the weights unchanged where they are not.
"""

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evilm.config.training import TrainConfig
from evilm.errors import NonFiniteError
from evilm.objectives.objective import GathersFeatures, Objective
from evilm.train.micro_batches import worker_sizes
from evilm.train.optimizer import EMA, LR_SCALE, learning_rate
from evilm.train.reduce import (
    COUNT,
    gather,
    gather_rows,
    loss_stats,
    step_metrics,
    sum_over_workers,
    to_device,
    weighted_loss,
    weighted_mean,
)
from evilm.train.timing import StepTimer

_MOST_SKIPPED = 20  # steps in a row without an update: the weights themselves are spoilt by then
_SHOWN = 8


@dataclass
class StepOutcome:
    """The numbers of one step, read from the device."""

    metrics: dict[str, float]
    flags: list[float]
    """The workers' flags, added up."""
    skipped: dict[str, Any] = field(default_factory=dict)
    """Of a step without update: step, what was not finite, and the clips it was found at."""


@dataclass
class _Pending:
    """A step whose numbers are on their way to the host."""

    step: int
    rate: float
    names: list[str]
    numbers: torch.Tensor
    """On the host: the stats of the losses, row by row; the weighted loss; the gradient norm; the flags."""
    arrived: torch.cuda.Event | None
    """CUDA event after the copy of `numbers`; None on a CPU."""
    by_micro_batch: list[torch.Tensor]
    clip_ids: list[list[str]]


class TrainStep:
    """Makes global steps; the same decisions on every worker, from the same reduced numbers."""

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainConfig,
        world: int,
        autocast: torch.autocast,
        device: torch.device,
        ema: EMA | None,
        timer: StepTimer | None = None,
    ) -> None:
        """Prepare to make steps.

        `model` is the objective as it is called, wrapped by DDP where there are several workers.
        """
        self._objective, self._model, self._optimizer, self._ema = objective, model, optimizer, ema
        self._settings, self._world, self._autocast, self._device = settings, world, autocast, device
        self._timer = timer or StepTimer(device)
        self._weights = to_device(list(objective.weights.values()), device)
        self._fused = bool(optimizer.defaults.get("fused"))
        self._pending: deque[_Pending] = deque()
        self._lag = 1 if device.type == "cuda" else 0  # by the device alone, so that all workers read at the same step
        self._in_a_row = 0

    def step(
        self, step: int, num_steps: int, micro_batches: Sequence[int], batches: Sequence[Any], flags: Sequence[float]
    ) -> list[StepOutcome]:
        """Make step number `step` of `num_steps`.

        Args:
            step: counted from 0; learning rate and dropout depend on it.
            num_steps: steps of the learning-rate schedule.
            micro_batches: which micro-batches of the step are this worker's.
            flags: travel with the losses and come back added up over workers.

        Returns:
            The outcomes that are known by now, in order: of this step on a CPU, of the step before on a GPU.

        Raises:
            NonFiniteError: a loss or the gradient is NaN or infinite, and the settings say stop, or every step is.
        """
        self._timer.mark("wait")
        rate = learning_rate(self._settings.optim, step, num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get(LR_SCALE, 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        names, by_micro_batch, stats, shared = self._losses(
            step, micro_batches, batches, to_device(flags, self._device)
        )
        limit = self._settings.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._objective.parameters(), limit)
        loss = weighted_mean(stats, self._weights)
        self._update((stats[:, 0] / stats[:, COUNT].clamp(min=1)).isfinite().all() & norm.isfinite())
        self._objective.after_step(step + 1, self._settings.schedule.seed)
        numbers = torch.cat([stats.flatten(), torch.stack([loss, norm.to(loss)]), shared])
        clip_ids = [batch.clip_ids for batch in batches]
        self._timer.mark("optimizer")  # before the copy to the host: its arrival then stands for this mark too
        self._pending.append(_Pending(step, rate, names, *_to_host(numbers), by_micro_batch, clip_ids))
        return self._read(self._lag)

    def settle(self) -> list[StepOutcome]:
        """Wait for all steps made so far, and return the outcomes that were not returned yet.

        Raises:
            NonFiniteError: as for `step`.
        """
        return self._read(0)

    def _losses(
        self, step: int, micro_batches: Sequence[int], batches: Sequence[Any], flags: torch.Tensor
    ) -> tuple[list[str], list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Run every micro-batch forward and backward: names of the losses, stats by micro-batch and whole step, flags.

        The counts that losses are divided by are those of the whole step. Where every worker has one micro-batch they
        come with the losses; else they have to be known before the first backward pass, and are summed first.
        """
        world = self._world
        if isinstance(self._objective, GathersFeatures):
            self._objective.cache(self._features(self._objective, step, micro_batches, batches))
        counts = None if self._settings.num_micro_batches == world else self._counts(batches)
        names: list[str] = []
        by_micro_batch: list[torch.Tensor] = []
        whole, shared = torch.zeros(0), flags
        for micro_batch, batch in zip(micro_batches, batches, strict=True):
            self._seed(step, micro_batch)
            with self._alone(last=micro_batch == micro_batches[-1]):
                with self._autocast:
                    losses = self._model(batch.to(self._device))
                names = list(losses)
                by_micro_batch.append(loss_stats(losses))
                if counts is None:
                    whole, shared = sum_over_workers(by_micro_batch[0], flags, world)
                divide = whole[:, COUNT] if counts is None else counts
                loss = weighted_loss(losses, divide, self._weights, world)
                self._timer.mark("forward")
                loss.backward()
                self._timer.mark("backward")
        if counts is not None:
            whole, shared = sum_over_workers(torch.stack(by_micro_batch).sum(0), flags, world)
        return names, by_micro_batch, whole, shared

    def _features(
        self, objective: GathersFeatures, step: int, micro_batches: Sequence[int], batches: Sequence[Any]
    ) -> torch.Tensor:
        """Compute the features of all items of the step, those of other workers too, in order and without gradients."""
        parts = []
        with torch.no_grad(), self._autocast:
            for micro_batch, batch in zip(micro_batches, batches, strict=True):
                self._seed(step, micro_batch)  # the same dropout as in the pass that computes gradients
                parts.append(objective.embed(batch.to(self._device)))
        sizes = worker_sizes(batches[0].step_items, self._settings.num_micro_batches, self._world)
        return gather_rows(torch.cat(parts), sizes)

    def _seed(self, step: int, micro_batch: int) -> None:
        """Seed by (seed, step, micro-batch), so that a resumed run repeats dropout, with any number of workers."""
        torch.manual_seed((self._settings.schedule.seed * 1_000_003 + step) * 4099 + micro_batch)

    def _alone(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context that exchanges gradients only in the backward pass of a worker's last micro-batch."""
        if last or not isinstance(self._model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._model.no_sync()

    def _counts(self, batches: Sequence[Any]) -> torch.Tensor:
        """Return the items of each loss in the whole step, in the order of the losses."""
        by_micro_batch = [self._objective.counts(batch) for batch in batches]
        mine = to_device(
            [sum(micro_batch[name] for micro_batch in by_micro_batch) for name in by_micro_batch[0]], self._device
        )
        counts, _ = sum_over_workers(mine, mine.new_zeros(0), self._world)
        return counts

    def _update(self, is_finite: torch.Tensor) -> None:
        """Move the weights, unless loss or gradient are not finite."""
        if self._fused:  # the protocol of torch's GradScaler: the kernel itself leaves everything as it was
            self._optimizer.found_inf = (~is_finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self._optimizer.step()
        elif is_finite:  # on a CPU
            self._optimizer.step()
        if self._ema:
            self._ema.update(self._objective)

    def _read(self, left: int) -> list[StepOutcome]:
        """Take the numbers of all pending steps but the last `left`."""
        return [self._outcome(self._pending.popleft()) for _ in range(len(self._pending) - left)]

    def _outcome(self, pending: _Pending) -> StepOutcome:
        """Wait until a step's numbers are there, and say how it went."""
        if pending.arrived is not None:
            pending.arrived.synchronize()
        size = 3 * len(pending.names)
        metrics = step_metrics(pending.numbers[:size].view(-1, 3), pending.names)
        loss, norm, *flags = pending.numbers[size:].tolist()
        wrong = [name for name in pending.names if not math.isfinite(metrics[f"{name}_loss"])]
        metrics = {"loss": loss} | metrics | {"grad_norm": norm, "lr": pending.rate}
        if wrong or not math.isfinite(norm):
            return StepOutcome(metrics, flags, self._skipped(pending, wrong))
        self._in_a_row = 0
        return StepOutcome(metrics, flags)

    def _skipped(self, pending: _Pending, wrong: list[str]) -> dict[str, Any]:
        """Report a step without update: at the clips of the micro-batches whose own losses are not finite."""
        self._in_a_row += 1
        every = [clip for clips in pending.clip_ids for clip in clips]
        bad = [
            clip
            for stats, clips in zip(pending.by_micro_batch, pending.clip_ids, strict=True)
            if not bool(stats.isfinite().all())
            for clip in clips
        ]
        states = gather((bad, every), self._world)
        clips = [clip for some, _ in states for clip in some] or [clip for _, all_ in states for clip in all_]
        what = ", ".join(f"{name} loss" for name in wrong) or "gradient"
        policy = self._settings.schedule.nonfinite
        if policy == "skip" and self._in_a_row < _MOST_SKIPPED:
            return {"step": pending.step + 1, "what": what, "clip_ids": clips}
        shown = ", ".join(clips[:_SHOWN]) + (f" and {len(clips) - _SHOWN} more" if len(clips) > _SHOWN else "")
        advice = "lower optim.lr, or look at these clips"
        if policy == "stop":
            advice = "go on without this step by --schedule.nonfinite skip, " + advice
        raise NonFiniteError(f"step {pending.step + 1}: {what} is not finite, at clips {shown}; {advice}")


def _to_host(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start the copy of some numbers to the host; the event is over when they are there."""
    if numbers.device.type != "cuda":
        return numbers, None
    there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    there.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return there, arrived
