"""Signatures, users and passwords: what is stored of a URL, and that a whole workflow writes none of them."""

import logging

import pytest

from evilm.config.secrets import public_data, public_text, public_uri, stored_text, stored_url, unsigned
from evilm.console import log_to_console


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://u:p@h.org/a.mp4?id=7&X-Amz-Signature=x&X-Amz-Date=1#t", "https://h.org/a.mp4?id=7"),
        ("https://h/a?sv=1&sig=x&v=2", "https://h/a?v=2"),
        ("https://h/a?key=x&api_key=y&access_token=z&q=1", "https://h/a?q=1"),
        ("videos/a.mp4?token=1", "videos/a.mp4?token=1"),
        ("https://h/a?accessToken=1&sessionToken=2&sastoken=3&jwt=4&hmac=5&subscription-key=6&q=7", "https://h/a?q=7"),
        ("https://h/a?credential=1&oh=2&hdntl=3&passwd=4&X%2DAmz-Signature=5", "https://h/a"),
        (
            "https://h/a?Authorization=1&authkey=2&rlkey=3&sessionid=4&bearer=5&verify=6&q-ak=7&X-Tos-Date=8&q=9",
            "https://h/a?q=9",
        ),
        ("https://h/exp=1~acl=/*~hmac=0f/a.mp4?q=1", "https://h/a.mp4?q=1"),
        ("//me:pw@h/a?b=1&sig=x", "//h/a?b=1"),
        ("https://h/a?u=https://me:pw@g/b?sig=x", "https://h/a?u=https://g/b"),
    ],
)
def test_stored_urls_lack_whatever_could_be_a_secret(url: str, stored: str) -> None:
    assert stored_url(url) == stored
    assert stored_text(f"see {url} or not") == f"see {stored} or not"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (r"https:\/\/me:pw@h\/a?X-Amz-Signature=x\/y\u0026b=1", r"https:\/\/h\/a?b=1"),
        ("//me:pw@h/a?X-Amz-Signature=x", "//h/a"),
        ("https://h/a'b.mp4?X-Amz-Signature=x&b=1", "https://h/a'b.mp4?b=1"),
        ("https://h/a?b=1&amp;sig=x", "https://h/a?b=1&amp"),
        ("['https://h/a?sig=x', 'https://h/b?b=1']", "['https://h/a', 'https://h/b?b=1']"),
        ("a // b@c, x//y@z, what?key=5", "a // b@c, x//y@z, what?key=5"),
    ],
)
def test_secrets_are_found_however_a_url_is_written(text: str, stored: str) -> None:
    assert stored_text(text) == stored
    for secret in ("pw", "=x"):
        assert secret not in public_text(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[(f"https://h/get?{name}=v1.mp4", f"https://h/get?{name}=v2.mp4") for name in ("key", "token", "sp", "sr")],
        ("https://h/clip.php?se=1&st=2", "https://h/clip.php?se=2&st=2"),
        ("https://h/get?key=1&X-Amz-Signature=x", "https://h/get?key=2&X-Amz-Signature=x"),
    ],
)
def test_parameters_that_only_could_sign_tell_places_apart(one: str, other: str) -> None:
    assert unsigned(one) != unsigned(other)


@pytest.mark.parametrize(
    "signature",
    [
        "X-Amz-Algorithm=a&X-Amz-Date={0}&X-Amz-Signature={0}",
        "X-Goog-Date={0}&X-Goog-Signature={0}",
        "Expires={0}&Signature={0}&Key-Pair-Id=k&Policy={0}",
        "AWSAccessKeyId={0}&Signature={0}&Expires={0}&x-amz-security-token={0}",
        "sv={0}&st={0}&se={0}&sr=b&sp=r&skoid={0}&sig={0}",
        "token={0}&expires={0}",
        "hdntl={0}",
        "q-sign-algorithm=sha1&q-ak={0}&q-sign-time={0}&q-header-list=&q-signature={0}&x-cos-security-token={0}",
        "X-Tos-Date={0}&X-Tos-Signature={0}",
        "authorization=bce-auth-v1/{0}",
        "AccessKeyId={0}&Expires={0}&Signature={0}&x-obs-security-token={0}",
        "md5={0}&expires={0}",
        "api_key={0}&access_token={0}",
    ],
)
def test_places_that_are_signed_again_are_the_same(signature: str) -> None:
    one, other = (f"https://u{n}:p@h/a.mp4?id=7&{signature.format(n)}" for n in (1, 2))
    assert unsigned(one) == unsigned(other) == "https://h/a.mp4?id=7"
    assert unsigned(f"https://h/hdntl=exp={signature[:1]}~acl=/*~hmac=0f/a.mp4") == "https://h/a.mp4"
    assert unsigned(f"{one}#t=5", fragment=True) == "https://h/a.mp4?id=7#t=5"


def test_public_uri_drops_the_query_too() -> None:
    assert public_uri("s3://k:s@b/x?versionId=1") == "s3://b/x"
    assert public_text("at mysql://u:p@h/db?x=1: no") == "at mysql://h/db no"
    assert public_data({"a": ["http://u:p@h/x"], "b": 3}) == {"a": ["http://h/x"], "b": 3}


def test_log_lines_contain_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("evilm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    log_to_console()
    try:
        logger.warning("cannot reach %s", "http://me:hidden-one@h/x?sig=hidden-two")
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
    assert "cannot reach http://h/x" in capsys.readouterr().err


def test_public_uri_and_text_drop_credentials() -> None:
    assert public_uri("https://user:p@ss@x.org:8/a@b.mp4?X-Amz-Signature=1#t") == "https://x.org:8/a@b.mp4"
    assert public_uri("https://x.org?key=1") == "https://x.org"
    assert public_uri("p/a?b.mp4") == "p/a?b.mp4"
    assert public_text("got http://a:b@c/d?e=f, not s3://k:s@b/x?v=1") == "got http://c/d not s3://b/x"
