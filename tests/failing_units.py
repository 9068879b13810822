"""Units of work that fail as they are told, where Ray's workers can import them."""

import numpy as np

from evilm.data import runner
from evilm.errors import HaltedError, ShardError, StorageError


def fail_some(kinds: dict[str, str], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A worker that fails for some units; the classes are given by name."""

    def work(name: str) -> tuple[int, ...]:
        kind = kinds.get(name)
        if kind:
            raise {"storage": StorageError, "shard": ShardError, "halted": HaltedError}[kind](f"no place for {name}")
        return (3,)

    return runner.outcome(work, batch)
