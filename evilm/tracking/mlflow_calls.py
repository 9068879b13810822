"""Calls of MLflow that cost a training seconds at most, and never its end."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evilm.config.secrets import public_text

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
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)


@contextmanager
def with_tracking_retries() -> Iterator[None]:
    """Use long time-outs for files, which a server may take minutes to pass on; those of calls are short."""
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
    """Turn whatever tracking raises, of many kinds and libraries, into a warning: tracking must not end a run."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "MLflow: could not %s (%s); the run continues", what, public_text(" ".join(str(error).split()))[:200]
        )


@contextmanager
def ending(client: Any, run_id: str) -> Iterator[None]:
    """End a run whose work is done after the block, also if that raises: KILLED where somebody asked for it."""
    try:
        yield
    except BaseException as error:
        with suppress_tracking_errors("end the run"):
            client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FINISHED")
        raise
    client.set_terminated(run_id)
