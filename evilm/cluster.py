"""Connect to Ray: the job's cluster, the one at RAY_ADDRESS, or a private local one; build options of worker pools."""

import atexit
import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from evilm.config.resources import ActorPoolConfig, PoolConfig
from evilm.console import announce
from evilm.errors import ClusterError

logger = logging.getLogger(__name__)

# Set before Ray is imported: quiet single-machine defaults, which never override the user's.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in the driver and in training workers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Remarks of Ray Train's processes about its own actors, and about each checkpoint.
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"core_worker\.cc:|^Reporting training result \d+: TrainingReport",
}.items():
    os.environ.setdefault(_name, _value)

_OBJECT_STORE_BYTES = 512 * 2**20
_STARTS = 3
NO_DASHBOARD = "http://127.0.0.1:9"
"""An address at which nothing answers: at once, where Ray's processes would look 40 s for a dashboard."""
_PROBE_S = 5.0
_GIB = 2**30


def connect(min_cpus: float = 1) -> None:
    """Connect to the cluster of the job or of RAY_ADDRESS; without one, start a private cluster on this machine.

    Args:
        min_cpus: logical CPUs that the work needs at once; a private cluster has at least these. They are only a
            bookkeeping unit: a small machine can run more workers than it has cores.

    Raises:
        ClusterError: the cluster can't be reached or is too small.
    """
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if address:
            _probe(address)
        if address in (None, "", "local"):
            _protect()
        try:
            if address:
                _init()
            else:
                _start_private(max(os.cpu_count() or 1, math.ceil(min_cpus)))
        except (
            Exception
        ) as error:  # Ray has no class for a node that does not start in time, as on an overloaded machine
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if address:
                raise ClusterError(
                    f"cannot reach Ray at {address}: {reason}; check RAY_ADDRESS and RAY_AUTH_MODE"
                ) from error
            raise ClusterError(f"cannot start Ray on this machine: {reason}; {_advice(error)}") from error
    _quiet()


def _init(**options: Any) -> None:
    """Call `ray.init`; Ray's log messages stay in its files, our own, and errors, go to the console."""
    import ray

    with _held_sigterm():
        ray.init(configure_logging=False, logging_config=ray.LoggingConfig(log_level="ERROR"), **options)


def _start_private(num_cpus: int) -> None:
    """Start a private cluster on this machine, again if it needs more than the 30 s that Ray gives it."""
    with announce(f"starting Ray on this machine with {num_cpus} CPUs"):
        for attempts_left in reversed(range(_STARTS)):
            before = psutil.Process().children(recursive=True)
            try:
                _start_once(num_cpus)
                break
            except Exception as error:  # of no class of its own
                if not attempts_left or "timed out during startup" not in str(error):
                    raise
                logger.info("Ray did not start in time on this busy machine; trying again")
                for child in set(psutil.Process().children(recursive=True)).difference(before):
                    with suppress(psutil.Error):
                        child.kill()
    atexit.register(_end_watchers)  # runs before Ray's own exit handler


def _protect() -> None:
    """Give a private cluster a token of its own, unless the user chose a mode.

    Its ports listen on all interfaces, and whoever reaches them can run code. The token is only in the environment of
    its processes; without one, Ray would write a file.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue] compiled, has no stub

        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(16)
        Config.initialize("")  # reads the mode, which it did before if Ray was already imported


def _start_once(num_cpus: int) -> None:
    """Start a private cluster, which ends with this process.

    SIGTERM stays blocked in its processes. `timeout`, Slurm and systemd send it to all processes of a job, and a
    training needs Ray for its last checkpoint. Ray's processes also get the address of their own cluster: some look
    for one by themselves, and fail on a machine with several. It has no dashboard, and they are told so: Ray Train's
    cleaner of placement groups would wait for one, and the end of a short training for the cleaner.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    inherited = {
        "RAY_GCS_SERVER_PORT": port,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": NO_DASHBOARD,
    }
    os.environ.update(inherited)
    try:
        _init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    finally:
        for name in inherited:
            del os.environ[name]


