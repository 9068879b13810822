"""The search: groups of settings by successive halving, each rung a round of trials under Ray Tune.

Nothing is remembered besides the trials' folders: a sweep that is started again makes the same decisions from them, and
runs what is missing.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evilm.config.stage_settings import recorded_names
from evilm.config.stages import Pretrain, Sweep
from evilm.errors import ClusterError
from evilm.io import storage
from evilm.sweep.halving import halve, in_random_order, rung_steps
from evilm.sweep.sweep_plan import SweepPlan
from evilm.sweep.sweep_results import Tried
from evilm.sweep.trial_folder import STOPPED_FILE, Trial, TrialOutcome, make_trials, mode_of, read_outcome

logger = logging.getLogger(__name__)

TRIALS = "trials"


@dataclass(frozen=True)
class SearchJob:
    """A trial with all that is needed to run it."""

    trial: Trial
    settings: Pretrain
    steps_per_epoch: int
    rungs: tuple[int, ...]

    @property
    def outcome(self) -> TrialOutcome:
        """Read how far it has got."""
        return read_outcome(self.trial.out, self.rungs[-1])

    def step_of(self, rung: int) -> int:
        """Return the step of a rung; the last one where other trials have more rungs."""
        return self.rungs[min(rung, len(self.rungs) - 1)]

    def has_reached(self, rung: int) -> bool:
        """Return True where its score at a rung is known, or will never be."""
        outcome, step = self.outcome, self.step_of(rung)
        if outcome.state in ("done", "failed"):
            return True
        return outcome.step >= step and step < self.rungs[-1]

    def score(self, name: str, rung: int) -> float | None:
        """Return its score at a rung; None where it failed before, or the score is not finite."""
        outcome, step = self.outcome, self.step_of(rung)
        return None if outcome.state == "failed" and outcome.step < step else outcome.at(name, step)


def make_job(config: Sweep, trial: Trial, settings: Pretrain, steps_per_epoch: int) -> SearchJob:
    """Return a trial with its rungs."""
    schedule = settings.schedule
    last = steps_per_epoch * schedule.epochs
    last = min(last, schedule.max_steps or last)
    stops = config.stopping == "halving"
    rungs = rung_steps(steps_per_epoch, last, config.grace_epochs, config.reduction) if stops else (last,)
    return SearchJob(trial, settings, steps_per_epoch, rungs)


def run_search(
    config: Sweep,
    plan: SweepPlan,
    out: str,
    prepare: Callable[[Trial], SearchJob],
    slots: int,
    check: Callable[[], None],
) -> list[Tried]:
    """Run all trials of a plan that have not run, `slots` at a time.

    `check` raises OwnershipError if another run has taken the sweep over.

    Returns:
        All trials, also those of an earlier start.

    Raises:
        ClusterError: trials failed for reasons other than their settings.
        KeyboardInterrupt: an end was requested; running trials have kept a checkpoint.
    """
    tried: list[Tried] = []
    folder, group, number = storage.join(out, TRIALS), next(plan, None), 0
    while group:
        check()
        trials = [make_trials(number + at, values, config.seeds, folder) for at, values in enumerate(group)]
        settings = [[prepare(trial) for trial in each] for each in trials]
        _run_group(config, settings, slots, check)
        check()  # before the plan keeps what it proposes next
        scores: list[float | None] = []
        for jobs in settings:
            ended = [Tried(job.trial, job.outcome, job.steps_per_epoch) for job in jobs]
            found = [t.outcome.last(config.score) for t in ended if t.outcome.state != "failed"]
            known = [score for score in found if score is not None]
            scores.append(sum(known) / len(known) if known else None)
            tried += ended
        number += len(group)
        try:
            group = plan.send(scores)
        except StopIteration:
            break
    return tried


def _run_group(config: Sweep, settings: Sequence[Sequence[SearchJob]], slots: int, check: Callable[[], None]) -> None:
    """Run settings, each with its seeds, from rung to rung, and note in their folders which trials were stopped."""
    sign = -1 if mode_of(config.score) == "min" else 1

    def advance(left: Sequence[Sequence[SearchJob]], rung: int) -> list[list[float]]:
        behind = [job for jobs in left for job in jobs if not job.has_reached(rung)]
        if behind:
            _run_rung(config, behind, rung, slots, check)
        found = [[job.score(config.score, rung) for job in jobs] for jobs in left]
        return [[sign * score for score in scores if score is not None] for scores in found]

    shuffled = in_random_order(settings, config.search_seed, lambda jobs: recorded_names(jobs[0].trial.values))
    num_rungs = max(len(job.rungs) for jobs in settings for job in jobs)
    halve(shuffled, num_rungs, config.reduction, advance)
    check()
    for job in (job for jobs in settings for job in jobs):
        outcome = job.outcome
        if outcome.state == "unfinished":
            storage.write_json(storage.join(job.trial.out, STOPPED_FILE), {"step": outcome.step})


def _run_rung(config: Sweep, jobs: Sequence[SearchJob], rung: int, slots: int, check: Callable[[], None]) -> None:
    """Run trials up to a rung, in random order."""
    from evilm.sweep.trial_round import run_round

    check()  # a trial takes its folder over from whoever writes it
    by_name = {job.trial.name: job for job in jobs}
    order = in_random_order(by_name, config.search_seed, str)
    logger.info("rung %d: %d trial(s)", rung + 1, len(order))
    for job in jobs:
        storage.delete(storage.join(job.trial.out, STOPPED_FILE))  # of a sweep with fewer settings, say

    def ended(name: str) -> None:
        outcome = by_name[name].outcome
        score = outcome.last(config.score)
        result = outcome.error or f"step {outcome.step}" + ("" if score is None else f", {config.score} {score:.4g}")
        logger.info("trial %s: %s", name, result)

    try:
        run_round({name: up_to(by_name[name], rung) for name in order}, slots, ended, check)
    except ClusterError:
        check()  # whoever took the sweep over has taken the trials too
        raise


def up_to(job: SearchJob, rung: int) -> Pretrain:
    """Return the settings of a trial that ends at a rung; its learning rates are those of the whole schedule.

    All rungs are evaluated, also those that it passes without a pause because no setting is dropped there: a sweep that
    is started again with more settings drops some.
    """
    schedule = job.settings.schedule
    looks = tuple(sorted({*schedule.eval_at_steps, *job.rungs}))
    schedule = schedule.model_copy(update={"max_steps": job.step_of(rung), "eval_at_steps": looks})
    return job.settings.model_copy(update={"schedule": schedule})


def count_slots(config: Pretrain, wanted: int) -> int:
    """Connect to Ray, and count the trials that run at the same time.

    `wanted` is 0 for as many as fit on the cluster as it stands.
    """
    import ray

    from evilm.cluster import connect

    cluster = config.cluster
    cpus, gpus = cluster.num_workers * cluster.cpus_per_worker, cluster.num_workers * cluster.gpus_per_worker
    at_once = wanted or max(1, int((os.cpu_count() or 1) // cpus))
    connect(min_cpus=at_once * cpus + 1)  # one to spare for the processes that wait
    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0) // (cpus + 0.01))
    if gpus:
        fit = min(fit, int(there.get("GPU", 0) // gpus))
    return wanted or max(1, min(fit, at_once) if "RAY_ADDRESS" not in os.environ else fit)
