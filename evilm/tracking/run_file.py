"""Read and write the file of an output folder that names its MLflow run, one per store that it was brought to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evilm.config.secrets import public_uri
from evilm.io import storage

RUN_FILE = "mlflow.json"
"""File of an output folder: its run, the store of that run, and what was sent there."""
SQLITE = "sqlite:///"
_BESIDE, _ELSEWHERE = "beside:", "elsewhere"


def read_run_file(out: str, uri: str = "") -> dict[str, Any]:
    """Return what an output folder knows of its run; nothing where it has none.

    `uri` is the store that is asked for; '' is the one that was used last.
    """
    known = _records(out)
    if uri:
        known = [record for record in known if record.get("uri") == public_uri(uri)]
    return known[0] if known else {}


def write_run_file(out: str, known: Mapping[str, Any]) -> None:
    """Keep what is known of the run of an output folder in the store `known["uri"]`; other stores' stays."""
    others = [record for record in _records(out) if record.get("uri") != known["uri"]]
    _write(out, [dict(known), *others])


def reopen_run(out: str) -> None:
    """Mark the MLflow run of an output as open, so that it can be closed with new results."""
    ends = ("closed", "model")
    if records := _records(out):
        _write(out, [{name: value for name, value in each.items() if name not in ends} for each in records])


def _records(out: str) -> list[dict[str, Any]]:
    place = storage.join(out, RUN_FILE)
    if not storage.exists(place):
        return []
    first = dict(storage.read_json(place))
    return [record | _uri(_from_here(record, out)) for record in (first, *first.pop(_ELSEWHERE, []))]


def _write(out: str, records: list[dict[str, Any]]) -> None:
    first, *others = [record | _uri(_to_here(record, out)) for record in records]
    storage.write_json(storage.join(out, RUN_FILE), first | ({_ELSEWHERE: others} if others else {}))


def _uri(uri: str) -> dict[str, str]:
    return {"uri": uri} if uri else {}


def _to_here(record: Mapping[str, Any], out: str) -> str:
    """Return the URI of a store relative to the output, where both may be moved together: a file in a folder above."""
    uri = str(record.get("uri", ""))
    if not uri.startswith(SQLITE) or not storage.is_local(out):
        return uri
    store, folder = Path(uri.removeprefix(SQLITE)), Path(storage.absolute(out))
    return _BESIDE + os.path.relpath(store, folder) if store.parent in folder.parents else uri


def _from_here(record: Mapping[str, Any], out: str) -> str:
    uri = str(record.get("uri", ""))
    if not uri.startswith(_BESIDE):
        return uri
    return SQLITE + os.path.normpath(Path(storage.absolute(out), uri.removeprefix(_BESIDE)))
