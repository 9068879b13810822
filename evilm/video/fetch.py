"""Fetch the videos of a manifest as local files, from a folder, an object store, a tar in either, or a URL.

Nothing outside of the video root is read: no absolute path, no '..', no link that leaves it, no other bucket. Tars that
the user names as manifests may be links to elsewhere, as in download caches.
"""

import contextlib
import functools
import os
import re
import tarfile
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from evilm.config.data import VIDEO_ENDINGS, FetchConfig
from evilm.config.secrets import public_uri
from evilm.errors import DecodeError, ShardError
from evilm.io import storage
from evilm.io.retries import TransientError, retry
from evilm.io.temporary import nameless_file
from evilm.video.download import download, transient
from evilm.video.local_files import LocalRoot, forms, has_ending, rank, stem
from evilm.video.reasons import RejectReason
from evilm.video.store_answers import judge
from evilm.video.urls import is_url

_TAR = re.compile(r"\.tar/", re.IGNORECASE)
_PIECE_BYTES = 1 << 23
_HEADER_BYTES, _HEADER_NAME_BYTES = 512, 100


@dataclass(frozen=True, slots=True)
class Local:
    """A local video file that exists until the end of the block."""

    path: str
    """Local file: the video itself, or a temporary copy."""
    uri: str
    """Its source: the path below the root with ending, the tar and member, or the URL without secrets."""
    num_bytes: int


