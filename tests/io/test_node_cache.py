"""Files cached per machine: made by one process or thread, never half, never from another user's folder."""

import os
import threading
import time
from pathlib import Path

import pytest

from evilm.errors import ShardError, StorageError
from evilm.io import node_cache


def test_threads_wait_for_the_one_that_makes_a_file(machine_cache: Path) -> None:
    made: list[int] = []

    def make(path: str) -> None:
        made.append(1)
        time.sleep(0.2)
        Path(path).write_text("whole")

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(node_cache.cached("a", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert {Path(path).read_text() for path in found} == {"whole"}


def _hundred(path: str) -> None:
    Path(path).write_bytes(bytes(100))


def test_failed_file_leaves_nothing_and_oldest_files_are_evicted(machine_cache: Path) -> None:
    def fail(path: str) -> None:
        Path(path).write_text("half")
        raise ShardError("no")

    with pytest.raises(ShardError, match="no"):
        node_cache.cached("a", fail)
    assert not (machine_cache / "a").exists()
    for number, name in enumerate("abc"):
        path = node_cache.cached(name, _hundred, max_bytes=250)
        os.utime(path, (number, number))
    node_cache.cached("d", _hundred, max_bytes=250)
    assert sorted(file.name for file in machine_cache.iterdir() if file.suffix != ".lock") == ["c", "d"]


def test_cache_folder_of_another_user_is_rejected(machine_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    machine_cache.symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match="belongs to another user; remove it, or set TMPDIR"):
        node_cache.cached("a", lambda path: None)
