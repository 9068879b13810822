"""The MLflow run of a command: made once for each output folder, continued by a restart, closed with its summary.

The driver makes it, rank 0 of a training appends to it (`MetricsRecorder`), the driver closes it with figures and the
resolved settings. A server that does not answer costs a warning; what is missing is sent by whoever comes
next: rank 0 while it trains, the driver at the end, the same command later.
"""

import inspect
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evilm.config.base import flatten
from evilm.config.secrets import public_data, public_uri
from evilm.config.stage_settings import StageConfig, Upstream
from evilm.errors import OwnershipError
from evilm.io import storage
from evilm.io.ownership import check_owner
from evilm.tracking.experiment import NOTE, SCORE, STAGE, experiment_name, is_deleted, open_experiment
from evilm.tracking.lineage import (
    FROM,
    MADE,
    PARENT,
    find_sources,
    identity_tags,
    main_metrics,
    nest_stages,
    root_of,
    score_text,
    write_note,
)
from evilm.tracking.local_store import database_of, relocate, store_beside
from evilm.tracking.logged_models import log_reference
from evilm.tracking.mlflow_calls import ending, suppress_tracking_errors, with_tracking_retries
from evilm.tracking.run_file import read_run_file, write_run_file

logger = logging.getLogger(__name__)

_MODELS = ("train_tokenizer", "pretrain", "finetune")
"""Commands that publish a model."""
_PLACE_OF = {"captions": "manifest"}
"""The setting that names the place of an input, where it isn't called as the input is."""


@dataclass(frozen=True)
class TrackedRun:
    """All that is needed to make the run of an output folder, or to find it; plain data that travels to workers."""

    uri: str
    out: str
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    inputs: dict[str, tuple[str, str]]
    """Fingerprint and place of each input by name; a place that is not known is ''."""
    about: str = ""
    """Description of its command."""
    seconds: float = 0.0
    """Seconds since the work began, if the run is created after it."""
    number: int = 0
    """Number of the command's run in `<out>/_runs/`; another run that takes the folder over gets the MLflow run too."""


def tracking_uri(config: StageConfig, out: str) -> str:
    """Return where to track: the setting, MLFLOW_TRACKING_URI, or a sqlite store beside `out`; '' for nowhere."""
    if not config.tracking.enabled:
        return ""
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if public_uri(given) != given:  # MLflow prints where a run can be seen, user and password included
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    if given or not storage.is_local(out):
        return given
    return store_beside(out)


def describe_run(
    config: StageConfig, stage: str, out: str, inputs: dict[str, str], beside: str = "", number: int = 0
) -> TrackedRun | None:
    """Return the run of an output folder that `Output` has claimed; None where nothing is tracked.

    Args:
        inputs: fingerprint of each input.
        beside: the folder beside which a store of our own lies; '' is `out`.
        number: see `TrackedRun`.
    """
    beside = beside or out
    uri = tracking_uri(config, beside)
    if not uri:
        return None
    fingerprint = storage.read_json(storage.join(out, "run.json"))["fingerprint"]
    tags = identity_tags(config, stage, out, inputs) | {"evilm.root": root_of(beside)}
    if config.tracking.parent:
        tags[PARENT] = config.tracking.parent
    flat = public_data(flatten(config.model_dump(mode="json", exclude=set(Upstream.model_fields))))
    return TrackedRun(
        uri=uri,
        out=out,
        experiment=experiment_name(config),
        name=config.tracking.run_name or "-".join(filter(None, [stage, root_of(beside), fingerprint[:6]])),
        tags=tags,
        params=dict(list({name: str(value)[:500] for name, value in flat.items()}.items())[:100]),
        inputs={name: (value, str(flat.get(_PLACE_OF.get(name, name), ""))) for name, value in inputs.items()},
        about=inspect.cleandoc(type(config).__doc__ or ""),
        number=number,
    )


def ensure_run(run: TrackedRun) -> str:
    """Return the id of the MLflow run; create it if needed. Raises whatever MLflow raises; the next call continues.

    Raises:
        OwnershipError: another run has taken the folder over.
    """
    check_owner(run.out, run.number)
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunStatus

    with _one_at_a_time:
        relocate(run.uri)
        client, known = MlflowClient(tracking_uri=run.uri), read_run_file(run.out, run.uri)
        if not known or is_deleted(client, run.uri, known["run_id"]):
            known = _make_run(client, run)
            write_run_file(run.out, known)
        else:
            client.update_run(known["run_id"], status=RunStatus.to_string(RunStatus.RUNNING))
        if not known.get("described", True):
            with suppress_tracking_errors("describe the run; its next start tries again"):  # metrics do not wait for it
                client.log_batch(known["run_id"], params=[Param(name, value) for name, value in run.params.items()])
                client.log_inputs(known["run_id"], datasets=_datasets(run.inputs))
                _describe_run(client, known["run_id"], run, {})
                write_run_file(run.out, known | {"described": True})
    return str(known["run_id"])


def _make_run(client: Any, run: TrackedRun) -> dict[str, Any]:
    """Create a run, and return what the output folder is to know of it."""
    experiment = open_experiment(client, run.uri, run.experiment)
    made = client.create_run(experiment, int((time.time() - run.seconds) * 1000), run.tags, run.name)
    if elsewhere := read_run_file(run.out).get("uri"):
        logger.info(
            "MLflow: %s has a new run in %s; its earlier one is or was in %s", run.out, public_uri(run.uri), elsewhere
        )
    return {
        "uri": public_uri(run.uri),
        "run_id": str(made.info.run_id),
        "experiment": run.experiment,
        "experiment_id": experiment,
        "described": False,
    }


