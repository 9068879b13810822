"""Remove users, passwords and signatures from URLs before they are compared, shown or stored.

`unsigned` returns URLs for comparison: it removes only certain signatures, so URLs of different files stay different.
`stored_*` and `public_*` return URLs for storage and for logs: they also remove every parameter whose name could be
that of a secret.
"""

import re
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>]+")
_ABSOLUTE = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")
_AZURE = "sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv"
_CLOUDFRONT = "Signature|Expires|Policy|Key-Pair-Id|(?:AWS|OSS)?AccessKeyId|GoogleAccessId|security-token"
_CLOUDS = ("amz", "goog", "oss", "tos", "obs", "cos", "bce")
_OF_CLOUDS = rf"X-(?:{'|'.join(_CLOUDS)})-[\w-]+|q-(?:sign|ak|key|header|url)[\w-]*"
_AKAMAI = "hdnea|hdnts|hdntl|auth_key"
_SIGNATURES = [
    (needed, re.compile(names, re.IGNORECASE))
    for needed, names in (
        *(({f"x-{cloud}-signature"}, f"x-{cloud}-[a-z-]+") for cloud in _CLOUDS),
        ({"signature"}, f"{_CLOUDFRONT}|{_OF_CLOUDS}"),
        ({"q-signature"}, _OF_CLOUDS),
        ({"authorization"}, f"authorization|{_OF_CLOUDS}"),
        ({"sig"}, _AZURE),
        ({"token", "expires"}, "token|expires"),
        ({"md5", "expires"}, "md5|expires"),
        (set[str](), rf"{_AKAMAI}|(?:access|auth|session|security|refresh|id)[_-]token|(?:api|access)[_-]?key"),
        (set[str](), r"\w+[_-]secret|(?:\w+[_-])?password|pwd"),
    )
]
"""Parameters of each signature scheme, removed only if the query has all the needed ones: elsewhere, names as common as
`key` and `st` may identify the file."""
_SECRET = (
    rf"{_OF_CLOUDS}|{_CLOUDFRONT}|{_AZURE}|{_AKAMAI}|[\w-]*signature\w*|sign|oh|__gda__|md5|verify"
    r"|[\w-]*(?:token|secret|password|passwd|credentials?|hmac|jwt|key|bearer|session(?:[_-]?id)?)"
    r"|pwd|pass|auth(?:orization)?"
)
_IS_SECRET = re.compile(_SECRET, re.IGNORECASE)
_TOKEN_IN_PATH = re.compile(r"/(?:hd\w+=)?(?:(?:st|exp|ip|acl|data|id)=[^?#\s]*?~)+hmac=[^/?#\s]*", re.IGNORECASE)
"""Akamai's, e.g. `/exp=1~acl=/*~hmac=0f`."""
_LOOSE_URL = re.compile(r"(?<!\w)(?:\\?/){2}[^\s\"<>]+")
"""Also in escaped JSON, without a scheme, and with quotes in it."""
_LOOSE_USER = re.compile(r"(?:^|(?<=:))((?:\\?/){2})[^\s/\\?#]*@")
_VALUE = r"=(?:[^&;#\s'\"<>\\]|\\/)*"
_LOOSE_SECRETS = re.compile(
    rf"([?&;#]|\\u0026)(?:{_SECRET}){_VALUE}(?:(?:[&;]|\\u0026)(?:{_SECRET}){_VALUE})*([&;]|\\u0026)?", re.IGNORECASE
)


def unsigned(url: str, fragment: bool = False) -> str:
    """Return an http(s) URL without user, password and signature: equal for a file whose URL was signed again.

    Args:
        url: the URL; any other text is returned as it is.
        fragment: keep what follows '#', which is not sent to a server, but may tell clips apart.
    """
    if not re.match(r"https?://", url, re.IGNORECASE):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL after all, so nobody can say what is secret in it
        return public_uri(url)
    items = [(_name(item), item) for item in parts.query.split("&") if item]
    there = {name.lower() for name, _ in items}
    signing = [names for needed, names in _SIGNATURES if there and needed <= there]
    query = "&".join(item for name, item in items if not any(names.fullmatch(name) for names in signing))
    netloc, fragment_kept = parts.netloc.rpartition("@")[2], parts.fragment if fragment else ""
    path = _TOKEN_IN_PATH.sub("", parts.path)
    return urlunsplit(parts._replace(netloc=netloc, path=path, query=query, fragment=fragment_kept))


def stored_url(url: str) -> str:
    """Return a URL as it may be stored: without user, password, fragment and parameters that could be secrets."""
    if not _ABSOLUTE.match(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return public_uri(url)
    query = "&".join(item for item in parts.query.split("&") if item and not _IS_SECRET.fullmatch(_name(item)))
    return _hidden(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="")))


def stored_text(text: str) -> str:
    """Return a text with all its URLs as `stored_url` returns them."""
    return _hidden(_ANY_URL.sub(lambda match: stored_url(match[0]), text) if "://" in text else text)


def public_uri(uri: str) -> str:
    """Return a path or URL as it may be logged and stored: URLs without user, password, query and fragment."""
    scheme, separator, rest = uri.partition("//")
    if not separator or not (scheme == "" or scheme.endswith(":")):
        return uri
    rest = _TOKEN_IN_PATH.sub("", re.split(r"[?#]", rest, maxsplit=1)[0])
    host, slash, path = rest.partition("/")
    return f"{scheme}//{host.rpartition('@')[2]}{slash}{path}"


def public_text(text: str) -> str:
    """Return the text with secrets removed from its URLs."""
    return _hidden(_ANY_URL.sub(lambda match: public_uri(match[0]), text) if "://" in text else text)


def public_data(data: Any) -> Any:
    """Return JSON data with all URLs in their texts as they may be logged."""
    if isinstance(data, dict):
        return {name: public_data(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [public_data(value) for value in data]
    return public_text(data) if isinstance(data, str) else data


def _name(item: str) -> str:
    """Return the name of a parameter of a query."""
    return unquote(item.partition("=")[0])


def _hidden(text: str) -> str:
    """Return a text without users and secrets in anything that looks like a URL, also escaped or without a scheme."""

    def hide(url: re.Match[str]) -> str:
        place = _LOOSE_USER.sub(r"\1", url[0])
        return _LOOSE_SECRETS.sub(lambda found: found[1] if found[2] else "", _TOKEN_IN_PATH.sub("", place))

    return _LOOSE_URL.sub(hide, text) if "/" in text and ("=" in text or "@" in text) else text
