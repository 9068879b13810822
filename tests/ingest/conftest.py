"""Corpora for the tests of sharding. Read them, don't write into those of a session or module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.gates import Gate, serve
from helpers.small_corpus import SERVED, make_clips, make_corpus, serve_some
from helpers.tables import write_csv
from helpers.video_files import write_video


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 good clips and four bad rows."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def good_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty good clips."""
    return make_clips(tmp_path_factory.mktemp("good"), 20)


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A folder to write into, with clips.csv of 10 good clips; 20 videos are there."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "0.mp4", num_frames=8)
    for number in range(1, 20):
        os.link(tmp_path / "videos" / "0.mp4", tmp_path / "videos" / f"{number}.mp4")
    write_csv(tmp_path / "clips.csv", ["videoid", "name"], *([str(number), f"clip {number}"] for number in range(10)))
    return tmp_path


@pytest.fixture(scope="module")
def module_gate() -> Gate:
    """The gate of `served_corpus`, for the fixture `gate`."""
    return Gate()


@pytest.fixture
def gate(module_gate: Gate) -> Iterator[Gate]:
    """The gate of `served_corpus`; open at the start and the end of each test."""
    yield module_gate
    module_gate.open()


@pytest.fixture(scope="module")
def served_corpus(module_gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The corpus, with the videos of `SERVED` on a web server behind `gate` instead of in the folder."""
    folder, web = make_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("web")
    with serve(web, module_gate) as url:
        serve_some(folder, web, url, SERVED)
        yield folder
