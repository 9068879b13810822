"""Run one training: start, continue or reuse it, publish a checkpoint, and return the summary."""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from evilm.config.stages import Finetune, Pretrain, TrainTokenizer
from evilm.dataloader.sampler import batch_sizes
from evilm.errors import CheckpointError, ConfigError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.model.checkpoint_folder import STATE
from evilm.train.checkpoint_manager import CHECKPOINTS, newest_first, step_of
from evilm.train.task import TASKS

logger = logging.getLogger(__name__)


class ExportedModel(Protocol):
    """A model that a training can publish."""

    def save_pretrained(self, uri: str) -> None:
        """Write the model to a folder."""
        ...


@dataclass(frozen=True)
class TrainingRun:
    """One training and its output folder."""

    config: Pretrain | TrainTokenizer | Finetune
    command: str
    """Name of the command."""
    task: str
    """Name of the task in `TASKS`."""
    out: str
    inputs: dict[str, str]
    """Fingerprint of each input by name."""
    load: Callable[[str], ExportedModel]
    """Function that loads a checkpoint as a model and reads all of it before it returns."""
    describe: Callable[[], dict[str, Any]]
    """Function that returns the summary's entries about the published model."""
    files: tuple[str, ...] = ()
    """Names in the output folder without which there is no model."""

    def open(self, data: str, num_train: int, num_val: int) -> Output:
        """Claim the output folder; reopen a finished one if more steps are requested.

        Args:
            data: place of the data, for messages.
            num_train: clips or items of an epoch.
            num_val: clips or items of the split val.

        Returns:
            The folder; `done` is the summary of a training that has made all steps, None if some are missing.

        Raises:
            ConfigError: the folder holds the result of other settings or inputs, or the model to start from; its
                checkpoints were deleted, or its weights with them; or the best step is requested but nothing will be
                evaluated.
        """
        if self.config.export == "best" and not num_val:
            raise ConfigError(
                f"--export best needs evaluations, and {data} has nothing of the split val; use --export last"
            )
        if not num_val:
            logger.warning(
                "%s has nothing of the split val: nothing is evaluated, and the last step is published; "
                "--val-share 0.05 of shard_videos, or --items.val-share, creates one",
                data,
            )
        if storage.join(self.config.init, "").startswith(storage.join(self.out, "")):
            raise ConfigError(f"--init {self.config.init} is inside --out {self.out}; choose another --out")
        output = Output(self.config, self.out, self.inputs, needs=lambda _: self.files)
        done = output.done
        if done is None and output.lost and not newest_first(self.out):
            with output:  # which gives it up
                place = storage.join(self.out, CHECKPOINTS)
                raise ConfigError(
                    f"{self.out} has lost {', '.join(output.lost)}, and {place} is empty; use another --out, or "
                    "--overwrite to train from the start"
                )
        if done is None:
            return output
        reached, wanted = int(done["steps"]), num_steps(self.config, num_train)
        if reached >= wanted or (done.get("stopped_early") and self.config.schedule.patience):
            if reached > wanted:
                logger.info("%s ended at step %d, beyond the requested %d; it is reused", self.out, reached, wanted)
            return output
        if not newest_first(self.out):
            raise ConfigError(
                f"{self.out} was trained to step {reached} and can't be continued to step {wanted}: "
                f"{storage.join(self.out, CHECKPOINTS)} is empty; use --schedule.max-steps {reached}, another --out, "
                "or --overwrite to train from the start"
            )
        logger.info("%s was trained to step %d; training continues to step %d", self.out, reached, wanted)
        self._reopen(output)
        output.done = None
        return output

    def warm_start(self) -> dict[str, Any]:
        """Try the start from another model before the workers do, and log the weights taken.

        Returns:
            The summary's entry about it; empty if the training starts from random weights.

        Raises:
            CheckpointError: no weight matrix of that model fits.
        """
        if not self.config.init:
            return {}
        task: Any = TASKS.get(self.task)(self.config.model_dump(mode="json"))
        _, report = task.start()
        logger.info("%s", report)
        return {"init": dataclasses.asdict(report)}

    def is_published(self, summary: dict[str, Any]) -> bool:
        """Check if a finished training has published the requested step."""
        return self._chosen(summary)["step"] == _published_step(summary)

    def finish(self, output: Output) -> dict[str, Any]:
        """Train, or only publish another step of a finished training; return the summary, for `Output.close`."""
        from evilm.train.launch import catch_up, fit

        if output.done is None:
            return fit(self.config, self.command, self.task, output, lambda summary: self._publish(output, summary))
        summary = output.done | self._publish(output, output.done)
        catch_up(self.config, self.command, self.out, summary)
        return summary

    def _publish(self, output: Output, summary: dict[str, Any]) -> dict[str, Any]:
        """Publish the requested step in place of the current one; return the changed entries of the summary."""
        chosen, fields = self._chosen(summary), {}
        if chosen["step"] != _published_step(summary):
            place = storage.join(self.out, CHECKPOINTS, chosen["checkpoint"])
            model, state = self._load(place, chosen), storage.read_json(storage.join(place, STATE))
            self._reopen(output)  # only now, since the checkpoint could be loaded
            model.save_pretrained(self.out)
            fields = {name: state[name] for name in ("val", "eval_clips") if name in state}
        logger.info("%s: step %d of %d is published", self.out, chosen["step"], summary["steps"])
        return fields | self.describe() | {"published": chosen}

    def _chosen(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Find the step to publish and its checkpoint."""
        last = int(summary["steps"])
        if self.config.export == "last":
            names = [name for name in newest_first(self.out) if step_of(name) == last]
            return {"export": "last", "step": last, "checkpoint": names[0] if names else ""}
        best: dict[str, Any] = summary.get("best") or {}
        keep = self.config.schedule.keep_best
        if best and best["metric"] != keep:
            raise ConfigError(
                f"--export best: the best step of {self.out} was chosen by {best['metric']}, not by {keep}; use "
                f"--schedule.keep-best {best['metric']}"
            )
        if not best:
            raise ConfigError(
                f"--export best: no evaluation of {self.out} gave a finite value of schedule.keep_best = {keep!r}; "
                "use --export last"
            )
        return {"export": "best", "step": best["step"], "checkpoint": best["checkpoint"]}

    def _load(self, place: str, chosen: dict[str, Any]) -> ExportedModel:
        """Load a checkpoint as a model."""
        other = {"last": "best", "best": "last"}[chosen["export"]]
        if not chosen["checkpoint"] or not storage.list_names(place):
            raise CheckpointError(
                f"--export {chosen['export']}: the checkpoint of step {chosen['step']} is not in "
                f"{storage.join(self.out, CHECKPOINTS)} any more; use --export {other}, or --overwrite to train again"
            )
        return self.load(place)

    def _reopen(self, output: Output) -> None:
        """Make a finished output unfinished: its MLflow run receives metrics and model again when it ends."""
        from evilm.tracking.run_file import reopen_run

        output.claim()
        reopen_run(self.out)  # first: while the summary exists, the same command uploads everything to MLflow
        output.extend()


def num_steps(config: Pretrain | TrainTokenizer | Finetune, num_clips: int) -> int:
    """Count the steps of a training over `num_clips` clips."""
    schedule = config.schedule
    steps = len(batch_sizes(num_clips, schedule.batch_clips, schedule.tail)) * schedule.epochs
    return int(min(steps, schedule.max_steps or math.inf))


def _published_step(summary: dict[str, Any]) -> int:
    return int((summary.get("published") or {"step": summary["steps"]})["step"])