class Fetcher:
    """Fetches videos of one root and of URLs. Thread-safe; create one per process.

    `videos` is the root, a local folder or `s3://bucket/key`; '' if all videos are URLs.
    """

    def __init__(self, videos: str, config: FetchConfig) -> None:
        self._config = config
        self._slots = threading.BoundedSemaphore(config.concurrency)
        self._fs, self._root = None, ""
        if videos:  # no retries by the libraries, so that attempts are counted once
            wait_s = config.timeout_s
            self._fs, root = storage.resolve(videos, wait_s, wait_s, attempts=1, use_listings_cache=False)
            self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._local = LocalRoot(self._root, config.follow_links)

    @contextmanager
    def fetch(
        self, path: str, needs_ending: bool = False, offset: int = -1, num_bytes: int = -1, url: str = ""
    ) -> Iterator[Local]:
        """Fetch a video as a local file, which exists until the end of the block.

        Args:
            path: path below the root, or an http(s) URL.
            needs_ending: True if `path` lacks the file's ending.
            offset: start of the video in its tar; -1 if it is a separate file.
            num_bytes: its size in the tar.
            url: URL to download if there is no file at `path`.

        Raises:
            DecodeError: the video can't be fetched, with the reason.
            ConfigError: there is no such bucket.
            AccessError: the root is not available any more, or there are no credentials.
            ShardError: there is no space for temporary files.
        """
        with contextlib.ExitStack() as stack:
            try:
                local = self._named(path, needs_ending, offset, num_bytes, stack)
            except DecodeError as error:
                if error.reason != RejectReason.MISSING_FILE or not url:
                    raise
                local = self._download(url, stack)
            yield local

    def is_missing(self, path: str, needs_ending: bool = False, offset: int = -1, url: str = "") -> bool:
        """Check if the video is missing, as far as the local root shows; nothing else is accessed.

        Raises:
            AccessError: the root is not available any more.
        """
        if not self._is_local or offset >= 0 or url or is_url(path):
            return False
        try:
            _check(path)
            self._local.find(path, needs_ending or not has_ending(path))
        except DecodeError as error:
            return error.reason == RejectReason.MISSING_FILE
        return False

    def _named(self, path: str, needs_ending: bool, offset: int, num_bytes: int, stack: contextlib.ExitStack) -> Local:
        """Fetch the video of exactly this name; if no file has it and it lacks an ending, try the known endings."""
        try:
            return self._get(path, needs_ending, offset, num_bytes, stack)
        except DecodeError as error:
            may_lack_ending = not (needs_ending or has_ending(path) or is_url(path) or offset >= 0)
            is_none = error.reason in (RejectReason.MISSING_FILE, RejectReason.NOT_A_FILE)
            if not is_none or self._fs is None or not may_lack_ending:
                raise
            return self._get(path, True, offset, num_bytes, stack)

    def _get(self, path: str, needs_ending: bool, offset: int, num_bytes: int, stack: contextlib.ExitStack) -> Local:
        if is_url(path):
            return self._download(path, stack)
        if self._fs is None:
            raise DecodeError(RejectReason.MISSING_FILE, "a path below --videos, which is not given")
        _check(path)
        if offset >= 0:
            return self._from_tar(path, offset, num_bytes, stack)
        if self._is_local:
            found = self._local.find(path, needs_ending)
            return Local(f"{self._root}/{found}", found, os.path.getsize(f"{self._root}/{found}"))
        return self._remote(path, needs_ending, stack)

    def _from_tar(self, path: str, offset: int, num_bytes: int, stack: contextlib.ExitStack) -> Local:
        """Copy a member of a tar."""
        match = _TAR.search(path)
        assert match is not None, path
        name = path[: match.end() - 1]
        if num_bytes > self._config.max_mb << 20:
            raise DecodeError(
                RejectReason.TOO_LARGE, f"{num_bytes} bytes, more than fetch.max_mb = {self._config.max_mb}"
            )
        copy, name_of_copy = _temporary(stack)
        if self._is_local:
            self._local.check(f"{self._root}/{name}".rpartition("/")[0])
            if not self._local.is_file(name, may_lead_out=True):  # --manifest names it: in a cache it may be a link
                raise DecodeError(RejectReason.MISSING_FILE, "the tar does not exist")
            with open(f"{self._root}/{name}", "rb") as tar:
                tar.seek(max(0, offset - _HEADER_BYTES))
                _check_member(tar.read(min(offset, _HEADER_BYTES)), path[match.end() :], num_bytes)
                pieces = iter(lambda: tar.read(min(_PIECE_BYTES, num_bytes - copy.tell())), b"")
                _write_all(copy, pieces)
        else:
            assert self._fs is not None
            place, cat = f"{self._root}/{name}", self._fs.cat_file

            def pieces_of() -> Iterator[bytes]:
                for start in range(max(0, offset - _HEADER_BYTES), offset + num_bytes, _PIECE_BYTES):
                    end = min(start + _PIECE_BYTES, offset + num_bytes)
                    piece: bytes = self._retried(functools.partial(cat, place, start=start, end=end))
                    if start < offset:
                        _check_member(piece[:_HEADER_BYTES], path[match.end() :], num_bytes)
                        piece = piece[_HEADER_BYTES:]
                    yield piece

            with self._slots:
                _write_all(copy, pieces_of())
        if copy.tell() != num_bytes:
            raise DecodeError(RejectReason.FETCH_ERROR, f"its tar ends after {copy.tell()} of its {num_bytes} bytes")
        return Local(name_of_copy, path, num_bytes)

    def _remote(self, path: str, needs_ending: bool, stack: contextlib.ExitStack) -> Local:
        """Copy a file of an object store; try the usual ending before listing."""
        with self._slots:
            endings = ("",) if not needs_ending else ("", VIDEO_ENDINGS[0]) if has_ending(path) else VIDEO_ENDINGS[:1]
            for name in [form + ending for ending in endings for form in forms(path)]:
                if (local := self._copy(name, stack)) is not None:
                    return local
            if needs_ending and (name := self._find_remote(path)) and (local := self._copy(name, stack)) is not None:
                return local
        tried = f" + {VIDEO_ENDINGS[0]}, {VIDEO_ENDINGS[1]}, ..." if needs_ending else ""
        raise DecodeError(RejectReason.MISSING_FILE, f"no {path[:200]}{tried}")

    def _copy(self, path: str, stack: contextlib.ExitStack) -> Local | None:
        """Copy a file; None if there is none."""
        _, copy = _temporary(stack)
        assert self._fs is not None
        get, place, size = self._fs.get_file, f"{self._root}/{path}", _Size(self._config.max_mb)

        def attempt() -> int:
            get(place, copy, callback=size)
            received = os.path.getsize(copy)
            if size.promised is not None and received != size.promised:
                raise transient(RejectReason.FETCH_ERROR, f"received {received} of {size.promised} bytes")
            return received

        try:
            return Local(copy, path, self._retried(attempt))
        except DecodeError as error:
            if error.reason == RejectReason.MISSING_FILE:
                return None
            raise

    def _find_remote(self, path: str) -> str:
        """Find the path of a file with any known ending; '' if no file has one."""
        folder, _, last = path.rpartition("/")
        place, found = f"{self._root}/{folder}".rstrip("/"), []
        assert self._fs is not None
        for form in forms(last):
            listed: list[str] = self._retried(functools.partial(self._fs.find, place, prefix=f"{form}."), default=[])
            names = (name[len(place) + 1 :] for name in listed)
            found += [name for name in names if "/" not in name and rank(name) < len(VIDEO_ENDINGS)]
        wanted = unicodedata.normalize("NFC", last)
        matching = sorted((name for name in found if stem(name) == wanted), key=lambda name: (rank(name), name))
        return (f"{folder}/" if folder else "") + matching[0] if matching else ""

    def _download(self, url: str, stack: contextlib.ExitStack) -> Local:
        file, copy = _temporary(stack)
        with self._slots:
            return Local(copy, public_uri(url), download(url, file, self._config))

    def _retried(self, action: Callable[[], Any], default: Any = None) -> Any:
        """Run `action`, with retries of temporary failures; return `default` if the file does not exist."""

        def attempt() -> Any:
            try:
                return action()
            except (TransientError, DecodeError, ShardError):
                raise
            except Exception as error:  # s3fs raises errors of three libraries
                if isinstance(error, FileNotFoundError) and default is not None:
                    return default
                raise judge(error) from None

        return retry(attempt, self._config.retries + 1, self._config.deadline_s)


