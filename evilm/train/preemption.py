"""Ends that are asked for: Ctrl-C and SIGTERM at the driver, SIGTERM at a worker, nodes that are being taken away.

Each leads to a checkpoint. The driver tells the workers by a file in the output folder, which reaches every node; a
worker's main thread hears signals; Ray tells which nodes drain. Flags travel with the losses of the next step, so that
all workers stop at the same one.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from evilm.config.resources import ClusterConfig, simulates_gpus
from evilm.errors import ClusterError
from evilm.io import storage
from evilm.io.ownership import is_owner

logger = logging.getLogger(__name__)

_STOP_FILE = "stop-{:05d}.json"
_ASK_S, _ASK_REMOTE_S = 0.25, 3.0
_LOOK_S = 2.0  # a look at Ray's preemption notices is a barrier of some milliseconds
_HEARD_S = 30.0
_AGAIN_S = 2.0  # `timeout`, job schedulers and shells send the same signal to a process and to its group
_NEAR_S, _SAVES = 15.0, 3  # how long before a node is taken away there is a last checkpoint: so long, or so many saves

_terminated = threading.Event()
"""This worker process got SIGTERM."""


class Stopped(KeyboardInterrupt):
    """The run was asked to end, and did so with a checkpoint where it could; `exit_code` is what a shell expects."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _listen() -> None:
    """Take SIGTERM as a request; runs in a worker's main thread, the only one that may handle signals."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


def torch_config(cluster: ClusterConfig) -> Any:
    """Return Ray's set-up of torch, in which each worker takes SIGTERM as a request."""
    from ray.train.torch import TorchConfig

    base: Any = TorchConfig().backend_cls

    class Backend(base):
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(_listen)

    class GroupConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    backend = "gloo" if simulates_gpus() else None  # None: NCCL with GPUs, gloo without
    return GroupConfig(backend=backend, timeout_s=math.ceil(cluster.collective_timeout_s))


class WorkerPreempted(ClusterError):
    """Raised on all workers after the checkpoint that a worker's SIGTERM asked for; Ray then restarts them."""

    def __init__(self) -> None:
        super().__init__("a worker was asked to end (SIGTERM); a checkpoint was saved, and the run continues from it")


NUM_FLAGS = 4


class StopSignal:
    """Requests to stop that one worker knows of, as flags to be added up over workers.

    Order of the flags: the run shall stop; a worker was asked to end; it is time to look at Ray's notices; a node will
    soon be taken away.
    """

    def __init__(self, out: str, rank: int, run: int = 0) -> None:
        self._out, self._rank, self._run = out, rank, run
        self._stop_run, self._closed = threading.Event(), threading.Event()
        self._looked = time.monotonic()
        self._known: set[str] = set()
        self._deadline = 0.0
        """Time when the next announced node will be taken away, in seconds since 1970; 0 if none was announced."""
        if rank == 0:
            threading.Thread(target=self._ask, name="stop", daemon=True).start()

    def flags(self, save_s: float = 0.0) -> list[float]:
        """Return this worker's flags for the step to come; `save_s` is how long a checkpoint takes."""
        look = self._rank == 0 and time.monotonic() - self._looked > _LOOK_S
        near = self._rank == 0 and self._is_near(save_s)
        return [float(self._stop_run.is_set()), float(_terminated.is_set()), float(look), float(near)]

    def _is_near(self, save_s: float) -> bool:
        """Return whether it is time for a last checkpoint before a node is taken away; once for each deadline."""
        if not self._deadline or self._deadline - time.time() > max(_NEAR_S, _SAVES * save_s):
            return False
        self._deadline = 0.0
        return True

    def leaving(self) -> str:
        """Return a line about nodes that Ray says are being taken away, once for each; '' where there are none.

        A barrier: every worker calls it at the same steps.
        """
        import ray.train

        self._looked = time.monotonic()
        info = ray.train.get_preemption_info()
        fresh = set(info.preempted_node_ids) - self._known if info else set()
        if not info or not fresh:
            return ""
        self._known |= fresh
        left = ""
        if info.deadline_ms:
            deadline = info.deadline_ms / 1000
            left = f" in {deadline - time.time():.0f} s"
            self._expect(deadline)
        return f"{len(fresh)} node(s) with workers {info.preempted_ranks} will be taken away{left}"

    def _expect(self, deadline: float) -> None:
        """Remember when a node will be taken away, unless that is so soon that the checkpoint of now is the last."""
        if deadline - time.time() > _NEAR_S + _LOOK_S:
            self._deadline = min(self._deadline or deadline, deadline)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _ask(self) -> None:
        """Look for the driver's file, and take it away to say that it was heard."""
        every = _ASK_S if storage.is_local(self._out) else _ASK_REMOTE_S
        while not self._closed.wait(every):
            try:
                if not is_owner(self._out, self._run):
                    self._stop_run.set()  # before it writes a checkpoint, it will find the other run
                    return
                if _STOP_FILE.format(self._run) in storage.list_names(self._out):
                    self._stop_run.set()
                    storage.delete(stop_file(self._out, self._run))
                    return
            except OSError as error:  # storage that is away for a moment must not end the watch
                logger.warning("could not look for a request to stop in %s (%s)", self._out, error)


