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
from evilm.config.secrets import public_data, public_text, public_uri
from evilm.config.stage_settings import StageConfig, Upstream
from evilm.io import storage
from evilm.tracking.lineage import (
    FROM,
    MADE,
    NOTE,
    describe_experiment,
    find_sources,
    identity_tags,
    read_run_file,
    root_of,
    write_note,
    write_run_file,
)

logger = logging.getLogger(__name__)

# Set before mlflow is imported: by default one call to a dead server blocks for four minutes.
_QUICK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
for _name, _value in {
    **_QUICK,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

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
    """What its command does."""
    about_experiment: str = ""
    """Markdown for the experiment, if this run is its first."""
    seconds: float = 0.0
    """How long ago the work began, where the run is made when it is done."""


def tracking_uri(config: StageConfig, out: str) -> str:
    """Return where to track: the setting, MLFLOW_TRACKING_URI, or a sqlite store beside `out`; '' for nowhere."""
    if not config.tracking.enabled:
        return ""
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if public_uri(given) != given:  # MLflow prints where a run can be seen, user and password included
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    if given or not storage.is_local(out):
        return given
    root = Path(storage.absolute(out)).parent
    root.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{root / 'mlflow.db'}"


def describe_run(
    config: StageConfig, stage: str, out: str, inputs: dict[str, str], beside: str = ""
) -> TrackedRun | None:
    """Return the run of an output folder that `Output` has claimed; None where nothing is tracked.

    Args:
        inputs: fingerprint of each input.
        beside: the folder beside which a store of our own lies; '' is `out`.
    """
    beside = beside or out
    uri = tracking_uri(config, beside)
    if not uri:
        return None
    fingerprint = storage.read_json(storage.join(out, "run.json"))["fingerprint"]
    tags = identity_tags(config, stage, out, inputs) | {"evilm.root": root_of(beside)}
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    flat = public_data(flatten(config.model_dump(mode="json", exclude=set(Upstream.model_fields))))
    return TrackedRun(
        uri=uri,
        out=out,
        experiment=config.tracking.experiment or stage,
        name=config.tracking.run_name or "-".join(filter(None, [stage, root_of(beside), fingerprint[:6]])),
        tags=tags,
        params=dict(list({name: str(value)[:500] for name, value in flat.items()}.items())[:100]),
        inputs={name: (value, str(flat.get(_PLACE_OF.get(name, name), ""))) for name, value in inputs.items()},
        about=inspect.cleandoc(type(config).__doc__ or ""),
        about_experiment=describe_experiment(config, stage),
    )


def ensure_run(run: TrackedRun) -> str:
    """Return the id of the MLflow run; create it if needed. Raises whatever MLflow raises; the next call continues."""
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunStatus

    client = MlflowClient(tracking_uri=run.uri)
    with _one_at_a_time:
        known = read_run_file(run.out)
        if public_uri(known.get("uri", "")) != public_uri(run.uri) or _is_gone(client, known["run_id"]):
            began = int((time.time() - run.seconds) * 1000)
            made = client.create_run(_experiment(client, run), began, run.tags, run.name)
            known = {
                "uri": public_uri(run.uri),
                "run_id": str(made.info.run_id),
                "experiment": run.experiment,
                "described": False,
            }
            write_run_file(run.out, known)
        else:
            client.update_run(known["run_id"], status=RunStatus.to_string(RunStatus.RUNNING))
        if not known.get("described", True):
            with suppress_tracking_errors("describe the run; its next start tries again"):  # metrics do not wait for it
                client.log_batch(known["run_id"], params=[Param(name, value) for name, value in run.params.items()])
                client.log_inputs(known["run_id"], datasets=_datasets(run.inputs))
                _tell(client, known["run_id"], run, {})
                write_run_file(run.out, known | {"described": True})
    return str(known["run_id"])


def _is_gone(client: Any, run_id: str) -> bool:
    """Return whether the run or its database was deleted: then the output folder gets a new run."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


_one_at_a_time = threading.Lock()
"""Metrics and panels are sent by threads of their own, and must not each make a run."""


def _experiment(client: Any, run: TrackedRun) -> str:
    found = client.get_experiment_by_name(run.experiment)
    if found:
        return str(found.experiment_id)
    tags = {
        NOTE: run.about_experiment,
        "mlflow.experimentKind": "custom_model_development",
    }  # the UI's "Model training"
    return str(client.create_experiment(run.experiment, _artifacts(run.uri), tags))


def _tell(client: Any, run_id: str, run: TrackedRun, summary: dict[str, Any]) -> None:
    """Link the run to those that made its inputs, and describe it; with a summary, also say what it made."""
    sources = find_sources(client, run.uri, run.inputs)
    tags = {FROM + name: source.run_id for name, source in sources.items()}
    if made := summary.get("fingerprint"):
        tags[MADE] = str(made)
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


def _artifacts(uri: str) -> str | None:
    """Return where a new experiment keeps its files: beside a sqlite store, not in the working directory."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns").as_uri()


