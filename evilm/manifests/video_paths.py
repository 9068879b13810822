"""Turn paths of videos in manifests into paths below the video root, or reject them."""

import functools
import os
import posixpath
import re
from urllib.parse import unquote

from evilm.manifests.caption_text import Rejected
from evilm.video.reasons import RejectReason

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)


def path_below(path: str, root: str) -> str:
    """Return a path relative to the root; absolute paths and URLs below the root lose it.

    Raises:
        Rejected: a path that leads out of the root, or is not a path.
    """
    check_path(path)
    is_local = root.startswith("/")
    if is_local and (url := _FILE.match(path)):
        path = unquote(path[url.end() :])
        check_path(path)
    if _SCHEME.match(path):
        prefix = root.rstrip("/") + "/"
        if not path.startswith(prefix):
            raise Rejected(RejectReason.PATH_UNSAFE, f"a {path.partition(':')[0]} URL outside of the video root")
        path = path[len(prefix) :]
    if ".." in path.split("/"):
        raise Rejected(RejectReason.PATH_UNSAFE, "'..' in the path")
    if is_local and path.startswith("/"):
        path = _without_root(posixpath.normpath(re.sub("//+", "/", path)), root)
    if path.startswith("/"):
        raise Rejected(RejectReason.PATH_UNSAFE, "an absolute path outside of the video root")
    if "\\" in path:
        raise Rejected(RejectReason.PATH_UNSAFE, "'\\' in the path")
    return posixpath.normpath(path)


def check_path(path: str) -> None:
    """Reject a path with control characters."""
    if any(ord(character) < 32 for character in path):
        raise Rejected(RejectReason.PATH_UNSAFE, "a control character in the path")


def _without_root(path: str, root: str) -> str:
    """Return an absolute path without the root, which it may name by symbolic links; unchanged outside of the root."""
    prefix = root.rstrip("/") + "/"
    if path.startswith(prefix):
        return path[len(prefix) :]
    slashes = [match.start() for match in re.finditer("/", path)][1:]
    return next((path[at + 1 :] for at in slashes if _is_same(path[:at], root)), path)


@functools.lru_cache(4096)
def _is_same(folder: str, root: str) -> bool:
    try:
        return os.path.samefile(folder, root)
    except OSError:
        return False
