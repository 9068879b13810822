"""The search itself: Ray Tune asks for trials, runs some at a time, and ends those early that fall behind.

Tune's own state is thrown away. What counts lies in the trials' folders, and a sweep that is started again tells the
scheduler and the plan what stands there before it asks for more.
"""

import logging
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from evilm import storage
from evilm.config.runs import Pretrain, Sweep
from evilm.errors import ClusterError
from evilm.sweep.ending import Ending
from evilm.sweep.plan import Plan
from evilm.sweep.shared import Ground
from evilm.sweep.trials import STOPPED_FILE, Outcome, Trial, make_trials, mode_of, read_outcome

logger = logging.getLogger(__name__)

TRIALS = "trials"


class Halving(ASHAScheduler):
    """Asynchronous successive halving that can be told of trials of an earlier start."""

    def remember(self, name: str, points: list[tuple[float, float]]) -> None:
        """Epochs and scores (high is good) of an ended trial; new ones have to keep up with it."""
        for epochs, score in points:
            self._brackets[0].on_result(SimpleNamespace(trial_id=name), epochs, score)  # type: ignore[arg-type]


class Queue(Searcher):
    """Hands trials to Tune, those of one setting after the other, and notes how they end.

    Attributes:
        trials: all trials so far, also those that had ended before.
        errors: what went wrong outside of the settings, by trial name.
    """

    def __init__(
        self, config: Sweep, plan: Plan, out: str, ground: Callable[[dict[str, Any]], Ground],
        settings: Callable[[Trial, Ground], Pretrain], halving: Halving | None,
    ) -> None:  # fmt: skip
        """A queue.

        Args:
            config: the sweep's settings.
            plan: which values to try.
            out: the sweep's folder.
            ground: builds what a trial with some values needs.
            settings: the pre-training of a trial.
            halving: is told of trials that have ended before.
        """
        super().__init__(metric="score", mode=mode_of(config.score))
        self._config, self._plan, self._folder = config, plan, storage.join(out, TRIALS)
        self._ground, self._settings, self._halving = ground, settings, halving
        self._waiting: deque[Trial] = deque()
        self._running: dict[str, Trial] = {}
        self._open: dict[int, dict[str, float | None]] = {}
        self._number = 0
        self.trials: list[Trial] = []
        self.errors: dict[str, str] = {}

    def fill(self) -> bool:
        """See that a trial waits; False where all have been handed out."""
        while not self._waiting:
            values = self._plan.propose(self._number)
            if values is None:
                return False
            group = make_trials(self._number, values, self._config.seeds, self._folder)
            self.trials += group
            self._open[self._number] = {}
            for trial in group:
                outcome = read_outcome(trial.out)
                if outcome.state == "stopped" and not self._halving:  # now all shall run to the end
                    storage.delete(storage.join(trial.out, STOPPED_FILE))
                    outcome = read_outcome(trial.out)
                if outcome.state == "unfinished":
                    self._waiting.append(trial)
                else:
                    self._recall(trial, outcome)
            self._number += 1
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial, as `PretrainTrial` takes it."""
        if not self.fill():
            return Searcher.FINISHED
        trial = self._waiting.popleft()
        ground = self._ground(trial.values)
        config = self._settings(trial, ground)
        self._running[trial_id] = trial
        logger.info("trial %s begins", trial.name)
        return {
            "name": trial.name,
            "settings": config.model_dump_json(),
            "score": self._config.score,
            "steps_per_epoch": (per_epoch := ground.steps_per_epoch(config)),
            "last_step": min(per_epoch * config.schedule.epochs, config.schedule.max_steps or math.inf),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """One line for each evaluation."""
        if "score" in result:
            logger.info(
                "trial %s: epoch %.2f, %s %.4g",
                *(self._running[trial_id].name, result["epochs"], self._config.score, result["score"]),
            )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note the end of a trial, whoever ended it."""
        trial = self._running.pop(trial_id)
        outcome = read_outcome(trial.out)
        if outcome.state == "unfinished" and error:
            self.errors[trial.name] = "its process failed"
        elif outcome.state == "unfinished":  # the scheduler's decision
            steps = [step for step, _ in outcome.points]
            storage.write_json(storage.join(trial.out, STOPPED_FILE), {"step": steps[-1] if steps else 0})
            outcome = Outcome("stopped", outcome.points)
        told = outcome.error or (f"step {outcome.points[-1][0]}" if outcome.points else "")
        score = outcome.last(self._config.score)
        told += "" if score is None else f", {self._config.score} {score:.4g}"
        logger.info("trial %s: %s%s", trial.name, outcome.state, f" ({told})" if told else "")
        self._close(trial, outcome)

    @property
    def running(self) -> dict[str, str]:
        """Folders of the trials that have begun and not ended, by name."""
        return {trial.name: trial.out for trial in self._running.values()}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all that counts lies in the trials' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def _recall(self, trial: Trial, outcome: Outcome) -> None:
        """Tell scheduler and plan of a trial that had ended before this start."""
        logger.info("trial %s: %s before", trial.name, outcome.state)
        if self._halving:
            sign = -1 if mode_of(self._config.score) == "min" else 1
            per_epoch = (ground := self._ground(trial.values)).steps_per_epoch(self._settings(trial, ground))
            scored = [(step, metrics.get(self._config.score)) for step, metrics in outcome.points]
            self._halving.remember(trial.name, [(s / per_epoch, sign * v) for s, v in scored if v is not None])
        self._close(trial, outcome)

    def _close(self, trial: Trial, outcome: Outcome) -> None:
        scores = self._open[trial.number]
        scores[trial.name] = outcome.last(self._config.score) if outcome.state in ("done", "stopped") else None
        if len(scores) == self._config.seeds:
            known = [score for score in scores.values() if score is not None]
            self._plan.tell(trial.number, sum(known) / len(known) if known else None)


