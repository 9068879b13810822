"""Trainings that several files of tests hold theirs against."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def unbroken(small_workflow: tuple[Path, dict[str, Any]], common_folder: Path) -> Path:
    """The output of an unbroken training of `faults.train`: one worker, both parts of each step. Read it only."""
    from helpers.faults import train
    from helpers.sharing import build_once

    folder = common_folder / "unbroken"
    folder.mkdir(exist_ok=True)
    build_once(folder / "model", lambda: train(small_workflow, folder / "model"))
    return folder / "model"
