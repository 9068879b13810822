"""Remove users, passwords and signatures from URLs before they are shown or stored."""

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SIGNATURE = re.compile(
    r"(?:X-Amz-|X-Goog-|x-oss-)[A-Za-z-]+|Signature|Expires|Policy|Key-Pair-Id|AWSAccessKeyId|GoogleAccessId|OSSAccessKeyId"
    r"|sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv|hdnea|hdnts|auth_key|(?:\w+[_-])?(?:token|secret|password)"
    r"|(?:api|access)[_-]?key|key|pwd|pass|auth",
    re.IGNORECASE,
)
"""Parameters of a query that allow a request, and do not tell what is asked for."""


def unsigned(url: str) -> str:
    """An http(s) URL without user, password and what signs it: equal for a place that was signed again."""
    return _stripped(url) if re.match(r"https?://", url, re.IGNORECASE) else url


def _stripped(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL after all, so nobody can say what is secret in it
        return public_uri(url)
    kept = [item for item in parts.query.split("&") if item and not _SIGNATURE.fullmatch(item.partition("=")[0])]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="&".join(kept), fragment=""))


def unsigned_text(text: str) -> str:
    """A text whose URLs lack users, passwords and signatures, and keep what tells places apart."""
    return _ANY_URL.sub(lambda match: _stripped(match[0]), text) if "://" in text else text


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


def public_data(data: Any) -> Any:
    """Data as JSON holds them, with all URLs in their texts as they may be stored."""
    if isinstance(data, dict):
        return {name: public_data(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [public_data(value) for value in data]
    return public_text(data) if isinstance(data, str) else data
