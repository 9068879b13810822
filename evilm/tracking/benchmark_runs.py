"""Read the summaries of task benchmarks from the runs of an MLflow store."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import evilm.tracking.mlflow_calls  # noqa: F401  # sets MLflow's time-outs, before its first import
from evilm.config.secrets import public_text, public_uri
from evilm.errors import ConfigError
from evilm.tracking.experiment import ROOT, STAGE, TASK
from evilm.tracking.local_store import database_of

logger = logging.getLogger(__name__)


class BenchmarkRun(NamedTuple):
    """A finished task benchmark."""

    root: str
    """Name of the folder that its workflow's outputs lie in."""
    folder: str
    """Name of its output folder."""
    summary: dict[str, Any]


def task_benchmarks(uri: str) -> Iterator[BenchmarkRun]:
    """Yield the finished benchmarks of tasks of all experiments, the oldest first.

    Raises:
        ConfigError: there is no such store, or it does not answer.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    database = database_of(uri)
    if database is not None and not database.exists():
        raise ConfigError(f"tracking.uri = {uri}: there is no {database}; name the store that the benchmarks logged to")
    try:
        client, token = MlflowClient(tracking_uri=uri), ""
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        wanted = f"tags.`{STAGE}` = 'benchmark' AND attributes.status = 'FINISHED'"
        while token is not None:
            page = client.search_runs(
                experiments, wanted, order_by=["attributes.start_time ASC"], page_token=token or None
            )
            token = page.token or None
            for run in page:
                if TASK in run.data.tags and (summary := _summary(client, run.info.run_id)):
                    yield BenchmarkRun(
                        run.data.tags.get(ROOT, ""), Path(run.data.tags.get("evilm.out", "")).name, summary
                    )
    except MlflowException as error:
        what = public_text(" ".join(str(error).split()))[:200]
        raise ConfigError(f"tracking.uri = {public_uri(uri)} can't be read ({what}); check the address") from None


def _summary(client: Any, run_id: str) -> dict[str, Any]:
    """Return the summary that a benchmark logged; empty if its files can't be read from here."""
    try:
        with TemporaryDirectory(prefix="evilm-") as folder:
            return dict(json.loads(Path(client.download_artifacts(run_id, "summary.json", folder)).read_text("utf-8")))
    except Exception as error:  # of many kinds, from the libraries of the artifact store
        logger.warning(
            "MLflow: run %s is left out, its summary.json can't be read (%s)", run_id, public_text(str(error))
        )
        return {}
