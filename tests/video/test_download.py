"""Downloads from a real server on loopback that fails, stalls and redirects in every way."""

import base64
import datetime
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from evilm.video.fetch import Fetcher
from helpers.web_site import HERE, VIDEO, Site, answer, failure, get, in_turn, void

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_download_returns_the_bytes_and_sends_credentials(site: Site) -> None:
    site.pages = {
        "/a b/\xe9.mp4": answer(200),
        "/v.mp4": answer(200, VIDEO),
        "/nolength": answer(200, VIDEO, Content_Length=""),
    }
    assert get(f"{site.url}/v.mp4?key=secret#t=3") == VIDEO
    assert get(f"{site.url}/nolength") == VIDEO
    assert get(f"{site.url.replace('http://', 'http://us%40er:pass@')}/v.mp4") == VIDEO
    assert site.headers[-1]["Authorization"] == "Basic " + base64.b64encode(b"us@er:pass").decode()
    assert failure(f"{site.url}/\xe9 x.mp4").reason == "missing_file"
    assert "/%C3%A9%20x.mp4" in site.asked


@pytest.mark.parametrize(
    ("status", "reason", "attempts"),
    [
        (404, "missing_file", 1),
        (410, "missing_file", 1),
        (403, "fetch_error", 1),
        (416, "fetch_error", 1),
        (204, "fetch_error", 1),
        (304, "fetch_error", 1),
        (500, "fetch_error", 3),
        (503, "fetch_error", 3),
        (429, "fetch_error", 3),
    ],
)
def test_http_status_decides_reason_and_retries(site: Site, status: int, reason: str, attempts: int) -> None:
    site.pages = {"/v.mp4": answer(status)}
    error = failure(f"{site.url}/v.mp4?key=secret")
    assert (error.reason, site.asked["/v.mp4"]) == (reason, attempts)
    assert f"HTTP {status}" in error.detail
    assert "secret" not in str(error)


def test_transient_errors_are_retried(site: Site) -> None:
    def short(request: BaseHTTPRequestHandler) -> None:
        answer(200, VIDEO[:1000], Content_Length=str(len(VIDEO)))(request)

    def mute(request: BaseHTTPRequestHandler) -> None:
        request.connection.close()

    site.pages = {"/v.mp4": in_turn(answer(500), short, answer(429, Retry_After="0"), mute, answer(200, VIDEO))}
    assert get(f"{site.url}/v.mp4", HERE.override({"retries": 4})) == VIDEO
    site.pages = {"/v.mp4": short, "/w.mp4": answer(503, Retry_After="3600")}
    error = failure(f"{site.url}/v.mp4")
    assert (error.reason, error.detail) == ("fetch_error", f"received 1000 of {len(VIDEO)} bytes after 3 attempts")
    assert failure(f"{site.url}/w.mp4").reason == "fetch_error"  # it asks for more time than there is
    assert site.asked["/w.mp4"] == 1
    for value in ("Mon, 1 Jan 2024 00:00:00 +99999999999999", "\xb2", "9" * 400, "soon"):
        site.pages = {"/x.mp4": answer(503, Retry_After=value)}
        assert failure(f"{site.url}/x.mp4").reason == "fetch_error"


def test_slow_servers_time_out(site: Site) -> None:
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not over.wait(0.05):
            request.wfile.write(b"x")

    def drip_headers(request: BaseHTTPRequestHandler) -> None:
        while not over.wait(0.05):
            request.wfile.write(b"H")

    site.pages = {"/drip": drip, "/headers": drip_headers, "/mute": lambda request: void(over.wait(60))}
    try:
        for page, config in (
            ("/drip", {"deadline_s": 0.5}),
            ("/headers", {"deadline_s": 0.5}),
            ("/mute", {"timeout_s": 0.2, "retries": 1}),
        ):
            assert failure(site.url + page, HERE.override(config)).reason == "fetch_timeout", page
    finally:
        over.set()
    assert site.asked["/mute"] == 2