def make_halving(config: Sweep) -> Halving | None:
    """The scheduler, where trials may end early."""
    epochs = config.schedule.epochs
    if config.stopping == "none" or config.grace_epochs >= epochs:
        return None
    return Halving(
        time_attr="epochs",
        max_t=epochs,
        grace_period=config.grace_epochs,  # type: ignore[arg-type]  # compared, not counted: parts of epochs will do
        reduction_factor=config.reduction,
        stop_last_trials=False,
    )


def run_search(queue: Queue, halving: Halving | None, slots: int) -> None:
    """Run all trials that are left, `slots` at a time.

    Raises:
        ClusterError: trials failed for reasons that are not their settings'.
        KeyboardInterrupt: somebody asked for an end; trials that ran have kept a checkpoint.
    """
    from ray import tune

    from evilm.sweep.trial import PretrainTrial

    if not queue.fill():
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep; what stands is found again
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # no box on stdout, whose last line is the summary
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that fails before its first evaluation has none
    scheduler: TrialScheduler = halving or FIFOScheduler()
    ending = Ending()
    with tempfile.TemporaryDirectory(prefix="evilm-tune-") as folder:
        tuner = tune.Tuner(
            # Ray Train asks for its workers by itself; this process waits.
            tune.with_resources(PretrainTrial, {"CPU": 0.01}),
            tune_config=tune.TuneConfig(
                metric="score",
                mode=queue.mode,
                search_alg=queue,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=slots,
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                callbacks=[ending],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # they are the training's own
            ),
        )
        try:
            results = tuner.fit()
        except KeyboardInterrupt:
            ending.end(queue.running)
            raise
    for error in results.errors:
        logger.warning("%s", str(error).strip().splitlines()[-1])
    if queue.errors:
        names = ", ".join(queue.errors)
        raise ClusterError(f"{len(queue.errors)} trial(s) failed: {names}; run the same command again to go on")


def count_slots(config: Pretrain, wanted: int) -> int:
    """Connect to Ray, and count the trials that run at the same time.

    Args:
        config: the resources of a trial.
        wanted: 0 for as many as fit on the cluster as it stands.
    """
    import ray

    from evilm.data.cluster import connect

    cluster = config.cluster
    cpus, gpus = cluster.num_workers * cluster.cpus_per_worker, cluster.num_workers * cluster.gpus_per_worker
    at_once = wanted or max(1, int((os.cpu_count() or 1) // cpus))
    connect(min_cpus=at_once * cpus + 1)  # one to spare for the processes that wait
    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0) // (cpus + 0.01))
    if gpus:
        fit = min(fit, int(there.get("GPU", 0) // gpus))
    return wanted or max(1, min(fit, at_once) if "RAY_ADDRESS" not in os.environ else fit)
