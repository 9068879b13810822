"""Addresses that downloads may connect to: public ones, checked at every redirect."""

import socket
from typing import Any

import pytest

import evilm.video.download
import evilm.video.network_guard
from evilm.config.data import FetchConfig
from evilm.video.network_guard import is_public
from helpers.web_site import HERE, VIDEO, Site, answer, failure, get

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_redirects_to_private_addresses_are_forbidden(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site counts as public here, so that what it redirects to is what is judged."""
    monkeypatch.setattr(
        evilm.video.network_guard, "is_public", lambda address: address == "127.0.0.1" or is_public(address)
    )
    site.pages = {
        "/meta": answer(302, Location="http://169.254.169.254/latest/meta-data/"),
        "/six": answer(302, Location="http://[::1]:1/"),
        "/v.mp4": answer(200, VIDEO),
    }
    guarded = HERE.override({"allow_private": False})
    assert get(f"{site.url}/v.mp4", guarded) == VIDEO
    assert failure(f"{site.url}/meta", guarded).reason == "forbidden_address"
    assert failure(f"{site.url}/six", guarded).reason == "forbidden_address"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
    ],
)
def test_private_addresses_are_never_contacted(site: Site, host: str) -> None:
    error = failure(f"http://{host}:{site.server.server_address[1]}/v.mp4?key=secret", FetchConfig())
    assert error.reason == "forbidden_address"
    assert "secret" not in str(error)
    assert not site.asked


def test_checked_address_is_the_one_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose second answer is another address gains nothing: it is asked for once per connection."""
    site.pages = {"/v.mp4": answer(200, VIDEO)}
    asked: list[str] = []

    def rebinding(host: str, port: int, **rest: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(evilm.video.network_guard, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = f"http://rebind.example:{site.server.server_address[1]}/v.mp4"
    assert get(url, FetchConfig(retries=0)) == VIDEO
    assert asked == ["rebind.example"]
    assert site.headers[-1]["Host"].startswith("rebind.example:")
    assert failure(url, FetchConfig(retries=0)).reason == "forbidden_address"
    assert site.asked["/v.mp4"] == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::7f00:1", False),
        ("::ffff:10.0.0.1", False),
        ("::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("224.0.0.1", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("192.168.1.1", False),
        ("172.16.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        *((f"192.0.0.{last}", False) for last in (0, 8, 9, 10, 170, 255)),  # ipaddress calls 9 and 10 public
        ("192.0.1.1", True),
        ("::ffff:192.0.0.9", False),
        ("64:ff9b::192.0.0.10", False),
    ],
)
def test_is_public_knows_private_and_mapped_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize("url", ["http://", "http://[::1/", "http://x.org:99999/", "http://a\x00b/", "http://..../v"])
def test_malformed_urls_are_rejected(url: str) -> None:
    assert failure(url, FetchConfig(retries=0)).reason in ("fetch_error", "path_unsafe")
