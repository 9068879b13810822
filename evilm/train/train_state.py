"""Hold what learns: the model with its optimizer and the moving average of its weights, the same on every worker."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config

from evilm.config.training import TrainConfig
from evilm.objectives.objective import Objective
from evilm.train.checkpoint_files import Snapshot, load_checkpoint, take_snapshot
from evilm.train.checkpoint_manager import find_intact, load_named
from evilm.train.optimizer import EMA, autocast, make_optimizer
from evilm.train.timing import StepTimer
from evilm.train.train_step import TrainStep

logger = logging.getLogger(__name__)


class TrainState:
    """A model on one worker: fresh or resumed, ready to be updated, copied for a checkpoint."""

    def __init__(
        self, objective: Objective, settings: TrainConfig, device: torch.device, rank: int, world: int
    ) -> None:
        """Begin with fresh weights."""
        self.settings, self._device, self._rank, self._world = settings, device, rank, world
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.objective = objective.to(device)
        if settings.cluster.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        decay = settings.optim.ema_decay
        self._ema = EMA(self.objective, decay) if decay else None
        fused = settings.cluster.fused or device.type == "cuda"  # whose kernel decides on the device about NaN
        self._optimizer = make_optimizer(self.objective, settings.optim, fused, self.objective.lr_scale)
        self.autocast = autocast(settings.cluster.precision, device)
        """Context of forward passes, in training and evaluation."""

    @property
    def finished(self) -> Objective:
        """Return the module to evaluate and publish: the EMA if there is one."""
        return self._ema.module if self._ema else self.objective  # type: ignore[return-value]

    def restore(self, out: str) -> tuple[str, dict[str, Any]]:
        """Load the newest intact checkpoint, the same on all workers.

        Returns:
            Its name and the state saved with it; '' and nothing for a fresh start.
        """
        from ray.train.collective import broadcast_from_rank_zero

        found = find_intact(out, self._load) if self._rank == 0 else None
        name = str(broadcast_from_rank_zero(found[0] if found else ""))
        if not name:
            return "", {}
        return name, found[1] if found else load_named(out, name, self._load)

    def _load(self, folder: Path) -> dict[str, Any]:
        averaged = self._ema.averaged if self._ema else None
        return load_checkpoint(folder, self.objective, self._optimizer, averaged)

    def make_train_step(self, fresh: bool, some_batches: Callable[[int], Iterable[Any]], timer: StepTimer) -> TrainStep:
        """Make the model ready to be trained.

        Args:
            fresh: no checkpoint was restored.
            some_batches: gives the first n batches of training, for a start that depends on data.
        """
        if fresh:
            self.objective.prepare(some_batches, self.settings.schedule.seed)
        if self._world > 1:  # a start that looked at data looked at each worker's own slice; rank 0's counts
            for tensor in self.objective.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
            if self._rank != 0:
                self.objective.drop_counts()
        if fresh and self._ema:
            self._ema.averaged.module.load_state_dict(self.objective.state_dict())
        if self.settings.cluster.compile:
            compile_objective(self.objective)
        return TrainStep(
            objective=self.objective,
            model=self._shared() if self._world > 1 else self.objective,
            optimizer=self._optimizer,
            settings=self.settings,
            world=self._world,
            autocast=self.autocast,
            device=self._device,
            ema=self._ema,
            timer=timer,
        )

    def _shared(self) -> torch.nn.Module:
        """Wrap the model so that its gradients are averaged over workers."""
        devices = [self._device] if self._device.type == "cuda" else None
        # Buffers count what this worker saw (code usage); broadcasting rank 0's before each step would lose that.
        return torch.nn.parallel.DistributedDataParallel(
            self.objective, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def snapshot(self, state: dict[str, Any], files: Mapping[str, bytes]) -> Snapshot:
        """Copy everything to main memory, for a checkpoint with these files beside the weights."""
        ema = self._ema.averaged if self._ema else None
        return take_snapshot(self.objective, self._optimizer, state, ema, files)


def compile_objective(objective: Objective, **options: Any) -> None:
    """Compile an objective in place into one graph for batches of all sizes; `options` go to torch.compile.

    Sizes that happen to be equal in the first batch, such as its clips and its masked words, are not taken for a rule:
    the next batch would be compiled again. With several workers the graph is not cut at the buckets of gradients: the
    parts would be compiled again for batches of other sizes. Gradients are then exchanged after the backward pass
    instead of during it.
    """
    torch.fx.experimental._config.use_duck_shape = False  # pyright: ignore[reportAttributeAccessIssue]
    torch._dynamo.config.optimize_ddp = False  # pyright: ignore[reportAttributeAccessIssue]
    objective.compile(dynamic=True, fullgraph=True, **options)
