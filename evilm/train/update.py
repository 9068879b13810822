"""One update of the weights: losses of this worker's parts of a step, gradients, and what to do with NaN."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evilm.config.train import TrainConfig
from evilm.errors import EvilmError
from evilm.steps.base import Objective
from evilm.train.optim import Mean, learning_rate
from evilm.train.reduce import gather, loss_stats, step_metrics, sum_over_workers, weighted_loss

_MOST_SKIPPED = 20  # steps in a row without an update: the weights themselves are spoilt by then
_SHOWN = 8


class NonFiniteError(EvilmError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; every worker raises it at the same step."""


@dataclass
class Outcome:
    """What a step gave."""

    metrics: dict[str, float]
    flags: list[float]
    """The workers' flags, added up."""
    skipped: dict[str, Any] = field(default_factory=dict)
    """Of a step without update: step, what was not finite, and the clips it was found at."""


class Updater:
    """Makes global steps; the same decisions on every worker, from the same reduced numbers."""

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainConfig,
        world: int,
        autocast: Any,
        device: torch.device,
        mean: Mean | None,
    ) -> None:
        """An updater.

        Args:
            objective: what is trained.
            model: the same as it is called, wrapped by DDP where there are several workers.
            optimizer: over the objective's parameters.
            settings: learning rate, clipping, seed, what to do with NaN.
            world: number of workers.
            autocast: context of the forward pass.
            device: where the model is.
            mean: running mean of the weights, to be kept up.
        """
        self._objective, self._model, self._optimizer, self._mean = objective, model, optimizer, mean
        self._settings, self._world, self._autocast, self._device = settings, world, autocast, device
        self._in_a_row = 0

    def step(
        self, step: int, num_steps: int, parts: Sequence[int], batches: Sequence[Any], flags: Sequence[float]
    ) -> Outcome:
        """Step number `step` of `num_steps`.

        Args:
            step: counted from 0; learning rate and dropout depend on it.
            num_steps: steps of the learning-rate schedule.
            parts: which parts of the step are this worker's.
            batches: their batches.
            flags: travel with the losses and come back added up over workers.

        Raises:
            NonFiniteError: a loss or the gradient is NaN or infinite, and the settings say stop, or every step is.
        """
        rate = learning_rate(self._settings.optim, step, num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        names, by_part, stats, shared = self._losses(step, parts, batches, flags)
        metrics = step_metrics(stats, self._objective.weights, names)
        limit = self._settings.optim.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self._objective.parameters(), limit))
        metrics |= {"grad_norm": norm, "lr": rate}
        wrong = [name for name in names if not math.isfinite(metrics[f"{name}_loss"])]
        if wrong or not math.isfinite(norm):
            return Outcome(metrics, shared, self._skip(step, wrong, by_part, batches))
        self._in_a_row = 0
        self._optimizer.step()
        if self._mean:
            self._mean.update(self._objective)
        self._objective.after_step(step + 1, self._settings.schedule.seed)
        return Outcome(metrics, shared)

    def _losses(
        self, step: int, parts: Sequence[int], batches: Sequence[Any], flags: Sequence[float]
    ) -> tuple[list[str], list[torch.Tensor], torch.Tensor, list[float]]:
        """Forward and backward of every part: names of the losses, their stats by part and of the whole step, flags.

        The counts that losses are divided by are those of the whole step. Where every worker has one part they come
        with the losses; else they have to be known before the first backward pass, and are asked for first.
        """
        world, seed = self._world, self._settings.schedule.seed
        counts = None if self._settings.parts == world else self._counts(batches)
        names: list[str] = []
        by_part: list[torch.Tensor] = []
        whole, shared = torch.zeros(0), list(flags)
        for part, batch in zip(parts, batches, strict=True):
            # Seeded by (seed, step, part), so that a resumed run repeats dropout, with any number of workers.
            torch.manual_seed((seed * 1_000_003 + step) * 4099 + part)
            with self._alone(last=part == parts[-1]):
                with self._autocast:
                    losses = self._model(batch.to(self._device))
                names = list(losses)
                by_part.append(loss_stats(losses))
                if counts is None:
                    whole, shared = sum_over_workers(by_part[0], flags, world)
                divide = whole[:, 1] if counts is None else counts
                weighted_loss(losses, divide, self._objective.weights, world).backward()
        if counts is not None:
            whole, shared = sum_over_workers(torch.stack(by_part).sum(0), flags, world)
        return names, by_part, whole, shared

    def _alone(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged in the backward pass of a worker's last part, and only added up before."""
        if last or not isinstance(self._model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._model.no_sync()

    def _counts(self, batches: Sequence[Any]) -> torch.Tensor:
        """Items of each loss in the whole step, in the order of the losses."""
        by_part = [self._objective.counts(batch) for batch in batches]
        mine = torch.tensor([[sum(part[name] for part in by_part)] for name in by_part[0]], dtype=torch.float32)
        counts, _ = sum_over_workers(mine.to(self._device), [], self._world)
        return counts[:, 0]

    def _skip(self, step: int, wrong: list[str], by_part: list[torch.Tensor], batches: Sequence[Any]) -> dict[str, Any]:
        """Drop the gradients, and say where it happened: at the clips of the parts whose own losses are bad."""
        self._optimizer.zero_grad(set_to_none=True)
        self._in_a_row += 1
        every = [clip for batch in batches for clip in batch.clip_ids]
        bad = [
            clip
            for stats, batch in zip(by_part, batches, strict=True)
            if not bool(stats.isfinite().all())
            for clip in batch.clip_ids
        ]
        states = gather((bad, every), self._world)
        clips = [clip for some, _ in states for clip in some] or [clip for _, all_ in states for clip in all_]
        what = ", ".join(f"{name} loss" for name in wrong) or "gradient"
        policy = self._settings.schedule.nonfinite
        if policy == "skip" and self._in_a_row < _MOST_SKIPPED:
            return {"step": step + 1, "what": what, "clip_ids": clips}
        shown = ", ".join(clips[:_SHOWN]) + (f" and {len(clips) - _SHOWN} more" if len(clips) > _SHOWN else "")
        advice = "lower optim.lr, or look at these clips"
        if policy == "stop":
            advice = "go on without this step by --schedule.nonfinite skip, " + advice
        raise NonFiniteError(f"step {step + 1}: {what} is not finite, at clips {shown}; {advice}")
