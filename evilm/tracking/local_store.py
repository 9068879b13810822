"""The SQLite store of a root: where it is, where its files are, and both after the root was moved or copied."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from evilm.errors import ConfigError
from evilm.io import storage
from evilm.tracking.run_file import SQLITE

logger = logging.getLogger(__name__)

DATABASE, FILES = "mlflow.db", "mlruns"
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps absolute places of files."""


def store_beside(out: str) -> str:
    """Return the URI of the store in the folder that the local path `out` lies in.

    Raises:
        ConfigError: no URI of a SQLite store can name that folder.
    """
    root = Path(storage.absolute(out)).parent
    if "?" in str(root):
        raise ConfigError(
            f"{root} has a '?' in its name, which ends the address of its MLflow store; use another folder, or "
            "--tracking.uri or --tracking.enabled false"
        )
    root.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{root / DATABASE}"


def database_of(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for other stores."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def files_of(uri: str) -> str | None:
    """Return where a new experiment keeps its files: beside a SQLite store, not in the working directory."""
    database = database_of(uri)
    return (database.parent / FILES).as_uri() if database else None


def relocate(uri: str) -> None:
    """Point a SQLite store to the files beside it, if it was moved or copied together with them.

    MLflow keeps absolute places. Only those below an `mlruns` that is not the one beside the store are changed.
    """
    database = database_of(uri)
    if not database or not database.exists() or not (files := database.parent / FILES).is_dir():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {table for table, _ in _LOCATIONS} <= tables:  # MLflow is still making it
            return
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in found:
            if not (old.startswith("file:") and old.endswith(f"/{FILES}")) or _is_same(old, files):
                continue
            for table, column in _LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (files.as_uri(), len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            logger.info("MLflow: %s was moved; its files are now those in %s", database, files)


def _is_same(uri: str, folder: Path) -> bool:
    """Return whether a file URI names this folder, maybe by a link."""
    place = url2pathname(urlparse(uri).path)
    return os.path.exists(place) and os.path.samefile(place, folder)
