"""Files by URI: a local path or `s3://bucket/key` (any fsspec scheme), read and written the same way.

Every write is atomic: locally through a temporary file and a rename, on object stores by one PUT or a multipart
upload. Nobody ever sees half a file under its final name. What storage refuses for a moment is tried again.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from evilm.errors import ConfigError, ShardError, StorageError
from evilm.io.retries import storage_errors, with_retries
from evilm.io.temporary import link_new, remove_file, replace, sync, synced_file, temporary_file, temporary_folder

logger = logging.getLogger(__name__)

_CONNECT_S, _READ_S = 10, 60
_S3_ATTEMPTS = 4
"""Of a request, by botocore; over these, `with_retries` tries the whole operation again."""
_S3_SCHEMES = ("s3", "s3a")


def resolve(
    uri: str, connect_s: float = _CONNECT_S, read_s: float = _READ_S, attempts: int = 0, **options: Any
) -> tuple[Any, str]:
    """Find the fsspec file system of `uri` and the path inside it. Credentials come from the standard AWS variables.

    Args:
        uri: a local path, or a URL of any scheme that fsspec knows.
        connect_s: longest wait for a connection to S3.
        read_s: longest wait for the next bytes from S3.
        attempts: of a request to S3; 0 for some by botocore.
        options: of the file system of S3.
    """
    if uri.partition("://")[0] in _S3_SCHEMES:
        retries = {"total_max_attempts": attempts} if attempts else {"max_attempts": _S3_ATTEMPTS, "mode": "standard"}
        options["config_kwargs"] = {"retries": retries, "connect_timeout": connect_s, "read_timeout": read_s}
    else:
        options = {}
    try:
        fs, path = fsspec.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {uri!r} ({error}); give a local path or s3://bucket/key") from None
    if attempts and options:
        fs.retries = attempts
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Return whether `uri` lies on this machine's file system."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """Return `uri` so that it means the same in every process: local paths made absolute, others as they are."""
    fs, path = resolve(uri)
    return path if isinstance(fs, LocalFileSystem) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Append path parts to `uri`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        return bool(fs.exists(path))
    is_bucket = "/" not in path.strip("/")  # of which s3fs says "no" also when it could not ask
    return any(with_retries(uri, lambda: bool(fs.exists(path))) for _ in range(3 if is_bucket else 1))


def list_names(uri: str) -> list[str]:
    """List the names directly in a folder, sorted; none where there is no such folder."""
    fs, path = resolve(uri)

    def names() -> list[str]:
        fs.invalidate_cache()
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))

    try:
        return with_retries(uri, names)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_bytes(uri: str, last: int = 0) -> bytes:
    """Read a whole file, or only its `last` bytes, by one request.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read, after retries.
    """
    fs, path = resolve(uri)
    return with_retries(uri, lambda: fs.cat_file(path, start=-last or None))


def open_file(uri: str, block_bytes: int) -> IO[bytes]:
    """Open a file for sequential reading, in blocks of `block_bytes` from an object store; raises as `read_bytes`."""
    fs, path = resolve(uri)
    return with_retries(uri, lambda: fs.open(path, "rb", block_size=block_bytes))


def get_file(uri: str, local: str) -> None:
    """Copy a file to a local path, without holding it in memory; raises as `read_bytes`."""
    fs, path = resolve(uri)
    with_retries(uri, lambda: fs.get_file(path, local))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically, folders included; an existing one is replaced.

    Raises:
        StorageError: it cannot be written, after retries.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        if not isinstance(fs, LocalFileSystem):
            with_retries(uri, lambda: fs.pipe_file(path, data))
            return
        with synced_file(path, data) as written:
            replace(written, path)


def put_file(local: str, uri: str) -> None:
    """Move a finished local file to `uri`, where it appears whole or not at all; an existing one is replaced.

    Raises:
        StorageError: it cannot be written, after retries.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        if not isinstance(fs, LocalFileSystem):
            with_retries(uri, lambda: fs.put_file(local, path))
            remove_file(local)
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if os.stat(local).st_dev == os.stat(os.path.dirname(path) or ".").st_dev:
            sync(local)
            replace(local, path)
            return
        with temporary_file(path) as copy:
            shutil.copyfile(local, copy)
            sync(copy)
            replace(copy, path)
        remove_file(local)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only where none is: the commit record of every unit of work.

    Returns:
        Whether `uri` now holds `data`. So a PUT that is repeated because the answer to it was lost has succeeded too.
    """
    fs, path = resolve(uri)
    with storage_errors(uri):
        try:
            if not isinstance(fs, LocalFileSystem):
                with_retries(uri, lambda: fs.pipe_file(path, data, mode="create"))
            else:
                with synced_file(path, data) as written:
                    link_new(written, path)
        except FileExistsError:
            return read_bytes(uri) == data
    return True


def abort_uploads(uri: str) -> None:
    """Abort the multipart uploads below a folder that were not ended, as by processes that were killed.

    Without the rights for it they stay, with a warning.
    """
    fs, path = resolve(uri)
    if not hasattr(fs, "call_s3"):
        return
    bucket, _, prefix = path.partition("/")
    try:
        for upload in with_retries(uri, lambda: _open_uploads(fs, bucket, f"{prefix}/")):
            place = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with contextlib.suppress(FileNotFoundError):  # another run, or a lifecycle rule, was faster
                with_retries(uri, partial(fs.call_s3, "abort_multipart_upload", **place))
    except StorageError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        logger.warning(
            "unfinished uploads below %s can't be ended; grant s3:ListBucketMultipartUploads and "
            "s3:AbortMultipartUpload, or let a lifecycle rule of the bucket end them",
            uri,
        )


def _open_uploads(fs: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    """List the unfinished multipart uploads below a prefix, page by page."""
    found, more = list[dict[str, Any]](), {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
        found += page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return found
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


@contextmanager
def temporary(uri: str) -> Iterator[str]:
    """Give a local path to write what `put_file` then publishes at `uri`; remove it after the block.

    It is on the file system of a local `uri`, so that publishing copies nothing, else in the system's temporary folder.
    Where the system can, it has no name, and is gone with this process; what others left is removed by the next one.
    """
    fs, path = resolve(uri)
    with contextlib.ExitStack() as stack:
        with storage_errors(uri):
            if isinstance(fs, LocalFileSystem):
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            local = stack.enter_context(temporary_file(path if isinstance(fs, LocalFileSystem) else ""))
        yield local


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Give a local path to read a file from: its own if it is local, else of a copy for the block.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be read, after retries.
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
def local_folder(uri: str) -> Iterator[Path]:
    """Give a local copy of the folder `uri`: itself if it is local, else a temporary download."""
    fs, path = resolve(uri)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with temporary_folder() as folder:
        with_retries(uri, lambda: fs.get(path.rstrip("/") + "/", folder + "/", recursive=True))
        yield Path(folder)


def read_json(uri: str) -> Any:
    """Read a JSON file.

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
