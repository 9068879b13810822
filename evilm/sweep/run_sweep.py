"""A sweep from its space to its best preset; `tune/*.py` call `sweep`."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evilm.config.base import fingerprint
from evilm.config.stage_settings import recorded_names
from evilm.config.stages import STAGES, Pretrain, Sweep
from evilm.config.sweep_space import Space, read_space
from evilm.errors import ConfigError, UsageError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.sweep.shared_inputs import SharedInputs, SharedPlaces
from evilm.sweep.sweep_plan import SweepPlan, make_plan
from evilm.sweep.sweep_results import Setting, Tried, best_preset, rank, results_csv, results_json, results_table
from evilm.sweep.trial_folder import Trial, keep_input_error

if TYPE_CHECKING:
    from evilm.sweep.search import SearchJob
    from evilm.tracking.mlflow_run import TrackedRun

logger = logging.getLogger(__name__)

_POOL_CLIPS = 16
_SPREAD_OF_RANKS = 12**-0.5  # standard deviation of a rank, 0 to 1, drawn evenly
TABLE, RESULTS, FIGURE, BEST = "results.csv", "results.json", "sweep.png", "best.yaml"


def sweep(config: Sweep) -> dict[str, Any]:
    """Run the trials of a space that have not run, and say which setting is best; or reuse a finished sweep.

    Returns:
        The summary: settings and trials by how they ended, the best values and their score, and where table, figure
        and preset are.

    Raises:
        UsageError: no space.
        ConfigError: a space that does not fit, or settings with which no trial got a score.
        ClusterError: trials failed for reasons of the cluster; the same command continues.
    """
    if not config.space:
        raise UsageError("--space is missing: the path of a YAML file like `optim.lr: [1e-4, 3e-4]`")
    stage = next(name for name, kind in STAGES.items() if kind is type(config))
    out = storage.absolute(config.out or storage.join(config.root, stage))
    space = read_space(config.space, config.values)
    plan = make_plan(config, space, out)
    inputs = {"plan": _fingerprint(config, space)}
    with Output(config, out, inputs, grows=("plan",)) as output:
        if output.done:
            logger.info("%s is finished, reused\n%s", out, output.done.get("table", ""))
            return output.done | {"reused": True}
        output.extend()
        return output.close(_run(config, stage, space, plan, output))


def _run(config: Sweep, stage: str, space: Space, plan: SweepPlan, output: Output) -> dict[str, Any]:
    """Run the trials; the summary."""
    began, out = time.monotonic(), output.out
    from evilm.sweep.search import count_slots, make_job, run_search
    from evilm.tracking.mlflow_run import end_on_error

    slots = count_slots(config.base, config.concurrent)
    run, parent = _parent(config, stage, output, space)
    with end_on_error(run):
        shared = SharedInputs(config.base, out, run.uri if run else "")

        def prepare(trial: Trial) -> "SearchJob":
            ground = shared.ground(trial.values)
            settings = trial_config(config, trial, ground, run.uri if run else "", parent)
            keep_input_error(trial.out, ground.error)
            return make_job(config, trial, settings, ground.steps_per_epoch(settings))

        logger.info("%d trial(s) at a time", slots)
        tried = run_search(config, plan, out, prepare, slots, output.check)
        summary = _conclude(config, stage, output, tried, shared, prepare)
        summary |= {"inputs": output.inputs, "reused": False, "seconds": round(time.monotonic() - began, 1)}
        _track_end(run, config, summary, tried)
    return summary


def trial_config(config: Sweep, trial: Trial, ground: SharedPlaces, uri: str = "", parent: str = "") -> Pretrain:
    """Return the settings of a trial: what all have in common, its values, its seed, its inputs and its output."""
    base, inputs = config.base.override(trial.values), ground.inputs
    schedule = base.schedule.model_copy(
        update={
            "seed": base.schedule.seed + trial.repeat,
            "eval_pool_clips": base.schedule.eval_pool_clips or _POOL_CLIPS,
        }
    )
    tracking = base.tracking.model_copy(
        update={"uri": uri, "parent": parent, "run_name": trial.name, "log_model": False}
        | ({} if uri else {"enabled": False})
    )
    places = dataclasses.asdict(inputs) | {"out": trial.out}
    return base.model_copy(
        update=places | {"schedule": schedule, "tracking": tracking, "overwrite": False, "take_over": True}
    )


def _fingerprint(config: Sweep, space: Space) -> str:
    """Return what may change between two starts of one sweep."""
    names = Sweep.model_fields.keys() - Pretrain.model_fields.keys() - {"space", "values", "concurrent"}
    axes = repr(sorted(recorded_names(space).items()))
    return fingerprint([axes, config.model_dump(mode="json", include=set(names))])


def _conclude(
    config: Sweep,
    stage: str,
    output: Output,
    tried: Sequence[Tried],
    shared: SharedInputs,
    prepare: "Callable[[Trial], SearchJob]",
) -> dict[str, Any]:
    """Write table, figure and preset."""
    from evilm.sweep.sweep_figure import draw_sweep

    output.check()
    out = output.out
    ranked = rank(tried, config.score)
    best = ranked[0]
    table = results_table(ranked, config.score)
    logger.info("%s, best first:\n%s", config.score, table)
    storage.write_bytes(storage.join(out, TABLE), results_csv(tried))
    storage.write_json(storage.join(out, RESULTS), results_json(ranked, config.score))
    _require_score(ranked, config)
    _warn_if_at_chance(best, shared.ground(best.values).val_clips)
    storage.write_bytes(storage.join(out, FIGURE), draw_sweep(ranked, config.score))
    first = best.tried[0].trial
    places = dataclasses.asdict(shared.ground(first.values).inputs)
    preset = best_preset(prepare(first).settings, stage, best, places)
    storage.write_bytes(storage.join(out, BEST), preset.encode())
    states = [t.outcome.state for t in tried]
    return {
        "out": out,
        "score": config.score,
        "settings": len(ranked),
        "trials": {state: states.count(state) for state in ("done", "stopped", "failed")},
        "best": {
            "values": best.values, "mean": best.mean, "spread": best.spread, "seeds": len(best.scores),
            "trial": first.out, "inputs": places,
        },
        "files": {
            name: storage.join(out, file)
            for name, file in (("table", TABLE), ("results", RESULTS), ("figure", FIGURE), ("preset", BEST))
        },
        "table": table,
    }  # fmt: skip


def _require_score(ranked: Sequence[Setting], config: Sweep) -> None:
    """Refuse to name a best setting where nothing ran to its end with a score.

    Raises:
        ConfigError: why.
    """
    if ranked[0].scores:
        return
    tried = [t for setting in ranked for t in setting.tried]
    states = ("done", "stopped", "failed")
    by_state = {state: [t.outcome for t in tried if t.outcome.state == state] for state in states}
    counts = ", ".join(f"{len(found)} {state}" for state, found in by_state.items() if found)
    if not by_state["done"]:
        failed = by_state["failed"]
        why = f"; the first failed with: {failed[0].error}" if failed else "; --stopping none lets all run to the end"
        raise ConfigError(f"no trial ran to its end ({counts}){why}")
    metrics = [point for outcome in by_state["done"] for _, point in outcome.points]
    if any(config.score in point for point in metrics):
        raise ConfigError(f"no trial ended with a finite {config.score} ({counts}); try a lower learning rate")
    known = sorted({name for point in metrics for name in point})
    advice = f"available: {', '.join(known)}" if known else "no trial was evaluated; raise --schedule.eval-clips"
    raise ConfigError(f"no trial has a score {config.score!r}; {advice}")


def _warn_if_at_chance(best: Setting, val_clips: int) -> None:
    """Warn if the best score is no better than a coin: then the order of the settings means nothing."""
    if best.score_name != "match_auc" or best.mean is None:
        return
    error = _SPREAD_OF_RANKS / math.sqrt(val_clips * len(best.scores))
    if best.mean < 0.5 + 2 * error:
        logger.warning(
            "match_auc %.3f of the best is within two standard errors (%.3f) of chance, 0.5: trials were too short "
            "to tell settings apart; raise --schedule.epochs, or use --score loss where all have the same task",
            *(best.mean, error),
        )


def _parent(config: Sweep, stage: str, output: Output, space: Space) -> "tuple[TrackedRun | None, str]":
    """Open the sweep's own MLflow run, which holds the space; return it and its id, None and '' without tracking."""
    from evilm.tracking.mlflow_calls import suppress_tracking_errors
    from evilm.tracking.mlflow_run import describe_run, end_on_error, ensure_run
    from evilm.tracking.run_file import read_run_file

    run = describe_run(config, stage, output.out, {}, number=output.run)
    if run is None:
        return None, ""
    axes = {f"space.{name}": str(axis)[:500] for name, axis in space.items()}
    run = dataclasses.replace(run, params=dict(list((axes | run.params).items())[:100]))
    with end_on_error(run), suppress_tracking_errors("open the sweep's run; its trials are tracked without it"):
        return run, ensure_run(run)
    return run, str(read_run_file(output.out, run.uri).get("run_id", ""))


def _track_end(run: "TrackedRun | None", config: Sweep, summary: dict[str, Any], tried: Sequence[Tried]) -> None:
    """Say in MLflow how each trial ended, and bring table, figure and preset to the sweep's run."""
    from evilm.tracking.mlflow_calls import suppress_tracking_errors
    from evilm.tracking.mlflow_run import close_run
    from evilm.tracking.run_file import read_run_file

    if run is None:
        return
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=run.uri)
    with suppress_tracking_errors("say how the trials ended"):
        for item in tried:
            known = read_run_file(item.trial.out, run.uri)
            if not known:
                continue
            client.set_tag(known["run_id"], "evilm.trial.state", item.outcome.state)
            if item.outcome.state == "stopped":  # its own process was ended before it could say so
                client.set_terminated(known["run_id"], status="KILLED")
    files = {name: [uri] for name, uri in summary["files"].items()}
    close_run(run, config, {k: v for k, v in summary.items() if k != "table"}, files)
