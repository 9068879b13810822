"""The loop of one training worker, top to bottom: state, feed, step, log, look, save.

It knows only the `Task`: an objective that turns a batch into named losses, and feeds that make the batches. Both
trainings, the tokenizer's and the student's, run through it.
"""

import importlib
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from evilm.config.train import OptimConfig, TrainConfig
from evilm.data.feed import Feed
from evilm.errors import EvilmError
from evilm.steps.base import Objective
from evilm.train.checkpoint import load_checkpoint, save_checkpoint
from evilm.train.console import log_to_console
from evilm.train.precision import autocast, make_deterministic
from evilm.train.progress import Progress, metrics_line
from evilm.train.reduce import gather, reduce_losses
from evilm.train.tracking import METRICS_FILE, Shipper, Spool

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What a training is about; built in each worker from plain settings."""

    settings: TrainConfig

    def objective(self) -> Objective:
        """The module that is trained, with fresh weights drawn from the global generator."""
        ...

    def train_feed(self, rank: int, world: int) -> Feed:
        """Batches of the train split for one worker."""
        ...

    def eval_feed(self, rank: int, world: int) -> Feed | None:
        """Batches of the val split for one worker; None where there is none."""
        ...

    def export(self, objective: Objective) -> None:
        """Write the finished model to its place."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """What travels to a worker: names and settings, never models."""

    task: str
    """`module:function` that builds the task from `settings`."""
    settings: dict[str, Any]
    out: str
    run_id: str
    tracking_uri: str


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one; runs in every worker of Ray Train.

    Args:
        config: the fields of a `WorkerSpec`.

    Returns:
        Final metrics of the train and val splits and the number of steps; or `error`, what the user has to mend.
    """
    import ray.train

    log_to_console()
    spec = WorkerSpec(**config)
    module, function = spec.task.split(":")
    task: Task = getattr(importlib.import_module(module), function)(spec.settings)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        run = Run(task, spec, rank, world)
        try:
            return run.train()
        finally:
            run.close()
    except EvilmError as error:
        if world > 1:
            raise  # the others wait for this worker, and only a failure of the group ends them
        return {"error": str(error)}  # raised, Ray would start again what can't get better


