"""Places by URI: a local path or `s3://bucket/key` (any fsspec scheme), read and written the same way.

Every write is atomic: locally through a temporary file and a rename, on object stores by one PUT or a multipart
upload. Nobody ever sees half a file under its final name. What an object store refuses for a moment is tried again.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from evilm.errors import ConfigError, ShardError, StorageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
_ATTEMPTS = 7
"""Attempts of an operation, over those that botocore and s3fs make by themselves within each."""
_S3_ATTEMPTS = 4
"""Of a request, by botocore."""
_PATIENCE_S = 300.0
"""No further attempt after this long."""
_LONGEST_PAUSE_S = 20.0
_S3_SCHEMES = ("s3", "s3a")
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors that say what is there; all others say that the place can't be used."""
_PASSING = {errno.EREMOTEIO, errno.EBUSY, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ENETUNREACH}
"""500, 503 and 409 as s3fs translates them, and what networks do."""
_NAMELESS = "/proc/self/fd/"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
_TEMPORARY = "evilm-"


def resolve(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path inside it. Credentials come from the standard AWS variables."""
    options = {}
    if uri.partition("://")[0] in _S3_SCHEMES:
        retries = {"max_attempts": _S3_ATTEMPTS, "mode": "standard"}
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options = {"config_kwargs": {"retries": retries, **timeouts}}
    try:
        fs, path = fsspec.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{uri!r} is no place we can reach ({error}); give a local path or s3://bucket/key") from None
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Return whether `uri` lies on this machine's file system."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """`uri` so that it means the same in every process: local paths made absolute, others as they are."""
    fs, path = resolve(uri)
    return path if isinstance(fs, LocalFileSystem) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts behind it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        return bool(fs.exists(path))
    is_bucket = "/" not in path.strip("/")  # of which s3fs says "no" also when it could not ask
    return any(with_retries(uri, lambda: bool(fs.exists(path))) for _ in range(3 if is_bucket else 1))


def list_names(uri: str) -> list[str]:
    """Sorted names directly in a folder; empty where there is no such folder."""
    fs, path = resolve(uri)

    def names() -> list[str]:
        fs.invalidate_cache()
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))

    try:
        return with_retries(uri, names)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_bytes(uri: str) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the place can't be read, after retries.
    """
    fs, path = resolve(uri)
    return with_retries(uri, lambda: fs.cat_file(path))


def read_tail(uri: str, num_bytes: int) -> bytes:
    """The last bytes of a file, by one request; raises as `read_bytes`."""
    fs, path = resolve(uri)
    return with_retries(uri, lambda: fs.cat_file(path, start=-num_bytes))


def get_file(uri: str, local: str) -> None:
    """Copy a file to a local path, without holding it in memory; raises as `read_bytes`."""
    fs, path = resolve(uri)
    with_retries(uri, lambda: fs.get_file(path, local))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically, folders included; an existing one is replaced.

    Raises:
        StorageError: the place can't be written, after retries.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        if isinstance(fs, LocalFileSystem):
            os.replace(_write_temporary(path, data), path)
        else:
            with_retries(uri, lambda: fs.pipe_file(path, data))


def put_file(local: str, uri: str) -> None:
    """Move a finished local file to `uri`, where it appears whole or not at all; an existing one is replaced.

    Raises:
        StorageError: the place can't be written, after retries.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        if not isinstance(fs, LocalFileSystem):
            with_retries(uri, lambda: fs.put_file(local, path))
            Path(local).unlink()
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if os.stat(local).st_dev == os.stat(os.path.dirname(path) or ".").st_dev:
            _sync(local)
            _move(local, path)
            return
        beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            shutil.copyfile(local, beside)
            _sync(beside)
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
        Path(local).unlink()


def _move(local: str, path: str) -> None:
    """Give a file of the same file system its final name, in place of what has it."""
    if not local.startswith(_NAMELESS):
        os.replace(local, path)
        return
    beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        _link_nameless(local, path)
        return
    except FileExistsError:
        _link_nameless(local, beside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(local, beside)
        _sync(beside)
    os.replace(beside, path)


def _link_nameless(local: str, path: str) -> None:
    folder = os.open("/", os.O_PATH)  # makes Python call linkat, which alone follows the link of /proc
    try:
        os.link(local, path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def abort_uploads(uri: str) -> None:
    """Abort multipart uploads below a place that were begun and not ended, as by processes that were killed."""
    fs, path = resolve(uri)
    if not hasattr(fs, "list_multipart_uploads"):
        return
    bucket, _, prefix = path.partition("/")
    for upload in with_retries(uri, lambda: fs.list_multipart_uploads(bucket)):
        if upload["Key"].startswith(f"{prefix}/"):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only where none is: the commit record of every unit of work.

    Returns:
        Whether `uri` now holds `data`. So a PUT that is repeated because the answer to it was lost has succeeded too.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        if not isinstance(fs, LocalFileSystem):
            try:
                with_retries(uri, lambda: fs.pipe_file(path, data, mode="create"))
            except FileExistsError:
                return read_bytes(uri) == data
            return True
        try:
            if _link_data(path, data):
                return True
            place = _write_temporary(path, data)
            try:
                _link(place, path)
            finally:
                Path(place).unlink(missing_ok=True)
        except FileExistsError:
            return read_bytes(uri) == data
    return True


def _link_data(path: str, data: bytes) -> bool:
    """Name a file once it is written, so that a process that is killed leaves none; False where the system can't."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with _nameless(os.path.dirname(path) or ".") as place:
        if not place:
            return False
        with open(place, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            _link_nameless(place, path)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
    return True


def _link(place: str, path: str) -> None:
    """Give a file a second name, or a new one, in one piece; fails where the name is taken, unlike a rename.

    exFAT and FAT, some network shares and mounted buckets have no links: there the kernel's rename that replaces
    nothing does it, or else a file that only one process can create.
    """
    try:
        os.link(place, path)
        return
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if not libc.renameat2(_AT_FDCWD, os.fsencode(place), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
            return
        if ctypes.get_errno() == errno.EEXIST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with open(place, "rb") as source, open(path, "xb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())


@contextmanager
def temporary(uri: str) -> Iterator[str]:
    """A local path to write what `put_file` then publishes at or beside `uri`; nothing is left there after the block.

    It lies on the file system of a local `uri`, so that publishing copies nothing, else in the system's temporary
    folder, where files of processes that were killed are removed first. Where the system can, it has no name there, and
    is gone with this process, however it ends.
    """
    fs, path = resolve(uri)
    with storage_errors(uri), contextlib.ExitStack() as stack:
        if isinstance(fs, LocalFileSystem):
            folder = os.path.dirname(path) or "."
            os.makedirs(folder, exist_ok=True)
            place = stack.enter_context(_nameless(folder)) or f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        else:
            _sweep()
            place = stack.enter_context(_locked_file())
        if not place.startswith(_NAMELESS):
            stack.callback(Path(place).unlink, missing_ok=True)
        stack_of_block = stack.pop_all()
    with stack_of_block:
        yield place


@contextmanager
def temporary_folder() -> Iterator[str]:
    """An empty folder in the system's temporary folder; one that a killed process left is removed by the next."""
    _sweep()
    folder = tempfile.mkdtemp(prefix=_TEMPORARY, suffix=".tmp")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local path to read a file from: its own where it is local, else of a copy which lasts as long as the block.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it can't be read, after retries.
    """
    if is_local(uri):
        path = absolute(uri)
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        yield path
        return
    with temporary(uri) as path:
        get_file(uri, path)
        yield path


@contextmanager
def _nameless(folder: str) -> Iterator[str]:
    """The path of an open file of a folder's file system that has no name; '' where the system knows no such files."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        yield ""
        return
    try:
        place = f"{_NAMELESS}{descriptor}"
        yield place if os.path.exists(place) else ""
    finally:
        os.close(descriptor)


@contextmanager
def _locked_file() -> Iterator[str]:
    """An empty file in the temporary folder, locked for as long as this process lives, at most."""
    while True:
        descriptor, path = tempfile.mkstemp(prefix=_TEMPORARY, suffix=".tmp")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.exists(path):  # else another process swept it away before it was locked
                yield path
                return
        finally:
            os.close(descriptor)


def _sweep() -> None:
    """Remove temporary files that nobody holds locked: their processes are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*.tmp"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, not ours, or just removed
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_temporary(path: str, data: bytes) -> str:
    """`data` in a synced file beside `path`, on the same file system so that a rename is atomic."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    place = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(place, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(place).unlink(missing_ok=True)
        raise
    return place


def _sync(path: str) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


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

    def remove() -> None:
        fs.invalidate_cache()
        if fs.exists(path):
            with contextlib.suppress(FileNotFoundError):  # somebody else did, or an answer was lost
                fs.rm(path, recursive=True)

    with storage_errors(uri):
        with_retries(uri, remove)


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local copy of the folder `uri` to read from: itself where it is local, else a temporary download."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    folder = tempfile.mkdtemp(prefix=_TEMPORARY)
    try:
        with_retries(uri, lambda: fs.get(path.rstrip("/") + "/", folder + "/", recursive=True))
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def publish_folder(uri: str) -> Iterator[Path]:
    """A local folder to write into; when the block ends well, its files appear at `uri`, each one atomically."""
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        yield folder
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def with_retries(uri: str, operation: Callable[[], T]) -> T:
    """Return what `operation` at `uri` returns, tried again with growing pauses while an object store fails in passing.

    Raises:
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as `operation` says.
        StorageError: it failed for good, or for too long.
    """
    local, began = is_local(uri), time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return operation()
        except _ANSWERS:
            raise
        except Exception as error:  # s3fs lets errors of botocore and aiohttp through, which have no common base
            if local and isinstance(error, OSError):
                raise StorageError(as_storage_error(uri, error)) from error
            if not (isinstance(error, OSError) or _is_of_network(error)):
                raise
            spent = time.monotonic() - began
            if not _may_pass(error) or attempt == _ATTEMPTS or spent > _PATIENCE_S:
                raise StorageError(as_storage_error(uri, error, attempt)) from error
            pause = random.uniform(0.5, 1) * min(_LONGEST_PAUSE_S, 0.5 * 2**attempt)
            logger.warning("%s: %s; trying again in %.1f s", uri, _message(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Makes what the system says of a write to `uri`, or on the way there, a `StorageError` of one line."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(as_storage_error(uri, error)) from error


def as_storage_error(uri: str, error: Exception, attempts: int = 1) -> str:
    """Return why a place can't be used, in one line that says what to do."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {uri}; free some, or choose another place (temporary files go to TMPDIR)"
    if code == errno.EROFS or isinstance(error, PermissionError):
        return f"may not use {uri} ({_message(error)}); check its rights, or the AWS credentials"
    often = f" after {attempts} attempts" if attempts > 1 else ""
    advice = "check that the place is there and can be used" if is_local(uri) else "check endpoint and credentials"
    return f"cannot use {uri}{often}: {_message(error)}; {advice}"


def _message(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error).strip()
    return " ".join(text.split())[:300] or type(error).__name__


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "urllib3")


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and not _is_of_network(error):
        return error.errno in _PASSING
    return "Credentials" not in type(error).__name__ and "Validation" not in type(error).__name__
