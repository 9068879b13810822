"""Units of work that fail or wait as they are told, where Ray's workers can import them."""

import time
from pathlib import Path

import numpy as np

from evilm.errors import AccessError, HaltedError, ShardError, StorageError
from evilm.jobs import runner

_ERRORS = {"storage": StorageError, "shard": ShardError, "halted": HaltedError, "access": AccessError}


def fail_some(kinds: dict[str, str], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A worker that fails for some units; the classes are given by name."""

    def work(name: str) -> tuple[int, ...]:
        kind = kinds.get(name)
        if kind:
            raise _ERRORS[kind](f"no place for {name}")
        return (3,)

    return runner.outcome(work, batch)


def fail_on(node: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A worker that fails on one node."""

    def work(name: str) -> tuple[int, ...]:
        if runner.this_node() == node:
            raise StorageError("no space left on device")
        return (3,)

    return runner.outcome(work, batch)


def fail_at_once_on(node: str, folder: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A worker that fails on one node; on others, the first unit takes until many failed."""

    def work(name: str) -> tuple[int, ...]:
        if runner.this_node() == node:
            Path(folder, name).touch()
            raise AccessError("the folder of the videos is gone")
        if not Path(folder, "first").exists():
            Path(folder, "first").touch()
            deadline = time.monotonic() + 60
            while len(list(Path(folder).iterdir())) < 9 and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(10)
        return (3,)

    return runner.outcome(work, batch)


def meet(folder: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A worker that waits until there are workers on two nodes."""

    def work(name: str) -> tuple[int, ...]:
        Path(folder, runner.this_node()).touch()
        deadline = time.monotonic() + 200
        while len(list(Path(folder).iterdir())) < 2:
            if time.monotonic() > deadline:
                raise ShardError("there is one node")
            time.sleep(0.1)
        return (3,)

    return runner.outcome(work, batch)


class Meeting:
    """The same as an actor."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Wait."""
        return meet(self._folder, batch)
