"""The files of `video_files.KINDS`, each made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from helpers.video_files import write_kind


@pytest.fixture(scope="session")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a file by its name in `video_files.KINDS`."""
    folder = tmp_path_factory.mktemp("kinds")
    return cache(lambda name: write_kind(folder, name))
