"""Temporary files and folders, and how a finished file gets its name.

They are locked while in use, so that those of processes that were killed can be removed.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO

PREFIX = "evilm-"
_NAMELESS = "/proc/self/fd/"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


@contextmanager
def temporary_file(beside: str = "", sweep: bool = True) -> Iterator[str]:
    """Create an empty file for as long as the block lasts, unless `replace` or `link_new` gives it a name.

    Where the file system can, it has no name, and is gone with this process however it ends.

    Args:
        beside: the local path that the file is to become; it is on the same file system. '' for one of the system's
            temporary folder, which only this user can read.
        sweep: remove such files that killed processes left.
    """
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_nameless_beside(beside or os.path.join(tempfile.gettempdir(), PREFIX)))
        yield path or stack.enter_context(_held(f"{beside}." if beside else "", False, sweep))


@contextmanager
def _nameless_beside(path: str) -> Iterator[str]:
    """Give the path of an open nameless file on the file system of `path`; '' if that has no such files."""
    try:
        descriptor = os.open(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        yield ""
        return
    try:
        place = f"{_NAMELESS}{descriptor}"
        yield place if os.path.exists(place) else ""
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Make an empty folder in the system's temporary folder, and remove it with the block, or with a killed process."""
    with _held("", True, True) as path:
        # A shell removes it at the end of its input, which comes with the end of this process, even by SIGKILL. It
        # ignores the signals that end a job, since this process may need the folder for a last checkpoint.
        remove = ["sh", "-c", 'trap "" HUP INT TERM; cat; rm -rf -- "$0"', path]
        with subprocess.Popen(remove, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True) as shell:
            try:
                yield path
            finally:
                shell.kill()


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
def synced_file(path: str, data: bytes) -> Iterator[str]:
    """Write a synced file of `data` beside `path`, on the same file system so that a rename is atomic."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with temporary_file(path, sweep=False) as written:
        Path(written).write_bytes(data)
        sync(written)
        yield written


def replace(written: str, path: str) -> None:
    """Give a file of `temporary_file` its name, in place of the file that has it."""
    if not written.startswith(_NAMELESS):
        os.replace(written, path)
        return
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        _link(written, path)
        return
    except FileExistsError:
        _link(written, beside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(written, beside)
        sync(beside)
    os.replace(beside, path)


def remove_file(written: str) -> None:
    """Remove a file that was copied to its place; one without a name ends with the block that made it."""
    if not written.startswith(_NAMELESS):
        os.unlink(written)


def _link(written: str, path: str) -> None:
    if not written.startswith(_NAMELESS):
        os.link(written, path)
        return
    folder = os.open("/", os.O_PATH)  # makes Python call linkat, which alone follows the link of /proc
    try:
        os.link(written, path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def link_new(written: str, path: str) -> None:
    """Give a file a second name, or a new one, in one piece; fails where the name is taken, unlike a rename.

    exFAT and FAT, some network shares and mounted buckets have no links: there the kernel's rename that replaces
    nothing does it, or else a file that only one process can create.
    """
    try:
        _link(written, path)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2") and not written.startswith(_NAMELESS):
        if not libc.renameat2(_AT_FDCWD, os.fsencode(written), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
            return
        if ctypes.get_errno() == errno.EEXIST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with open(written, "rb") as source, open(path, "xb") as target:
        shutil.copyfileobj(source, target)
    sync(path)


def sync(path: str) -> None:
    """Wait until a file is on its disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _held(stem: str, is_folder: bool, sweep: bool) -> Iterator[str]:
    """Create a file or folder whose path begins with `stem`, locked until the block ends."""
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
