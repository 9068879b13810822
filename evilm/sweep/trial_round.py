"""One round of trials under Ray Tune. Each is a pre-training by the command's own function, from its newest checkpoint.

Ray Train runs inside of a trial, with as many workers as the settings say; the trial's own process only waits. Tune's
state is thrown away: trials are described by their folders.
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from evilm.config.stages import Pretrain
from evilm.errors import ClusterError, EvilmError, OwnershipError
from evilm.io import storage
from evilm.io.ownership import newest
from evilm.sweep.trial_folder import FAILED_FILE
from evilm.tasks.pretrain import pretrain
from evilm.train.preemption import Stopped, stop_file

logger = logging.getLogger(__name__)

_ENDING_S = 50.0
"""Less than the minute that `ray job stop` waits, see cluster/runtime_env.yaml."""


def run_round(
    settings: Mapping[str, Pretrain], slots: int, ended: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Run trials, `slots` at a time, until all have ended.

    Args:
        settings: pre-trainings by trial name, in the order in which they begin.
        ended: called with the name of each trial that has ended.
        check: raises OwnershipError if another run has taken the sweep over, and with it the trials.

    Raises:
        ClusterError: trials failed for reasons other than their settings.
        KeyboardInterrupt: an end was requested; running trials have kept a checkpoint.
    """
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # no box on stdout, whose last line is the summary
    running = _Running(ended)
    texts = {name: config.model_dump_json() for name, config in settings.items()}
    with tempfile.TemporaryDirectory(prefix="evilm-tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            # Ray Train asks for its workers by itself.
            tune.with_resources(tune.with_parameters(_run_trial, settings=texts), {"CPU": 0.01}),
            param_space={"trial": tune.grid_search(list(texts))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=slots, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(name="tune", storage_path=folder, verbose=0, callbacks=[running]),
        )
        results: list[Any] = []
        # In a thread of its own, so that Ctrl-C leaves Tune's loop at work until trials have kept a checkpoint.
        thread = threading.Thread(target=lambda: results.append(tuner.fit()), name="tune", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except KeyboardInterrupt:
            check()
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that is stopped has not failed
            running.end({name: config.out for name, config in settings.items()})
            raise
    if not results:
        raise ClusterError("Ray Tune ended without a result; run the same command again to continue")
    errors = {result.config["trial"]: result.error for result in results[0] if result.error}
    for name, error in errors.items():
        logger.warning("trial %s: %s", name, str(error).strip().splitlines()[-1])
    if errors:
        raise ClusterError(
            f"{len(errors)} trial(s) failed: {', '.join(errors)}; run the same command again to continue"
        )


def _run_trial(config: dict[str, Any], settings: Mapping[str, str]) -> None:
    """Pre-train in a process of Tune.

    Raises:
        ClusterError: Ray could not continue, or an end was requested; the same sweep tries the trial again.
    """
    trial = Pretrain.model_validate_json(settings[config["trial"]])
    try:
        pretrain(trial)
    except ClusterError:
        raise
    except OwnershipError as error:
        raise ClusterError(str(error)) from None
    except EvilmError as error:  # of the settings, such as a diverged loss: tried again it would end the same way
        storage.write_json(storage.join(trial.out, FAILED_FILE), {"error": str(error)})
    except Stopped as stopped:  # a KeyboardInterrupt, which Ray takes for a cancelled task
        raise ClusterError(str(stopped)) from None


class _Running(tune.Callback):
    """Keeps the names of running trials."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._names: set[str] = set()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Add a trial."""
        name = trial.config["trial"]
        logger.info("trial %s begins", name)
        self._names.add(name)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Remove a trial, and report its end."""
        self._names.discard(trial.config["trial"])
        self._ended(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Remove a trial; its error is reported at the end of the round."""
        self._names.discard(trial.config["trial"])

    def end(self, outs: Mapping[str, str]) -> None:
        """Stop the running trials after their step, and wait until they have kept a checkpoint.

        `outs` has the folder of each trial by name.
        """
        waiting, until, written = set(self._names), time.monotonic() + _ENDING_S, set[str]()
        if waiting:
            logger.info("stopping %d trial(s) with a checkpoint; once more stops at once", len(waiting))
        try:
            while waiting & self._names and time.monotonic() < until:
                for name in set(self._names):  # again and again: a training that begins deletes an old one
                    if number := newest(outs[name]):  # else the folder is not claimed yet
                        written.add(file := stop_file(outs[name], number))
                        storage.write_json(file, {"signal": int(signal.SIGTERM)})
                time.sleep(1.0)
        finally:
            for file in written:
                storage.delete(file)
