"""Two drivers on one output folder, each a forked process that stops itself before an operation of the storage."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from evilm.errors import ConfigError, OwnershipError
from evilm.io import ownership, storage

_OPERATIONS = ("list_names", "read_bytes", "write_bytes", "put_file", "put_if_absent", "delete", "exists", "get_file")
_HEARTBEAT_S = 0.1


def start(command: Callable[[], Any], stop_at: int) -> int:
    """Start a driver, which stops before its operation `stop_at` (0: never); its process id, once stopped or ended."""
    pid = os.fork()
    if not pid:
        try:
            _drive(command, stop_at)
        finally:
            os._exit(1)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return pid


def finish(pid: int) -> int:
    """Let a driver go on to its end; its exit code: 0, or 3 if it gave up."""
    os.kill(pid, signal.SIGCONT)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)


def _drive(command: Callable[[], Any], stop_at: int) -> None:
    ownership._HEARTBEAT_S, ownership.STALE_S = _HEARTBEAT_S, 6 * _HEARTBEAT_S
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            if threading.current_thread().name != "heartbeat":
                count += 1
                if count == stop_at:
                    os.kill(os.getpid(), signal.SIGSTOP)
            return operation(*args, **options)

        return call

    for name in _OPERATIONS:
        setattr(storage, name, counted(getattr(storage, name)))
    try:
        command()
    except (OwnershipError, ConfigError, RuntimeError) as error:
        print(error)
        os._exit(3)
    os._exit(0)