_silent: set[str] = set()
"""Stores that did not answer when this process looked for a run."""
_one_at_a_time = threading.Lock()
"""Metrics and panels are sent by threads of their own, and must not each make a run."""


def _describe_run(client: Any, run_id: str, run: TrackedRun, summary: dict[str, Any]) -> None:
    """Link the run to those that made its inputs, and describe it; with a summary, also say what it made."""
    sources = find_sources(client, run.uri, run.inputs)
    tags = {FROM + name: source.info.run_id for name, source in sources.items()}
    if made := summary.get("fingerprint"):
        tags[MADE] = str(made)
    if score := score_text(summary):
        tags[SCORE] = score
    with suppress_tracking_errors("show below it the runs that prepared its data"):  # somebody may have deleted them
        nest_stages(client, run_id, run.tags, sources)
    for name, value in (tags | {NOTE: write_note(run.about, run.out, run.inputs, sources, summary)}).items():
        client.set_tag(run_id, name, value)


def _datasets(inputs: dict[str, tuple[str, str]]) -> list[Any]:
    """Return what a run was made from, as MLflow's inputs: which frames, codes, ..., by fingerprint."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", "training")]
    found = []
    for name, (digest, place) in inputs.items():
        if not digest:  # of an input that may be left out
            continue
        kind, source = "s3" if place.startswith("s3:") else "local", json.dumps({"uri": place})
        found.append(DatasetInput(Dataset(name, digest[:36], kind, source), tags))
    return found


def open_run(config: StageConfig, stage: str, out: str, inputs: dict[str, str], number: int = 0) -> TrackedRun | None:
    """Make or find the MLflow run of this output folder; where no server answers, whoever comes next tries again."""
    run = describe_run(config, stage, out, inputs, number=number)
    with end_on_error(run), suppress_tracking_errors("open a run"):
        if run:
            ensure_run(run)
    return run


def log_files(client: Any, run_id: str, folder: str, uris: Sequence[str]) -> None:
    """Bring files to a folder of a run's artifacts. Raises whatever MLflow raises."""
    with tempfile.TemporaryDirectory(prefix="evilm-") as temporary, with_tracking_retries():
        for uri in uris:
            copy = str(Path(temporary) / uri.rsplit("/", 1)[-1])
            storage.get_file(uri, copy)
            client.log_artifact(run_id, copy, artifact_path=folder)


def close_run(
    run: TrackedRun | None, config: StageConfig, summary: dict[str, Any], files: Mapping[str, Sequence[str]]
) -> None:
    """Log the summary's figures, the resolved settings and files (URIs by folder), describe the run, and end it.

    The run ends also if its files could not be sent; then it does not count as closed, and the same command sends them.
    """
    if run is None:
        return
    with suppress_tracking_errors("close the run; the same command sends what is missing, once the server answers"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        run_id, client = ensure_run(run), MlflowClient(tracking_uri=run.uri)
        is_complete = False
        with ending(client, run_id):
            now = int(time.time() * 1000)
            client.log_batch(run_id, [Metric(name, value, now, 0) for name, value in main_metrics(summary).items()])
            _describe_run(client, run_id, run, summary)
            if run.tags[STAGE] in _MODELS and "fingerprint" in summary and not _is_logged_later(config, run):
                log_reference(client, run, run_id, summary)
            place = public_uri(str(client.get_run(run_id).info.artifact_uri))
            with suppress_tracking_errors(
                f"send files to {place}; give this process access to it, and the same command sends them"
            ):
                _send_files(client, run_id, config, summary, files)
                is_complete = True
        if is_complete:
            write_run_file(run.out, read_run_file(run.out, run.uri) | {"closed": True})


def _is_logged_later(config: StageConfig, run: TrackedRun) -> bool:
    """Return whether the model is logged with its files, by `pyfunc_model.publish`."""
    return run.tags[STAGE] == "pretrain" and config.tracking.log_model


def _send_files(
    client: Any, run_id: str, config: StageConfig, summary: dict[str, Any], files: Mapping[str, Sequence[str]]
) -> None:
    with with_tracking_retries():
        client.log_dict(run_id, public_data(config.model_dump(mode="json")), "config.yaml")
        client.log_dict(run_id, public_data(summary), "summary.json")
    for folder, uris in files.items():
        log_files(client, run_id, folder, uris)


def is_kept(run: TrackedRun) -> bool:
    """Return whether the run is closed and its store still has it; restore one that was deleted with its experiment.

    A store that does not answer counts as having it, and is not asked again: a command may look for many runs.
    """
    if not is_closed(run):
        return False
    if run.uri in _silent:
        return True
    with suppress_tracking_errors("look for the run of a finished output"):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=run.uri)
        return not is_deleted(client, run.uri, read_run_file(run.out, run.uri)["run_id"])
    _silent.add(run.uri)
    return True


def is_closed(run: TrackedRun) -> bool:
    """Return whether the run has got its summary in its store, whose file was not deleted since."""
    database = database_of(run.uri)
    return bool(read_run_file(run.out, run.uri).get("closed")) and (database is None or database.exists())


@contextmanager
def end_on_error(run: TrackedRun | None) -> Iterator[None]:
    """End the run if the block raises: FAILED, or KILLED where somebody asked for it; not where another goes on."""
    try:
        yield
    except BaseException as error:
        if run and not isinstance(error, OwnershipError):
            with suppress_tracking_errors("end the run"):
                from mlflow import MlflowClient

                check_owner(run.out, run.number)
                run_id = read_run_file(run.out, run.uri).get("run_id") or ensure_run(run)
                status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
                MlflowClient(tracking_uri=run.uri).set_terminated(run_id, status=status)
        raise
