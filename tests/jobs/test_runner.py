"""Shards of a job that fail: tried again, reported at the end, or stopping the job."""

import logging
from functools import partial
from typing import Any

from evilm.errors import AccessError, HaltedError, ShardError, StorageError, UnfinishedError
from evilm.jobs import runner
from helpers.failing_units import fail_some


def _run(ray_local: Any, names: list[str], kinds: dict[str, str]) -> tuple[list[str], BaseException | None]:
    from ray.data import TaskPoolStrategy

    done, options = [], {"compute": TaskPoolStrategy(size=2), "num_cpus": 1}
    try:
        for row in runner.run(names, partial(fail_some, kinds), 1, options, "shards", dict.fromkeys(names, 3)):
            done.append(str(row["name"]))
    except (StorageError, ShardError, HaltedError) as error:
        return sorted(done), error
    return sorted(done), None


def test_failed_shards_are_reported_after_all_others_are_done(ray_local: Any, caplog: Any) -> None:
    names = [f"s-{number}" for number in range(12)]
    caplog.set_level(logging.INFO, "evilm")
    done, error = _run(ray_local, names, {"s-3": "storage", "s-7": "shard"})
    assert done == sorted(set(names) - {"s-3", "s-7"})
    assert isinstance(error, UnfinishedError)
    assert "shards: 2 of 12 shards failed, 10 are done: " in str(error)
    assert "s-3: no place for s-3" in str(error)
    assert "s-7: no place for s-7" in str(error)
    assert str(error).endswith("; run the same command again for the rest")
    assert caplog.text.count("s-3 failed") == 2, "tried twice"
    done, error = _run(ray_local, names, {})
    assert (done, error) == (sorted(names), None)
    assert "30 of 36 clips" in caplog.text or "36 of 36 clips" in caplog.text


def test_videos_out_of_reach_fail_their_shards_and_stop_the_job_only_if_all_are(ray_local: Any) -> None:
    names = [f"s-{number}" for number in range(20)]
    done, error = _run(ray_local, names, {"s-3": "access"})
    assert done == sorted(set(names) - {"s-3"})
    assert isinstance(error, UnfinishedError)
    assert "s-3: no place for s-3" in str(error)
    done, error = _run(ray_local, names, dict.fromkeys(names, "access"))
    assert (done, type(error)) == ([], AccessError)


def test_single_failing_shard_raises_its_own_error(ray_local: Any) -> None:
    done, error = _run(ray_local, ["s-0"], {"s-0": "storage"})
    assert (done, type(error), str(error)) == ([], StorageError, "no place for s-0")


def test_halting_error_or_eight_failures_stop_the_job(ray_local: Any) -> None:
    names = [f"s-{number}" for number in range(40)]
    _, error = _run(ray_local, names, {"s-0": "halted"})
    assert isinstance(error, HaltedError)
    done, error = _run(ray_local, names, dict.fromkeys(names, "storage"))
    assert not done
    assert isinstance(error, UnfinishedError)
    assert ": 8 of 40 shards failed, 0 are done, stopping early: " in str(error), "not all of them were tried"
