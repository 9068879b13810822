"""Settings for the tests of tracking."""

import pytest

from evilm.config.stages import BuildVocab


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> BuildVocab:
    """Settings of a command without an MLflow server named in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return BuildVocab()
