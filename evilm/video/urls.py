"""URLs in manifests, and names made of paths."""

import hashlib
import re

_URL = re.compile(r"https?://", re.IGNORECASE)


def flat_name(path: str) -> str:
    """A path as one name; names of paths that differ differ too."""
    if "/" not in path:
        return path
    return f"{path.replace('/', '_')}-{hashlib.blake2b(path.encode(), digest_size=3).hexdigest()}"


def is_url(path: str) -> bool:
    """Return whether a place is to be downloaded over http(s)."""
    return bool(_URL.match(path))