class _Size(Callback):
    """Receives the size of a file before its bytes."""

    def __init__(self, max_mb: int) -> None:
        super().__init__()
        self._max_mb = max_mb
        self.promised: int | None = None

    def set_size(self, size: int | None) -> None:
        self.promised = size
        if size is not None and size > self._max_mb << 20:
            raise DecodeError(RejectReason.TOO_LARGE, f"{size} bytes, more than fetch.max_mb = {self._max_mb}")


def _check_member(header: bytes, member: str, num_bytes: int) -> None:
    """Check by the header before its bytes that a tar still has a member at the listed offset.

    Names that are too long for a header or not ASCII are stored elsewhere; for these, only the size is compared.

    Raises:
        DecodeError: source_changed.
    """
    if not header:  # the member starts where the tar does
        return
    try:
        found = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
        name, size = found.name.removeprefix("./"), found.size
    except tarfile.TarError:
        name, size = "something else", -1
    is_short = member.isascii() and len(member) <= _HEADER_NAME_BYTES
    if size != num_bytes or (is_short and name != member):
        raise DecodeError(
            RejectReason.SOURCE_CHANGED,
            f"its tar was rewritten: {name[:200]!r} is there now; list it again: --retry source_changed",
        )


def _check(path: str) -> None:
    """Reject a path that could leave the root, in case the manifest's reader accepted it."""
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or "\0" in path or not path:
        raise DecodeError(RejectReason.PATH_UNSAFE, "not a path below the video root")


def _temporary(stack: contextlib.ExitStack) -> tuple[IO[bytes], str]:
    """Create an empty temporary file; return it and a path by which other processes of this user can open it."""
    try:
        file, path = nameless_file()
    except OSError as error:
        raise ShardError(f"no temporary file in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR") from None
    stack.enter_context(file)
    return file, path


def _write_all(file: IO[bytes], pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        try:
            file.write(piece)
        except OSError as error:
            raise ShardError(f"cannot write to {tempfile.gettempdir()}: {error.strerror}; free space") from None
    file.flush()