def _end_watchers() -> None:
    """End the processes of a private cluster that nobody needs at its end.

    With SIGTERM blocked, Ray waits a second for each before it kills it.
    """
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(word.endswith(("/monitor.py", "/dashboard.py")) for word in child.cmdline()):
                child.kill()


def _advice(error: Exception) -> str:
    """Return what to do about a private cluster that can't start."""
    if isinstance(error, PermissionError):
        return "Ray's folder belongs to another user; set RAY_TMPDIR to a folder of yours with a short path"
    return (
        "check RAY_TMPDIR, run the same command again when the machine is less busy, or set RAY_ADDRESS to a running "
        "cluster"
    )


@contextmanager
def _held_sigterm() -> Iterator[None]:
    """Block SIGTERM, also in processes started meanwhile, and keep its handler; a signal in between comes at the end.

    Ray installs a handler of its own, which crashes a driver inside Ray's calls.
    """
    is_main = threading.current_thread() is threading.main_thread()
    ours = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        if is_main and ours is not None:
            signal.signal(signal.SIGTERM, ours)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _probe(address: str) -> None:
    """Fail at once if nothing listens at the address; Ray itself would try for minutes."""
    if address.startswith(("http://", "https://", "ray://")):
        raise ClusterError(
            f"RAY_ADDRESS = {address} is the address of a dashboard or of Ray Client; submit the command with `ray job "
            "submit --address ...`, set HOST:6379 of a head node on a machine of the cluster, or unset RAY_ADDRESS for "
            "a private cluster"
        )
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        return  # `auto` or another form that Ray resolves by itself
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS = {address} ({error.strerror or error}); "
            "start one with `ray start --head`, fix the address, or unset it for a private cluster"
        ) from None


def task_options(cluster: PoolConfig, num_units: int) -> tuple[dict[str, Any], float]:
    """Build arguments of `Dataset.map_batches` for one task per unit; also return the number of CPUs needed."""
    from ray.data import TaskPoolStrategy

    most = None if isinstance(cluster.num_workers, str) else min(cluster.num_workers, num_units)
    options: dict[str, Any] = {"compute": TaskPoolStrategy(size=most), "num_cpus": cluster.cpus_per_worker}
    return options | _memory(cluster), cluster.cpus_per_worker * (most or 1)


def actor_options(cluster: ActorPoolConfig, num_units: int) -> tuple[dict[str, Any], float]:
    """Build the same for actors, which hold a model; on a cluster that is too small, the pool starts smaller."""
    from ray.data import ActorPoolStrategy

    is_auto = isinstance(cluster.num_workers, str)
    most = num_units if isinstance(cluster.num_workers, str) else min(cluster.num_workers, num_units)
    wanted = max(os.cpu_count() or 1, cluster.cpus_per_worker) if is_auto else most * cluster.cpus_per_worker
    connect(min_cpus=wanted + 1)  # one more for Ray Data's own small tasks, which would wait forever
    fits = min(most, _num_fitting(cluster))
    options: dict[str, Any] = {
        "compute": ActorPoolStrategy(size=most) if fits == most else ActorPoolStrategy(min_size=fits, max_size=most),
        "num_cpus": cluster.cpus_per_worker,
    }
    if cluster.gpus_per_worker:
        options["num_gpus"] = cluster.gpus_per_worker
    return options | _memory(cluster), fits * cluster.cpus_per_worker + 1


def _num_fitting(cluster: ActorPoolConfig) -> int:
    """Count the actors that fit on the current cluster beside a small task; at least one."""
    import ray

    there, gpus = ray.cluster_resources(), cluster.gpus_per_worker
    fitting = [(there.get("CPU", 0) - 1) / cluster.cpus_per_worker]
    fitting += [there.get("GPU", 0) / gpus] if gpus else []
    fitting += [there.get("memory", 0) / (cluster.memory_gb * _GIB)] if cluster.memory_gb else []
    return max(1, int(min(fitting)))


def _memory(cluster: PoolConfig) -> dict[str, Any]:
    return {"memory": int(cluster.memory_gb * _GIB)} if cluster.memory_gb else {}


def _quiet() -> None:
    """Send Ray Data's progress and warnings to its log file only; we log progress ourselves."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars are off
