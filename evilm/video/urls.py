"""URLs in manifests: which they are, and what of them may be shown."""

import re

_URL = re.compile(r"https?://", re.IGNORECASE)
_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def is_url(path: str) -> bool:
    """Whether a place is to be downloaded over http(s)."""
    return bool(_URL.match(path))


def public_uri(uri: str) -> str:
    """A place as it may be logged and stored: URLs without user, password, query and fragment."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def public_text(text: str) -> str:
    """A text with all its URLs as they may be logged."""
    return _ANY_URL.sub(lambda match: public_uri(match[0]), text) if "://" in text else text