@contextmanager
def with_tracking_retries() -> Iterator[None]:
    """For files, which a server may take minutes to pass on; the short time-outs are for calls of a line or two."""
    names = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
    before = {name: os.environ[name] for name in names}
    given = before != {name: _QUICK[name] for name in names}  # the user's own stay
    os.environ.update({} if given else names)
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def suppress_tracking_errors(what: str) -> Iterator[None]:
    """Tracking must not end a run: whatever it raises (many kinds, from many libraries) becomes a warning."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "MLflow: could not %s (%s); the run goes on", what, public_text(" ".join(str(error).split()))[:200]
        )


def open_run(config: StageConfig, stage: str, out: str, inputs: dict[str, str], beside: str = "") -> TrackedRun | None:
    """Make or find the MLflow run of this output folder; where no server answers, whoever comes next tries again."""
    run = describe_run(config, stage, out, inputs, beside)
    if run:
        with suppress_tracking_errors("open a run"):
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
    """Log the summary's figures, the resolved settings and files (URIs by folder), describe the run, and end it."""
    if run is None:
        return
    with suppress_tracking_errors("close the run; the same command sends what is missing, once the server answers"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        run_id, client = ensure_run(run), MlflowClient(tracking_uri=run.uri)
        numbers = {k: v for k, v in flatten(summary).items() if isinstance(v, int | float) and not isinstance(v, bool)}
        now = int(time.time() * 1000)
        points = [Metric(f"summary/{name.replace('@', '')}", float(value), now, 0) for name, value in numbers.items()]
        client.log_batch(run_id, metrics=points[:900])
        with with_tracking_retries():
            client.log_dict(run_id, public_data(config.model_dump(mode="json")), "config.yaml")
            client.log_dict(run_id, public_data(summary), "summary.json")
        for folder, uris in files.items():
            log_files(client, run_id, folder, uris)
        _tell(client, run_id, run, summary)
        client.set_terminated(run_id)
        write_run_file(run.out, read_run_file(run.out) | {"closed": True})


def is_closed(run: TrackedRun) -> bool:
    """Return whether the run has got its summary."""
    return bool(read_run_file(run.out).get("closed"))


def reopen_run(out: str) -> None:
    """Let the run of a finished output be closed again, with other figures and model; the run stays the same."""
    if known := read_run_file(out):
        write_run_file(out, {name: value for name, value in known.items() if name not in ("closed", "model")})


@contextmanager
def end_on_error(run: TrackedRun | None) -> Iterator[None]:
    """End the run if the block raises: FAILED, or KILLED where somebody asked for it."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if run:
            with suppress_tracking_errors(f"mark the run as {status}"):
                from mlflow import MlflowClient

                MlflowClient(tracking_uri=run.uri).set_terminated(ensure_run(run), status=status)
        raise
