"""The end of a sweep that was asked for, by Ctrl-C or SIGTERM: each running trial keeps a checkpoint first."""

import logging
import signal
import time
from collections.abc import Mapping
from typing import Any

from ray import tune

from evilm import storage
from evilm.train.stop import STOP_FILE

logger = logging.getLogger(__name__)

_ENDING_S = 50.0
"""Less than the minute that `ray job stop` waits, see cluster/runtime_env.yaml."""


class Ending(tune.Callback):
    """Knows the processes of running trials, so that it can wait for them when Tune's own loop has been left."""

    def __init__(self) -> None:
        self._processes: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note its process."""
        self._processes[trial.config["name"]] = trial.temporary_state.ray_actor

    def end(self, running: Mapping[str, str]) -> None:
        """Ask trials to end after their step, and wait until they have.

        Args:
            running: folders of the trials by name.
        """
        import ray

        waiting = {self._processes[name].stop.remote(): out for name, out in running.items() if name in self._processes}
        if waiting:
            logger.info("stopping %d trial(s) with a checkpoint; once more stops at once", len(waiting))
        asked, until = list(waiting.values()), time.monotonic() + _ENDING_S
        try:
            while waiting and time.monotonic() < until:
                for out in waiting.values():  # again and again: a training that begins deletes an old one
                    storage.write_json(storage.join(out, STOP_FILE), {"signal": int(signal.SIGTERM)})
                ended, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=1.0)
                for reference in ended:
                    del waiting[reference]
        finally:
            for out in asked:
                storage.delete(storage.join(out, STOP_FILE))
