"""Signatures, users and passwords: what is stored of a URL, and that a whole workflow writes none of them."""

import logging

import pytest

from evilm.config.secrets import public_data, public_text, public_uri, unsigned, unsigned_text
from evilm.console import log_to_console


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://u:p@h.org/a.mp4?id=7&X-Amz-Signature=x&X-Amz-Date=1#t", "https://h.org/a.mp4?id=7"),
        ("https://h/a?sv=1&sig=x&v=2", "https://h/a?v=2"),
        ("https://h/a?key=x&api_key=y&access_token=z&q=1", "https://h/a?q=1"),
        ("videos/a.mp4?token=1", "videos/a.mp4?token=1"),
    ],
)
def test_unsigned_drops_signatures_and_passwords(url: str, stored: str) -> None:
    assert unsigned(url) == stored
    assert unsigned_text(f"see {url} or not") == f"see {stored} or not"


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
