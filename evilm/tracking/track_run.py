"""Track a command other than a training: settings, summary and pictures at once, when it is done."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evilm.io import storage
from evilm.io.outputs import CONFIG
from evilm.tracking.logged_models import log_scores
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.mlflow_run import TrackedRun, close_run, describe_run, end_on_error, is_closed, is_kept
from evilm.tracking.registry import judge

logger = logging.getLogger(__name__)

FIGURES = "figures"
"""Artifact path of the pictures of a run."""
_PICTURES = (".png", ".html")


def track(stage: str, work: Callable[[Any], dict[str, Any]], config: Any) -> dict[str, Any]:
    """Run an offline command and record settings, summary and pictures as one MLflow run; a benchmark judges its model.

    A reused result is recorded only where it has not been: no server answered then, or it is another store now.
    """
    summary = work(config)
    run = _run_of(stage, config, summary)
    if run is None:
        return summary
    if not summary.get("reused") or not is_kept(run):
        with end_on_error(run), suppress_tracking_errors("record the run"):
            pictures = [storage.join(run.out, name) for name in storage.list_names(run.out) if name.endswith(_PICTURES)]
            close_run(run, config, summary, {FIGURES: pictures})
    if stage == "benchmark" and is_closed(run):
        log_scores(run, config, summary)
        if not summary.get("task"):
            judge(run, config, summary)
    return summary


def _run_of(stage: str, config: Any, summary: dict[str, Any]) -> TrackedRun | None:
    """Return the run of what a command made; the codes of each tokenizer have a run of their own."""
    beside = str(summary.get("out") or config.out)
    out = str(summary["codes"]) if stage == "precompute_codes" else beside
    if not out or not storage.exists(storage.join(out, CONFIG)):
        return None
    inputs = {name: str(value) for name, value in dict(summary.get("inputs") or {}).items()}
    run = describe_run(config, stage, out, inputs, beside)
    return run and replace(run, seconds=float(summary.get("seconds") or 0))
