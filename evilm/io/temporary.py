"""Temporary files and folders. They are locked while in use, so those of processes that were killed can be removed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PREFIX = "evilm-"


@contextmanager
def temporary_file(beside: str = "", sweep: bool = True) -> Iterator[str]:
    """An empty file for as long as the block lasts, unless the block gives it another name.

    Args:
        beside: the local path that the file is to become; it lies in the same folder. '' for one of the system's
            temporary folder, which only this user can read.
        sweep: remove such files that killed processes left.
    """
    with _held(f"{beside}." if beside else "", False, sweep) as path:
        yield path


@contextmanager
def temporary_folder() -> Iterator[str]:
    """An empty folder in the system's temporary folder for as long as the block lasts."""
    with _held("", True, True) as path:
        yield path


def nameless_file() -> tuple[IO[bytes], str]:
    """Return a temporary file, and the path under which processes of this user open it until it is closed.

    On Linux it has no name in any folder: nothing is left of it however this process ends.
    """
    if os.path.isdir("/proc/self/fd"):
        file: IO[bytes] = tempfile.TemporaryFile(prefix=PREFIX)  # noqa: SIM115
        return file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
    named = tempfile.NamedTemporaryFile(prefix=PREFIX)  # noqa: SIM115
    return named, named.name


@contextmanager
def _held(stem: str, is_folder: bool, sweep: bool) -> Iterator[str]:
    """A new file or folder whose path begins with `stem`, locked until the block ends."""
    place = Path(stem or os.path.join(tempfile.gettempdir(), PREFIX))
    if sweep:
        for left in place.parent.glob(f"{place.name}*.tmp"):
            _sweep(left)
    while True:
        path = Path(f"{place}{uuid.uuid4().hex[:8]}.tmp")
        path.mkdir(0o700) if is_folder else path.touch(0o666 if stem else 0o600, exist_ok=False)
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # else another process swept it away before it was locked
            break
        os.close(descriptor)
    try:
        yield str(path)
    finally:
        os.close(descriptor)
        _remove(path)


def _sweep(path: Path) -> None:
    """Remove a file or folder that nobody holds locked: its process is gone."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, not ours, or just removed
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
