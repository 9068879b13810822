"""Places by URI: a local path or `s3://bucket/key` (any fsspec scheme), read and written the same way.

Every write is atomic: locally through a temporary file and a rename, on object stores by one PUT. Nobody ever
sees half a file under its final name.
"""

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from evilm.errors import ConfigError, ShardError

logger = logging.getLogger(__name__)


def resolve(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path inside it. Credentials come from the standard AWS variables."""
    try:
        fs, path = fsspec.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{uri!r} is no place we can reach ({error}); give a local path or s3://bucket/key") from None
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Whether `uri` lies on this machine's file system."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """`uri` so that it means the same in every process: local paths made absolute, others as they are."""
    fs, path = resolve(uri)
    return path if isinstance(fs, LocalFileSystem) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts behind it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = resolve(uri)
    return bool(fs.exists(path))


def list_names(uri: str) -> list[str]:
    """Sorted names directly in a folder; empty where there is no such folder."""
    fs, path = resolve(uri)
    fs.invalidate_cache()
    try:
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_bytes(uri: str) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = resolve(uri)
    return fs.cat_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically, folders included; an existing one is replaced."""
    fs, path = resolve(uri)
    try:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        temporary = _write_temporary(path, data)
        os.replace(temporary, path)
    except OSError as error:
        raise ShardError(
            f"cannot write {uri}: {error.strerror or error}; free space or choose another place"
        ) from error


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only where none is; True if this call made it. The commit record of every unit of work."""
    fs, path = resolve(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)  # atomic, and fails where the name is taken, unlike a rename
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _write_temporary(path: str, data: bytes) -> str:
    """`data` in a synced file beside `path`, on the same file system so that a rename is atomic."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def read_json(uri: str) -> Any:
    """A JSON file's content.

    Raises:
        FileNotFoundError: there is no such file.
        ShardError: the file is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise ShardError(f"{uri} is not valid JSON ({error}); it was damaged or is another kind of file") from None


def write_json(uri: str, data: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal data give equal bytes."""
    write_bytes(uri, (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def delete(uri: str) -> None:
    """Remove a file or folder tree; nothing happens where there is none."""
    fs, path = resolve(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local copy of the folder `uri` to read from: itself where it is local, else a temporary download."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    folder = tempfile.mkdtemp(prefix="evilm-")
    try:
        fs.get(path.rstrip("/") + "/", folder + "/", recursive=True)
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def publish_folder(uri: str) -> Iterator[Path]:
    """A local folder to write into; when the block ends well, its files appear at `uri`, each one atomically."""
    folder = Path(tempfile.mkdtemp(prefix="evilm-"))
    try:
        yield folder
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
