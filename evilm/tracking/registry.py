"""Choose the registered model `champion` by a benchmark's figure, its standard error and the clips it is from.

    model = mlflow.pyfunc.load_model("models:/evilm@champion")

A version becomes champion if it beats chance by two standard errors and there is no champion, or if it leads the
champion, scored on the same clips in the same way, by more than the standard error of the difference. Else it is
`challenger`, unless it does not beat chance. A person may move an alias at any time; the next benchmark takes it from
there.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evilm.config.stages import PROMOTE_BY, Benchmark
from evilm.tracking.lineage import find_sources, main_figures
from evilm.tracking.logged_models import scored_data
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.mlflow_run import TrackedRun
from evilm.tracking.run_file import read_run_file, write_run_file

logger = logging.getLogger(__name__)

REGISTERED_NAME = "evilm"
"""The registered model that every pre-trained model becomes a version of."""
CHAMPION, CHALLENGER = "champion", "challenger"
_LEAST_SIGMAS = 2.0
_SCORE, _ON = "evilm.score.{}", "evilm.scored_on"
_PLUS_MINUS = " ± "


@dataclass(frozen=True)
class Promotion:
    """Decision on a scored version, with its reason."""

    alias: Literal["champion", "challenger", ""]
    reason: str


def decide(name: str, figure: Mapping[str, float], scored_on: str, champion: Mapping[str, str] | None) -> Promotion:
    """Decide by the rule above.

    Args:
        name: the figure's; those that end in `rank` are better when low.
        figure: value, standard_error and sigmas_above_chance of the version that was scored.
        scored_on: says on which clips and how.
        champion: the champion's tags as `score_tags` made them; None where there is no other champion.
    """
    value, error, sigmas = (float(figure[key]) for key in ("value", "standard_error", "sigmas_above_chance"))
    own = f"{name} {value:.4g} ± {error:.2g}"
    if sigmas < _LEAST_SIGMAS:
        return Promotion("", f"{own} is only {sigmas:.1f} standard errors above chance")
    if champion is None:
        return Promotion(CHAMPION, f"{own}, {sigmas:.1f} standard errors above chance; there was no champion")
    kept = champion.get(_SCORE.format(name))
    if not kept or champion.get(_ON) != scored_on:
        return Promotion(
            CHALLENGER, f"{own}; the champion has no {name} on these clips: benchmark it on them, then this one again"
        )
    its, its_error = (float(number) for number in kept.split(_PLUS_MINUS))
    lead = (its - value) if name.endswith("rank") else (value - its)
    needed = math.hypot(error, its_error)
    against = f"{own} against the champion's {its:.4g}"
    if lead > needed:
        return Promotion(CHAMPION, f"{against}, ahead by more than the standard error of the difference, {needed:.2g}")
    return Promotion(
        CHALLENGER, f"{against}, not ahead by more than the standard error of the difference, {needed:.2g}"
    )


def judge(run: TrackedRun, config: Benchmark, summary: Mapping[str, Any]) -> None:
    """Write a benchmark's scores to the registered version of its model, and move the alias by the rule.

    Nothing happens where the model has no registered version in this store, or `promote_by` is ''.
    """
    with suppress_tracking_errors("judge the registered model; the same command tries again"):
        _judge(run, config, summary)


def _judge(run: TrackedRun, config: Benchmark, summary: Mapping[str, Any]) -> None:
    from mlflow import MlflowClient

    name, metrics = config.promote_by, dict(summary["metrics"])
    known = read_run_file(run.out, run.uri)
    client = MlflowClient(tracking_uri=run.uri)
    version = _version_of(client, run, str(summary.get("model", "")))
    if not name or name not in metrics or not version or known.get("judged") == [name, version]:
        return
    _, scored_on = scored_data(config, summary)
    champion = _champion(client)
    others = dict(champion.tags) if champion and str(champion.version) != version else None
    verdict = decide(name, metrics[name], scored_on, others)
    for tag, value in (score_tags(metrics, scored_on) | {"evilm.scored_by": known["run_id"]}).items():
        client.set_model_version_tag(REGISTERED_NAME, version, tag, value)
    _move_alias(client, version, verdict, is_champion=champion is not None and others is None)
    client.set_model_version_tag(REGISTERED_NAME, version, "evilm.verdict", verdict.reason)
    client.update_model_version(REGISTERED_NAME, version, _describe_version(summary, verdict))
    client.update_registered_model(REGISTERED_NAME, __doc__)
    client.set_tag(
        known["run_id"], "evilm.verdict", f"version {version} {verdict.alias or 'no alias'}: {verdict.reason}"
    )
    write_run_file(run.out, known | {"judged": [name, version]})
    logger.info("models:/%s/%s is %s: %s", REGISTERED_NAME, version, verdict.alias or "no champion", verdict.reason)


def score_tags(metrics: Mapping[str, Mapping[str, float]], scored_on: str) -> dict[str, str]:
    """Return the tags of a model version with the scores that may decide, their standard errors and source."""
    names = [name for name in PROMOTE_BY if name in metrics]
    scores = {name: (float(metrics[name]["value"]), float(metrics[name]["standard_error"])) for name in names}
    return {_ON: scored_on} | {_SCORE.format(n): f"{v:.6f}{_PLUS_MINUS}{e:.6f}" for n, (v, e) in scores.items()}


def _version_of(client: Any, run: TrackedRun, model: str) -> str:
    """Return the registered version of the model that a benchmark scored, '' where it has none in this store."""
    uri = str(read_run_file(model, run.uri).get("model", "")) if model else ""
    if uri.startswith(f"models:/{REGISTERED_NAME}/"):
        return uri.rsplit("/", 1)[-1]
    source_run = find_sources(client, run.uri, {"model": run.inputs["model"]}).get("model")
    found = client.search_model_versions(f"name = '{REGISTERED_NAME}'") if source_run else []
    mine = [version for version in found if version.run_id == source_run.info.run_id] if source_run else []
    return str(max(int(version.version) for version in mine)) if mine else ""


def _champion(client: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(REGISTERED_NAME, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _move_alias(client: Any, version: str, verdict: Promotion, is_champion: bool) -> None:
    if is_champion and verdict.alias:  # scored again, it has no other to beat
        return
    if is_champion:
        logger.warning("the champion, version %s, no longer beats chance; it keeps its alias", version)
    elif verdict.alias:
        client.set_registered_model_alias(REGISTERED_NAME, verdict.alias, version)
        aliases = client.get_model_version(REGISTERED_NAME, version).aliases
        if verdict.alias == CHAMPION and CHALLENGER in aliases:
            client.delete_registered_model_alias(REGISTERED_NAME, CHALLENGER)


def _describe_version(summary: Mapping[str, Any], verdict: Promotion) -> str:
    """Describe a version in Markdown: verdict, scores beside chance, where it came from."""
    lines = [f"{verdict.alias or 'no alias'}: {verdict.reason}", ""]
    lines += [f"{summary['num_clips']:,} clips of the split {summary['split']}:", "", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in main_figures({"metrics": summary["metrics"]})]
    return "\n".join([*lines, "", f"Scored in `{summary['out']}`, from `{summary.get('model', '')}`."])