def test_too_large_downloads_are_rejected(site: Site) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(1 << 16))

    site.pages = {"/v.mp4": endless, "/w.mp4": answer(200, Content_Length=str(5 << 30))}
    small = HERE.override({"max_mb": 1})
    assert failure(f"{site.url}/v.mp4", small).reason == "too_large"
    assert failure(f"{site.url}/w.mp4", small).reason == "too_large"
    assert set(site.asked.values()) == {1}


def test_redirects_are_followed_up_to_a_limit(site: Site) -> None:
    moved = {str(n): answer(302, Location=f"/{n + 1}?key=1") for n in range(6)}
    site.pages = {f"/{n}": page for n, page in moved.items()} | {
        "/6": answer(200, VIDEO),
        "/meta": answer(302, Location="http://169.254.169.254/latest/meta-data/"),
        "/file": answer(302, Location="file:///etc/passwd"),
        "/loop": answer(301, Location="/loop"),
    }
    assert get(f"{site.url}/1") == VIDEO
    assert "redirects" in failure(f"{site.url}/0").detail
    assert site.asked["/6"] == 1
    assert failure(f"{site.url}/loop").reason == "fetch_error"
    assert site.asked["/loop"] == 6
    assert failure(f"{site.url}/file").reason == "path_unsafe"


@pytest.mark.parametrize("place", ["http://[oops", "//[::1", "http://x.org:port/", "http://\xff\xfe@[/"])
def test_invalid_redirects_are_fetch_errors(site: Site, place: str) -> None:
    site.pages = {"/0": answer(302, Location=place)}
    assert failure(f"{site.url}/0").reason == "fetch_error"


def test_non_ascii_urls_and_credentials_are_encoded(site: Site) -> None:
    site.otherwise = answer(200, VIDEO)
    assert get(site.url.replace("http://", "http://us\u0142r:%C5%82\xe9@") + "/v.mp4") == VIDEO
    assert site.headers[-1]["Authorization"] == "Basic " + base64.b64encode("us\u0142r:\u0142\xe9".encode()).decode()
    for name in ("a.m\0p4", "a.m/p4", "a.\udcff", "a.m\np4", "a." + "x" * 300):
        assert get(f"{site.url}/{name}") == VIDEO


def test_password_is_not_sent_after_a_redirect(site: Site) -> None:
    site.pages = {"/0": answer(302, Location="/1"), "/1": answer(200, VIDEO)}
    assert get(f"{site.url.replace('http://', 'http://user:pass@')}/0") == VIDEO
    assert [bool(headers["Authorization"]) for headers in site.headers] == [True, False]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return path


def test_https_certificate_is_verified(site: Site, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        answer(200, Content_Length="99")(request)
        while not over.wait(0.05):
            request.wfile.write(b"x")

    site.pages = {"/v.mp4": answer(200, VIDEO), "/drip": drip}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    port = site.server.server_address[1]
    error = failure(f"https://localhost:{port}/v.mp4")
    assert (error.reason, error.detail) == ("fetch_error", "the certificate of localhost is not valid")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(f"https://localhost:{port}/v.mp4") == VIDEO
    assert "certificate" in failure(f"https://127.0.0.1:{port}/v.mp4").detail  # it is not of that name
    assert failure(f"https://localhost:{port}/drip", HERE.override({"deadline_s": 0.5})).reason == "fetch_timeout"
    over.set()


def test_concurrent_downloads_are_limited(site: Site) -> None:
    gate = threading.Semaphore(0)

    def page(request: BaseHTTPRequestHandler) -> None:
        gate.acquire(timeout=30)
        answer(200, VIDEO)(request)

    site.pages = {"/v.mp4": page}
    fetcher = Fetcher("", HERE.override({"concurrency": 3}))

    def one(_: int) -> int:
        with fetcher.fetch(f"{site.url}/v.mp4") as local:
            return local.num_bytes

    with ThreadPoolExecutor(10) as pool:
        sizes = pool.map(one, range(10))
        gate.release(10)
        assert list(sizes) == [len(VIDEO)] * 10
    assert site.busiest <= 3
