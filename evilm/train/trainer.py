"""The loop of one training worker, top to bottom: state, loader, step, log, evaluate, save.

It knows only the `Task`: an objective that turns a batch into named losses, and loaders that make the batches. Both
trainings, the tokenizer's and the student's, run through it.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any, cast

import torch

from evilm.console import log_to_console
from evilm.dataloader.collate import Batch
from evilm.dataloader.sampler import TrainSampler
from evilm.errors import EvilmError, NonFiniteError
from evilm.io.ownership import check_owner
from evilm.tracking.mlflow_uploader import MetricsRecorder
from evilm.train import preemption
from evilm.train.attempts import Audit, begin_attempt, write_plan
from evilm.train.checkpoint_files import files_beside
from evilm.train.checkpoint_manager import CheckpointManager
from evilm.train.micro_batches import check_world, micro_batches_of, on_device, pinned, split_micro_batches
from evilm.train.optimizer import make_deterministic
from evilm.train.progress import Cadence, Progress, estimate_chance, evaluation_line, metrics_line
from evilm.train.task import TASKS, Task, WorkerSpec
from evilm.train.timing import StepProfiler, StepTimer, matmul_peak
from evilm.train.train_state import TrainState
from evilm.train.train_step import StepOutcome
from evilm.train.validation import evaluate, note_best

logger = logging.getLogger(__name__)

_CHANCE_BATCHES = 4


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one; runs in every worker of Ray Train.

    `config` has the fields of a `WorkerSpec`.

    Returns:
        Final metrics of the train and val splits and the number of steps; or `interrupted`, the step that an asked-for
        end left it at; or `error`, what the user has to fix.
    """
    import ray.train

    log_to_console()
    spec = WorkerSpec(**config)
    task = TASKS.get(spec.task)(spec.settings)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        run = Trainer(task, spec, rank, world)
        try:
            return run.train()
        finally:
            run.ends.close()
    except NonFiniteError as error:  # raised by every worker alike; again it would end the same way
        return {"error": str(error), "not_finite": True}
    except EvilmError as error:
        if world > 1:
            raise  # the others wait for this worker, and only a failure of the group ends them
        if isinstance(error, preemption.WorkerPreempted):
            raise  # to be restarted
        return {"error": str(error)}  # raised, Ray would start again what can't get better


