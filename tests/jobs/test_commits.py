"""Commits of shards: attempts that die, and attempts that end with an error."""

from contextlib import suppress
from pathlib import Path

import pytest

from evilm.errors import ClusterError, OwnershipError, StorageError
from evilm.io import ownership
from evilm.jobs import commits


def test_shard_that_kills_its_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    def attempt(run: int, max_failures: int) -> None:
        with suppress(SystemExit), commits.attempt(str(tmp_path), run, "train-00000", max_failures):
            raise SystemExit  # no error of the unit

    for _ in range(3):
        attempt(1, 2)
    with pytest.raises(ClusterError, match="died 3 times"):
        attempt(1, 2)
    attempt(2, 2)
    attempt(1, -1)


def test_attempt_that_raises_does_not_count_as_death(tmp_path: Path) -> None:
    out = str(tmp_path)
    for _ in range(4):
        with pytest.raises(StorageError), commits.attempt(out, 1, "a", 1):
            raise StorageError("full")
    with commits.attempt(out, 1, "a", 1):
        pass


def test_run_that_was_taken_over_revokes_no_commit(tmp_path: Path) -> None:
    out, unit = str(tmp_path), commits.Unit("train-00000", "abc")
    first = ownership.claim(out)
    commits.commit_file(out, unit, "", {"num_clips": 1}, first.number)
    first.release()
    ownership.claim(out).release()
    with pytest.raises(OwnershipError, match="was taken over by"):
        commits.revoke(out, unit, first.number)
    assert commits.read_record(out, unit)
