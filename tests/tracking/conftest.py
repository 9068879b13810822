"""Settings for the tests of tracking, and the stores that they track to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from helpers.mlflow_server import Server


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> BuildVocab:
    """Settings of a command without an MLflow server named in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return BuildVocab()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store without runs, which tests copy: MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The store of the outputs in `tmp_path`."""
    return shutil.copy(empty_store, tmp_path / "mlflow.db")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.long)])
def project(config: BuildVocab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuildVocab:
    """Settings with an experiment of their own in a real store: a SQLite file, and a server."""
    if request.param == "server":
        uri = request.getfixturevalue("mlflow_server")
    else:
        empty = request.getfixturevalue("empty_store")
        uri = f"sqlite:///{shutil.copy(empty, tmp_path_factory.mktemp('store'))}"
    return config.override({"tracking.uri": uri, "tracking.experiment": request.node.name})