class Trainer:
    """One worker's part of a training."""

    def __init__(self, task: Task, spec: WorkerSpec, rank: int, world: int) -> None:
        import ray.train.torch

        self.task, self.spec, self.rank, self.world = task, spec, rank, world
        self.settings = task.settings
        schedule, cluster = self.settings.schedule, self.settings.cluster
        self.device = ray.train.torch.get_device() if cluster.uses_gpus else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, round(cluster.cpus_per_worker)))
            make_deterministic()
        torch.manual_seed(schedule.seed)
        check_world(self.settings, world)
        objective = task.objective()
        # Forward and backward, two FLOPs a multiply-accumulate; the backward pass costs twice the forward one.
        self.flops_per_clip = 6 * task.forward_macs(objective) if rank == 0 else 0.0
        self.train_state = TrainState(objective, self.settings, self.device, rank, world)
        dtype = torch.bfloat16 if cluster.precision == "bf16" else torch.float32
        self.peak = matmul_peak(self.device, dtype) if rank == 0 else 0.0
        self.timer = StepTimer(self.device)
        self.micro_batches = micro_batches_of(rank, world, self.settings.num_micro_batches)
        loader = pinned(task.train_loader(self.micro_batches.start, self.settings.num_micro_batches), self.device)
        self.order = cast(TrainSampler, loader.order)
        self.steps_per_epoch = self.order.num_steps
        self.loader = split_micro_batches(loader, self.settings.num_micro_batches, self.micro_batches)
        self.schedule_steps = self.steps_per_epoch * schedule.epochs
        self.num_steps = min(self.schedule_steps, schedule.max_steps or self.schedule_steps)
        self.state: dict[str, Any] = {"step": 0, "skipped": 0, "train": {}, "val": {}, "best": {}, "log": {}}
        self.state |= {"ended": -1, "stale": 0}  # the step handled as the last one; evaluations since the best one
        self.saved, self.chance = -1, dict[str, float]()
        self.ends = ExitStack()  # what was opened last is closed first
        self.recorder = MetricsRecorder(spec.out, spec.tracked, spec.run) if rank == 0 else None
        if self.recorder:
            self.ends.callback(self.recorder.close)
        self.panels = task.panels(spec.tracked) if rank == 0 else None
        if self.panels:
            self.ends.callback(self.panels.close)
        self.watch = preemption.StopSignal(spec.out, rank, spec.run)
        self.ends.callback(self.watch.close)

    def train(self) -> dict[str, Any]:
        """Make all steps that are left, then export the model."""
        restored = self._restore()
        start = self.logged = int(self.state["step"])
        self.num_steps = start if self._is_stale() else max(self.num_steps, start)  # restored at or behind the end
        self._begin(restored)
        self.due = Cadence(self.settings.schedule, self.steps_per_epoch, self.num_steps)
        train_step = self.train_state.make_train_step(not restored, self._some_batches, self.timer)
        progress = self.progress = Progress(self.num_steps, self.order.mean_clips, start, self.state["log"])
        count = len(self.micro_batches)
        fed = self.loader.batches(start * count, self.num_steps * count)
        stream = on_device(fed, self.device, self.timer)
        profiler = StepProfiler(self.spec.out, self.settings.profiled if self.rank == 0 else range(0), self.device)
        self.ends.callback(profiler.close)
        if self.recorder:
            self.ends.enter_context(progress.reported())
        for step in range(start, self.num_steps):
            batches = list(islice(stream, count))
            profiler.before(step)
            flags = self.watch.flags(self.checkpoints.took_s)
            outcomes = train_step.step(step, self.schedule_steps, self.micro_batches, batches, flags)
            self.audit.note(step, self.micro_batches, batches)
            self.state["step"] = done = step + 1
            progress.reached(done)
            profiler.after(step)
            is_asked = any(flag > 0 for outcome in outcomes for flag in outcome.flags)
            if is_asked or self.due.numbers(done):
                outcomes += train_step.settle()
            stop_run, worker_ends, look, near = self._take(outcomes)
            if self.due.log(done):
                self._log(progress.flush(done, self.loader, keep=not self.due.log_in_any_run(done)), done)
            with progress.paused("evaluating"):
                is_best = self._evaluate(done)
                self.num_steps = done if self._is_stale() else self.num_steps
            with progress.paused("drawing a panel"):
                if self.panels and self.panels.due(done, self.num_steps):
                    self.panels.draw(self.train_state.finished, done)
            with progress.paused("saving a checkpoint"):
                urgent = self._urgent(stop_run, worker_ends, look, near)
                self.state["ended"] = done if done == self.num_steps else -1
                if urgent or is_best or self.due.checkpoint(done):
                    self._save(wait=urgent or done == self.num_steps)
            self.timer.skip()
            if worker_ends and not stop_run:
                raise preemption.WorkerPreempted()
            if stop_run and done < self.num_steps:
                return {"interrupted": done}
            if done == self.num_steps:
                break
        self._end_restored()
        if self.rank == 0:
            check_owner(self.spec.out, self.spec.run)
            self.task.export(self.train_state.finished)
        more = {name: self.state[name] for name in ("best", "eval_clips") if self.state.get(name)}
        skipped = {"skipped_steps": self.state["skipped"]} if self.state["skipped"] else {}
        more |= {"stopped_early": True} if self._is_stale() else {}
        return {"steps": self.num_steps, "train": self.state["train"], "val": self.state["val"]} | more | skipped

    def _end_restored(self) -> None:
        """Log, evaluate and keep a restored step that has become the last one, as the loop does with the last step."""
        done = int(self.state["step"])
        if self.state["ended"] == done:
            return
        if self.progress.state["count"]:
            self._log(self.progress.flush(done, self.loader, keep=True), done)
        self._evaluate(done)
        self.state["ended"], self.saved = done, -1
        self._save(wait=True)

    def _take(self, outcomes: list[StepOutcome]) -> list[bool]:
        """Note the numbers of steps, and return which flags any of them raised."""
        for outcome in outcomes:
            self.progress.add(outcome.metrics, bool(outcome.skipped))
            if outcome.skipped:
                self._note_skipped(outcome.skipped)
        flags = [outcome.flags for outcome in outcomes] or [[0.0] * preemption.NUM_FLAGS]
        return [any(flag > 0 for flag in column) for column in zip(*flags, strict=True)]

    def _urgent(self, stop_run: bool, worker_ends: bool, look: bool, near: bool) -> bool:
        """Return whether a checkpoint is wanted now, because something is about to end."""
        leaving = self.watch.leaving() if look else ""
        if near and not leaving:
            leaving = "a node will soon be taken away"
        if self.rank == 0 and (stop_run or worker_ends or leaving):
            why = leaving or ("the run was asked to stop" if stop_run else "a worker was asked to end")
            logger.warning("%s: checkpoint at step %d", why, self.state["step"])
        return stop_run or worker_ends or bool(leaving)

    def _evaluate(self, done: int) -> bool:
        """Evaluate on the val split at the end of an epoch; whether it is the best so far and worth keeping."""
        if not self.due.evaluation(done):
            return False
        loader = self.task.eval_loader(self.rank, self.world)
        if loader is None:
            return False
        autocast = self.train_state.autocast
        metrics = evaluate(self.train_state.finished, pinned(loader, self.device), self.device, self.world, autocast)
        self.state |= {"val": metrics, "eval_clips": self.settings.schedule.eval_clips}
        if self.recorder:
            epoch = -(-done // self.steps_per_epoch)
            logger.info("%s", evaluation_line(metrics, epoch, self.settings.schedule.epochs))
            self.recorder.log({f"val/{name}": value for name, value in metrics.items()}, done)
        best = note_best(self.state["best"], metrics, self.settings.schedule, done, self.attempt)
        self.state["stale"] = 0 if best else self.state["stale"] + 1
        self.state["best"] = best or self.state["best"]
        return bool(best)

    def _is_stale(self) -> bool:
        """Check if `schedule.patience` evaluations in a row were not better than the best one."""
        patience = self.settings.schedule.patience
        return 0 < patience <= self.state["stale"]

    def _log(self, metrics: dict[str, float], done: int) -> None:
        self.state["train"] = {k: v for k, v in metrics.items() if not k.startswith("time/")}
        steps, phases = max(1, done - self.logged), self.timer.read()
        self.logged = done
        if self.recorder:
            metrics |= {f"time/step_{phase}_s": seconds / steps for phase, seconds in phases.items()}
            speed = metrics["time/clips_per_s"] / self.world
            metrics |= {"time/mfu": self.flops_per_clip * speed / self.peak} if self.flops_per_clip else {}
            self.recorder.log({k if "/" in k else f"train/{k}": v for k, v in metrics.items()}, done)
            if self.progress.is_line_due() or done == self.num_steps:
                logger.info("%s", metrics_line(metrics, done, self.num_steps, self.steps_per_epoch, self.chance))

    def _note_skipped(self, report: dict[str, Any]) -> None:
        """Count a step that made no update, and keep where it happened."""
        self.state["skipped"] += 1
        if self.recorder:
            clips = ", ".join(report["clip_ids"][:8])
            logger.warning(
                "step %d made no update: %s is not finite, at clips %s", report["step"], report["what"], clips
            )
            self.recorder.note("nonfinite", report)
            self.recorder.log({"train/skipped_steps": self.state["skipped"]}, report["step"])

    def _save(self, wait: bool) -> None:
        """Save a checkpoint in the background; with `wait`, return when it is registered. A barrier."""
        import ray.train.collective

        if self.saved != self.state["step"]:
            self.saved = self.state["step"]
            self.audit.write()
            self.train_state.objective.collect_counts()
            self.state["log"] = self.progress.state
            before = self.recorder.store if self.recorder else lambda: None
            best = self.state["best"].get("checkpoint", "")
            self.checkpoints.save(self.saved, lambda: self.train_state.snapshot(self.state, self.files), best, before)
        if wait:
            self.checkpoints.finish()
            ray.train.collective.barrier()

    def _restore(self) -> str:
        """Go on from the newest intact checkpoint; its name, '' for a fresh start."""
        name, state = self.train_state.restore(self.spec.out)
        if name:
            self.state |= state
            self.saved = self.state["step"]
            if self.rank == 0:
                logger.info("continue from step %d of %d (%s)", self.saved, self.num_steps, name)
        return name

    def _begin(self, restored: str) -> None:
        """Count this start of the training, and open what is written under its number."""
        from ray.train.collective import broadcast_from_rank_zero

        out, schedule, number = self.spec.out, self.settings.schedule, 0
        if self.rank == 0:
            check_owner(out, self.spec.run)
            number = begin_attempt(out, self.state["step"], restored, self.world)
            if schedule.audit:
                write_plan(out, self.order, str(getattr(self.settings, "frames", "")))
        self.attempt = int(broadcast_from_rank_zero(number))
        self.audit = Audit(out, schedule.audit, self.attempt, self.rank)
        self.checkpoints = CheckpointManager(
            out, self.spec.run, self.attempt, schedule.keep_checkpoints, self.rank, restored
        )
        self.files = files_beside(lambda folder: self.task.describe(folder, self.train_state.objective))
        self.ends.callback(self.checkpoints.close)
        if self.recorder:
            some = self.loader.batches(0, min(_CHANCE_BATCHES, self.steps_per_epoch) * len(self.micro_batches))
            self.chance = estimate_chance(self.train_state.objective, some)
            levels = {f"chance/{name}": share for name, share in self.chance.items()}
            self.recorder.log({"time/attempt": number, "time/workers": self.world} | levels, self.state["step"])

    def _some_batches(self, count: int) -> Iterator[Batch]:
        """Return this worker's micro-batches of the first steps, for a start that depends on data."""
        return (batch.to(self.device) for batch in self.loader.batches(0, count * len(self.micro_batches)))
