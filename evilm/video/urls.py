"""Recognise URLs in manifests, and convert paths to names."""

import hashlib
import re

from evilm.config.data import VIDEO_ENDINGS

_URL = re.compile(r"https?://", re.IGNORECASE)


def flat_name(path: str) -> str:
    """Convert a path to one name; distinct paths get distinct names."""
    if "/" not in path:
        return path
    return f"{path.replace('/', '_')}-{hashlib.blake2b(path.encode(), digest_size=3).hexdigest()}"


def without_ending(path: str) -> str:
    """Remove the ending of a video from a path that has one."""
    return next((path[: -len(ending)] for ending in VIDEO_ENDINGS if path.lower().endswith(ending)), path)


def is_url(path: str) -> bool:
    """Check if a path is an http(s) URL."""
    return bool(_URL.match(path))
