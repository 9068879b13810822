"""Trainings that several files of tests hold theirs against."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def unbroken(small_workflow: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an unbroken training of `faults.train`: one worker, both parts of each step. Read it only."""
    from faults import train

    out = tmp_path_factory.mktemp("unbroken") / "model"
    train(small_workflow, out)
    return out