def stop_file(out: str, run: int) -> str:
    """Return the file that asks the workers of a run of an output folder to stop."""
    return storage.join(out, _STOP_FILE.format(run))


def run_until_asked(work: Callable[[], Any], out: str, run: int) -> Any:
    """Run a training of Ray, and end it in order on the first SIGINT or SIGTERM; one that comes later ends it at once.

    The training runs in a thread of its own, so that the main one can hear signals; Ray's own handling would throw
    away all steps since the last checkpoint.

    Raises:
        Stopped: it was asked to end before the workers could hear it, or twice.
    """
    file = stop_file(out, run)
    storage.delete(file)
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals; whoever made this one writes the file to end it.
        return _unless_interrupted(work(), signal.SIGTERM)
    received: list[tuple[int, float]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: received.append((number, time.monotonic())))
    result: dict[str, Any] = {}

    def train() -> None:
        try:
            result["value"] = work()
        except BaseException as error:  # raised again below, in the main thread
            result["error"] = error

    try:
        thread = threading.Thread(target=train, name="fit", daemon=True)
        thread.start()
        _wait(thread, received, file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if "error" in result:
        raise result["error"]
    return _unless_interrupted(result["value"], received[0][0] if received else signal.SIGTERM)


def _unless_interrupted(value: Any, number: int) -> Any:
    """Return what a training returned, unless it ended because it was asked to."""
    if isinstance(value, dict) and "interrupted" in value:
        raise stopped(number, f"; checkpoint saved at step {value['interrupted']}")
    return value


def _wait(thread: threading.Thread, received: list[tuple[int, float]], stop_file: str) -> None:
    """Wait for the training, passing on the first signal and giving up at a later one, or where nobody hears it."""
    asked = 0.0
    while thread.is_alive():
        thread.join(0.1)
        if received and not asked:
            asked = time.monotonic()
            storage.write_json(stop_file, {"signal": received[0][0]})
            logger.info(
                "stopping after this step, with a checkpoint; once more, %.0f s from now, stops at once", _AGAIN_S
            )
        again = len(received) > 1 and received[-1][1] - received[0][1] >= _AGAIN_S
        unheard = bool(asked) and time.monotonic() - asked > _HEARD_S and _there(stop_file)
        if thread.is_alive() and (again or unheard):
            storage.delete(stop_file)
            raise stopped(received[0][0], " between two checkpoints")


def _there(uri: str) -> bool:
    """Return whether a file is there, past the cache of a listing."""
    folder, name = uri.rsplit("/", 1)
    return name in storage.list_names(folder)


def stopped(number: int, what: str) -> Stopped:
    """Return what the driver raises in the end."""
    return Stopped(f"interrupted{what}; run the same command again to continue", 128 + number)
