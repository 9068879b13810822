"""Finished outputs of commands and their MLflow runs, without the work of the command."""

from typing import Any

from evilm.config.stage_settings import StageConfig
from evilm.io.outputs import Output
from evilm.tracking.mlflow_run import TrackedRun, describe_run


def store_client(uri: str) -> Any:
    """A client of a tracking store."""
    from mlflow import MlflowClient  # here, since collecting the tests should be fast

    return MlflowClient(tracking_uri=uri)


def claimed(config: StageConfig, stage: str, out: str, inputs: dict[str, str] | None = None) -> TrackedRun:
    """Claim an output folder as a command does; its run, which is not made yet."""
    with Output(config, out, inputs or {}):
        pass
    run = describe_run(config, stage, out, inputs or {})
    assert run
    return run


def run_of(client: Any, experiment: str, out: str) -> Any:
    """The one active run of an output folder in a store."""
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id], f"tags.`evilm.out` = '{out}'")
    return run
