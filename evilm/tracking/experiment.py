"""The MLflow experiment of a project: its name, its table of runs with stages and scores, and the link to that."""

import json
import logging
import os
import shlex
import sys
from typing import Any

from evilm.config.stage_settings import StageConfig
from evilm.tracking.local_store import DATABASE, database_of, files_of
from evilm.tracking.run_file import read_run_file

logger = logging.getLogger(__name__)

NOTE = "mlflow.note.content"
STAGE, ROOT, TASK, SCORE = "evilm.stage", "evilm.root", "evilm.task", "evilm.score"
PORT = 5000
"""Port of `make dashboard`."""
_DEFAULT = "evilm"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the pages' "Model training"
_VIEW = "evilm"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_COLUMNS = [f"tags.`{tag}`" for tag in (STAGE, ROOT, TASK, SCORE)]
_COLUMNS += [f"metrics.`{metric}`" for metric in ("t2v_r10", "accuracy", "val/loss")]
_ABOUT = """Runs of evilm: one for each output folder; a restart continues it. `evilm.stage` names the command.

Stages that prepared the data of a training, its fine-tunings, and the trials of a sweep are shown below it.
Filter with `tags.evilm.root = 'demo'`, ``tags.`evilm.stage` = 'pretrain'``, ``metrics.`val/loss` < 10``.
"""


def experiment_name(config: StageConfig) -> str:
    """Return the experiment that holds all runs of a project: the setting, MLFLOW_EXPERIMENT_NAME, or `evilm`."""
    return config.tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT


def open_experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of an experiment; create it, or restore it with its runs if somebody deleted it."""
    from mlflow.exceptions import MlflowException

    found, tags = client.get_experiment_by_name(name), {NOTE: _ABOUT, _VIEW_TAG: _view()} | _KIND
    if not found:
        try:
            return str(client.create_experiment(name, files_of(uri), tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another command has created it meanwhile
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        logger.warning(
            "MLflow: experiment %r was deleted; it is restored with its runs. --tracking.experiment names another", name
        )
    for tag, value in tags.items():
        if tag not in found.tags or (tag == _VIEW_TAG and found.tags[tag] != value):
            client.set_experiment_tag(found.experiment_id, tag, value)
    return str(found.experiment_id)


def is_deleted(client: Any, uri: str, run_id: str) -> bool:
    """Return whether a run or its database was deleted; restore a run that was deleted with its experiment."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
        if found.info.lifecycle_stage == "deleted":
            open_experiment(client, uri, client.get_experiment(found.info.experiment_id).name)
            found = client.get_run(run_id)
        return found.info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


def _view() -> str:
    """Return a view of the table of runs as MLflow's pages share it; by default they show neither tags nor metrics."""
    return json.dumps({"selectedColumns": _COLUMNS, "orderByKey": "attributes.start_time", "orderByAsc": False})


def runs_page(server: str, experiment_id: str) -> str:
    """Return the address of the table of runs; a fresh browser would open a page for GenAI that shows none."""
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{page}?viewStateShareKey={_VIEW}&workflowType=machine_learning"


def print_runs_page(summary: dict[str, Any]) -> None:
    """Print to stderr where to see the runs of a finished command; nothing where they are not tracked.

    Log lines have URLs without what follows `#`, where secrets may be; here it is the page.
    """
    model = summary.get("model")
    places = (summary.get("codes"), summary.get("out"), model.get("out") if isinstance(model, dict) else "")
    found = (read_run_file(place) for place in places if isinstance(place, str) and place)
    known = next(filter(None, found), {})
    if not (uri := str(known.get("uri", ""))) or "experiment_id" not in known:
        return
    if uri.startswith("http"):
        print(f"MLflow: {runs_page(uri, known['experiment_id'])}", file=sys.stderr)
    elif database := database_of(uri):
        page = runs_page(f"http://127.0.0.1:{PORT}", known["experiment_id"])
        ours = ["evilm.tracking.dashboard", "--root", str(database.parent)]
        server = ours if database.name == DATABASE else ["mlflow", "server", "--backend-store-uri", uri]
        print(f"MLflow: {shlex.join([sys.executable, '-m', *server])}, then {page}", file=sys.stderr)
