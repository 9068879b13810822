"""Files that every process of a machine needs: made or fetched by the first that asks, kept for all.

They are in `evilm-cache-<user id>` of the system's temporary folder (TMPDIR). A name stands for one content, so a file
is never out of date. The least recently used ones are removed where all together are too large.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from evilm.errors import StorageError
from evilm.io.storage import storage_errors

MAX_BYTES = 32 * 2**30


def cached(name: str, make: Callable[[str], None], max_bytes: int = MAX_BYTES) -> str:
    """Return the local path of a file, after making it where this machine does not have it yet.

    Args:
        name: of the file; equal names have equal content.
        make: writes the file to the path that it is called with. Other processes that ask wait for it.
        max_bytes: older files are removed until all together are no larger.

    Raises:
        StorageError: the cache can't be used.
    """
    folder = _folder()
    path = folder / name
    with storage_errors(str(folder)), open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            path.touch()
            return str(path)
        begun = folder / f"{name}.tmp"  # under the lock nobody else writes it; a killed process leaves at most this one
        try:
            make(str(begun))
            os.replace(begun, path)
        finally:
            begun.unlink(missing_ok=True)
        _trim(folder, path, max_bytes)
    return str(path)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"evilm-cache-{os.getuid()}"
    with storage_errors(str(folder)):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise StorageError(f"{folder} belongs to another user; remove it, or set TMPDIR to a folder of your own")
    return folder


def _trim(folder: Path, kept: Path, max_bytes: int) -> None:
    """Remove the least recently used files. A process that has one of them mapped keeps it until it ends."""
    files = [file for file in folder.iterdir() if file.suffix not in (".lock", ".tmp")]
    entries = sorted(((file, file.stat()) for file in files), key=lambda entry: entry[1].st_mtime)
    total = sum(stat.st_size for _, stat in entries)
    for file, stat in entries:
        if total <= max_bytes:
            return
        if file != kept:
            file.unlink(missing_ok=True)
            total -= stat.st_size