class Run:
    """One worker's part of a training."""

    def __init__(self, task: Task, spec: WorkerSpec, rank: int, world: int) -> None:
        import ray.train.torch

        self.task, self.spec, self.rank, self.world = task, spec, rank, world
        self.settings = task.settings
        schedule, cluster = self.settings.schedule, self.settings.cluster
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, round(cluster.cpus_per_worker)))
            make_deterministic()
        self.autocast = autocast(cluster.precision, self.device)
        torch.manual_seed(schedule.seed)
        self.objective = task.objective().to(self.device)
        self.optimizer = make_optimizer(self.objective, self.settings.optim)
        self.feed = task.train_feed(rank, world)
        self.steps_per_epoch = self.feed.order.num_steps
        self.schedule_steps = self.steps_per_epoch * schedule.epochs
        self.num_steps = min(self.schedule_steps, schedule.max_steps or self.schedule_steps)
        self.state: dict[str, Any] = {"step": 0, "train": {}, "val": {}}
        folder = Path(spec.out) if "://" not in spec.out else Path(tempfile.mkdtemp(prefix="evilm-metrics-"))
        self.spool = Spool(folder / METRICS_FILE) if rank == 0 else None
        self.shipper = Shipper(spec.tracking_uri if rank == 0 else "", spec.run_id, folder / METRICS_FILE).start()

    def train(self) -> dict[str, Any]:
        """All steps that are left, then the export of the model."""
        from ray.train.torch import prepare_model

        start = self._restore()
        if start == 0:
            self.objective.prepare(self._some_batches, self.settings.schedule.seed)
        if self.world > 1:  # a start that looked at data looked at each worker's own slice; rank 0's counts
            for tensor in self.objective.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
        # Buffers count what this worker saw (code usage); broadcasting rank 0's before each step would lose that.
        parallel = {"find_unused_parameters": self.objective.sparse, "broadcast_buffers": False}
        model = prepare_model(self.objective, parallel_strategy_kwargs=parallel)
        progress = Progress(self.num_steps, self.settings.schedule.batch_clips, start)
        for step, batch in enumerate(self.feed.batches(start, self.num_steps), start=start):
            metrics = self._step(model, step, batch.to(self.device))
            progress.add(metrics)
            self.state["step"] = done = step + 1
            if done % self.settings.schedule.log_every_steps == 0 or done == self.num_steps:
                self._log(progress.flush(done, self.feed), done)
            self._look(done)
            if done % self.settings.schedule.checkpoint_every_steps == 0 or done == self.num_steps:
                self._save()
        if self.rank == 0:
            self.task.export(self.objective)
        return {"steps": self.num_steps, "train": self.state["train"], "val": self.state["val"]}

    def _step(self, model: nn.Module, step: int, batch: Any) -> dict[str, float]:
        """One update; dropout is seeded by (seed, step, rank), so a resumed run repeats it."""
        torch.manual_seed((self.settings.schedule.seed * 1_000_003 + step) * 4099 + self.rank)
        rate = learning_rate(self.settings.optim, step, self.schedule_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast:
            losses = model(batch)
        loss, metrics = reduce_losses(losses, self.objective.weights, self.world)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.settings.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), limit)
        self.optimizer.step()
        self.objective.after_step(step + 1, self.settings.schedule.seed)
        return metrics | {"grad_norm": float(norm), "lr": rate}

    def _look(self, done: int) -> None:
        """Evaluate on the val split at the end of an epoch."""
        every = self.settings.schedule.eval_every_epochs * self.steps_per_epoch
        if done % every and done != self.num_steps:
            return
        feed = self.task.eval_feed(self.rank, self.world)
        if feed is None:
            return
        metrics = evaluate(self.objective, feed, self.device, self.world)
        self.state["val"] = metrics
        if self.rank == 0:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            logger.info("epoch %d/%d val: %s", -(-done // self.steps_per_epoch), self.settings.schedule.epochs, shown)
            if self.spool:
                self.spool.log({f"val/{name}": value for name, value in metrics.items()}, done)

    def _log(self, metrics: dict[str, float], done: int) -> None:
        self.state["train"] = {k: v for k, v in metrics.items() if not k.startswith("time/")}
        if self.spool:
            self.spool.log({k if "/" in k else f"train/{k}": v for k, v in metrics.items()}, done)
            logger.info("%s", metrics_line(metrics, done, self.num_steps, self.steps_per_epoch))

    def _save(self) -> None:
        """Report a checkpoint to Ray Train; a barrier over all workers."""
        import ray.train

        name = f"step_{self.state['step']:08d}"
        if self.rank != 0:
            ray.train.report({}, checkpoint=None, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory(prefix="evilm-checkpoint-") as folder:
            save_checkpoint(Path(folder), self.objective, self.optimizer, self.state)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": self.state["step"]}, checkpoint=checkpoint, checkpoint_dir_name=name)

    def _restore(self) -> int:
        """Load the newest registered checkpoint; the step to begin with."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            self.state = load_checkpoint(Path(folder), self.objective, self.optimizer)
        if self.rank == 0:
            logger.info("continue from step %d of %d", self.state["step"], self.num_steps)
        return int(self.state["step"])

    def _some_batches(self, count: int) -> Any:
        """The first batches of training, for a start that depends on data."""
        return (batch.to(self.device) for batch in self.feed.batches(0, count))

    def close(self) -> None:
        """Flush the metrics."""
        if self.spool:
            self.spool.close()
        self.shipper.close()


@torch.no_grad()
def evaluate(objective: Objective, feed: Feed, device: torch.device, world: int) -> dict[str, float]:
    """Scores of a split, summed over workers; the model is back in train mode afterwards."""
    objective.eval()
    scores = objective.scores()
    for batch in feed.batches(0, feed.order.num_steps):
        scores.add(batch, device)
    objective.train()
    return scores.result(gather(scores.state(), world))


def make_optimizer(module: nn.Module, settings: OptimConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on vectors: biases, normalisations, LayerScale. Paper: Sec. 4.1."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2))


def learning_rate(settings: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine decay to `final_lr_ratio`; a function of the step alone."""
    warmup = round(settings.warmup_ratio * num_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    low = settings.final_lr_ratio
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
