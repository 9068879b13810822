"""What Ray Tune runs: one pre-training, the door's own function, with its evaluations told to Tune as they come.

Ray Train runs inside, with as many workers as the settings say; this process only waits and reads along. It tells Tune
what stands in the trial's metrics file, so a trial that goes on after a kill is judged by all of its evaluations.
"""

import threading
import time
from typing import Any

from ray import tune

from evilm import storage
from evilm.config.runs import Pretrain
from evilm.errors import ClusterError, EvilmError
from evilm.sweep.trials import FAILED_FILE, read_outcome
from evilm.train.pretrain import pretrain
from evilm.train.stop import STOP_FILE, Stopped

_LOOK_S, _LOOK_REMOTE_S = 0.5, 5.0
_STOPPING_S = 600.0


class PretrainTrial(tune.Trainable):
    """A pre-training in a thread; each of Tune's steps is one evaluation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing yet: evaluations of an earlier start are told first, and may be the end of the trial.

        Args:
            config: `settings` of the pre-training as JSON, the name of the `score`, `steps_per_epoch` and `last_step`.
        """
        self._spec = config
        self._settings = Pretrain.model_validate_json(config["settings"])
        self._error: BaseException | None = None
        self._told = 0
        self._thread: threading.Thread | None = None

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation: `epochs` and `score`; with the last one, the trial is done.

        Raises:
            ClusterError: Ray could not go on; the same sweep tries the trial again.
        """
        while True:
            alive = not self._thread or self._thread.is_alive()  # before the look: the last look sees everything
            fresh = self._points(alive)[self._told :]
            if fresh:
                self._told += 1
                step, score = fresh[0]
                at = {"epochs": step / self._spec["steps_per_epoch"], "score": score}
                return at if alive or len(fresh) > 1 else self._end() | at
            if not alive:
                return self._end()
            if not self._thread:  # from the newest checkpoint, where there is one
                self._thread = threading.Thread(target=self._work, name="pretrain", daemon=True)
                self._thread.start()
            self._thread.join(_LOOK_S if storage.is_local(self._settings.out) else _LOOK_REMOTE_S)

    def cleanup(self) -> None:
        """End the pre-training where Tune has stopped the trial, in order: with a checkpoint, its workers let go.

        Were this process just killed, Ray could keep the workers' CPUs reserved, and the next trial wait for them.
        """
        place = storage.join(self._settings.out, STOP_FILE)
        until = time.monotonic() + _STOPPING_S
        while self._thread and self._thread.is_alive() and time.monotonic() < until:
            storage.write_json(place, {"signal": 0})  # again and again: a training that begins deletes an old one
            self._thread.join(1.0)

    def _work(self) -> None:
        try:
            pretrain(self._settings)
        except BaseException as error:  # raised again, or written down, where Tune asks
            self._error = error

    def _points(self, alive: bool) -> list[tuple[int, float]]:
        """Steps and scores so far. The last one waits for the model, lest a trial be stopped at its very end."""
        name, last = self._spec["score"], self._spec["last_step"]
        points = read_outcome(self._settings.out).points
        return [(step, found[name]) for step, found in points if name in found and (step < last or not alive)]

    def _end(self) -> dict[str, Any]:
        error = self._error
        if isinstance(error, EvilmError) and not isinstance(error, ClusterError):
            # Of the settings themselves: a diverged loss, say. Tried again it would end the same way.
            storage.write_json(storage.join(self._settings.out, FAILED_FILE), {"error": str(error)})
        elif isinstance(error, Stopped):  # a KeyboardInterrupt, which Ray takes for a cancelled task
            raise ClusterError(str(error))
        elif error:
            raise error
        return {"done": True}
