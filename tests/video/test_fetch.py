"""Videos as local files: from real servers on loopback that fail in every way, and never from outside of the root."""

import base64
import datetime
import http.client
import os
import socket
import ssl
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import evilm.video.download
import evilm.video.network_guard
from evilm.config.data import FetchConfig
from evilm.config.secrets import public_text, public_uri
from evilm.errors import ConfigError, DecodeError, SourceError
from evilm.video.fetch import Fetcher
from evilm.video.network_guard import is_public

HERE = FetchConfig(allow_private=True, timeout_s=5, deadline_s=20, retries=2)
VIDEO = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evilm.video.download, "_BACKOFF_S", 0.01)


class Site:
    """A web server on loopback: what each path does is a function of the request handler."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[Any] = []
        self.otherwise = answer(404)
        self.busy, self.busiest = 0, 0
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                with site._lock:
                    site.asked[path] += 1
                    site.headers.append(self.headers)
                    site.busy += 1
                    site.busiest = max(site.busiest, site.busy)
                try:
                    site.pages.get(path, site.otherwise)(self)
                except OSError:
                    pass  # the client hung up
                finally:
                    with site._lock:
                        site.busy -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return page


def in_turn(*pages: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[BaseHTTPRequestHandler], None]:
    """The first page for the first request, and so on; the last one for all others."""
    left = list(pages)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


def void(_: object) -> None:
    """Nothing, whatever is given."""


def get(url: str, config: FetchConfig = HERE) -> bytes:
    with Fetcher("", config).fetch(url) as local:
        data = Path(local.path).read_bytes()
        assert len(data) == local.num_bytes
    assert not Path(local.path).exists()
    return data


def failure(url: str, config: FetchConfig = HERE, **fields: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught, Fetcher("", config).fetch(url, **fields):
        pass
    return caught.value


def test_a_download(site: Site) -> None:
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
def test_what_a_status_means(site: Site, status: int, reason: str, attempts: int) -> None:
    site.pages = {"/v.mp4": answer(status)}
    error = failure(f"{site.url}/v.mp4?key=secret")
    assert (error.reason, site.asked["/v.mp4"]) == (reason, attempts)
    assert f"HTTP {status}" in error.detail
    assert "secret" not in str(error)


def test_what_passes_is_waited_for(site: Site) -> None:
    def short(request: BaseHTTPRequestHandler) -> None:
        answer(200, VIDEO[:1000], Content_Length=str(len(VIDEO)))(request)

    def mute(request: BaseHTTPRequestHandler) -> None:
        request.connection.close()

    site.pages = {"/v.mp4": in_turn(answer(500), short, answer(429, Retry_After="0"), mute, answer(200, VIDEO))}
    assert get(f"{site.url}/v.mp4", HERE.override({"retries": 4})) == VIDEO
    site.pages = {"/v.mp4": short, "/w.mp4": answer(503, Retry_After="3600")}
    error = failure(f"{site.url}/v.mp4")
    assert (error.reason, error.detail) == ("fetch_error", f"1000 of {len(VIDEO)} bytes came after 3 attempts")
    assert failure(f"{site.url}/w.mp4").reason == "fetch_error"  # it asks for more time than there is
    assert site.asked["/w.mp4"] == 1
    for value in ("Mon, 1 Jan 2024 00:00:00 +99999999999999", "\xb2", "9" * 400, "soon"):
        site.pages = {"/x.mp4": answer(503, Retry_After=value)}
        assert failure(f"{site.url}/x.mp4").reason == "fetch_error"


def test_slow_servers_end(site: Site) -> None:
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


def test_too_much_is_refused(site: Site) -> None:
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


def test_redirects(site: Site) -> None:
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
def test_redirects_to_nowhere(site: Site, place: str) -> None:
    site.pages = {"/0": answer(302, Location=place)}
    assert failure(f"{site.url}/0").reason == "fetch_error"


def test_odd_characters_in_urls(site: Site) -> None:
    site.otherwise = answer(200, VIDEO)
    assert get(site.url.replace("http://", "http://us\u0142r:%C5%82\xe9@") + "/v.mp4") == VIDEO
    assert site.headers[-1]["Authorization"] == "Basic " + base64.b64encode("us\u0142r:\u0142\xe9".encode()).decode()
    for name in ("a.m\0p4", "a.m/p4", "a.\udcff", "a.m\np4", "a." + "x" * 300):
        assert get(f"{site.url}/{name}") == VIDEO


def test_redirects_are_checked_like_first_addresses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_password_is_not_carried_along(site: Site) -> None:
    site.pages = {"/0": answer(302, Location="/1"), "/1": answer(200, VIDEO)}
    assert get(f"{site.url.replace('http://', 'http://user:pass@')}/0") == VIDEO
    assert [bool(headers["Authorization"]) for headers in site.headers] == [True, False]


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
def test_private_addresses_are_not_asked(site: Site, host: str) -> None:
    error = failure(f"http://{host}:{site.server.server_address[1]}/v.mp4?key=secret", FetchConfig())
    assert error.reason == "forbidden_address"
    assert "secret" not in str(error)
    assert not site.asked


def test_the_address_that_is_checked_is_the_one_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize("url", ["http://", "http://[::1/", "http://x.org:99999/", "http://a\x00b/", "http://..../v"])
def test_odd_urls_are_refused(url: str) -> None:
    assert failure(url, FetchConfig(retries=0)).reason in ("fetch_error", "path_unsafe")


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


def test_https(site: Site, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_no_more_at_a_time_than_asked_for(site: Site) -> None:
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


def test_a_url_stands_in_for_a_missing_file(site: Site, tmp_path: Path) -> None:
    site.pages = {"/v.mp4": answer(200, VIDEO)}
    (tmp_path / "here.mp4").write_bytes(b"here")
    (tmp_path / "folder.mp4").mkdir()
    fetcher = Fetcher(str(tmp_path), HERE)
    with fetcher.fetch("here", needs_ending=True, url=f"{site.url}/v.mp4") as local:
        assert (local.path, local.uri, local.num_bytes) == (f"{tmp_path}/here.mp4", "here.mp4", 4)
    assert not site.asked
    with fetcher.fetch("gone", needs_ending=True, url=f"{site.url}/v.mp4?key=secret") as local:
        assert Path(local.path).read_bytes() == VIDEO
        assert local.uri == f"{site.url}/v.mp4"
    with pytest.raises(DecodeError, match="not_a_file"), fetcher.fetch("folder.mp4", url=f"{site.url}/v.mp4"):
        pass
    with pytest.raises(DecodeError, match="path_unsafe"), fetcher.fetch("gone.mp4", url="file:///etc/passwd"):
        pass


def test_nothing_outside_of_a_local_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "a.mp4").write_bytes(b"secret")
    (root / "in" / "b.mp4").write_bytes(b"fine")
    (root / "link").symlink_to(tmp_path)
    (root / "c.mp4").symlink_to("../a.mp4")
    (root / "d.mp4").symlink_to("in/b.mp4")
    (root / "e.mp4").symlink_to("nowhere")
    os.mkfifo(root / "f.mp4")
    fetcher = Fetcher(str(root), FetchConfig())

    def outcome(path: str, *rest: Any) -> str:
        try:
            with fetcher.fetch(path, *rest) as local:
                return Path(local.path).read_text()
        except DecodeError as error:
            return error.reason

    unsafe = ["../a.mp4", "in/../../a.mp4", str(tmp_path / "a.mp4"), "..\\a.mp4", "link/a.mp4", "c.mp4", "", "a\0b.mp4"]
    assert {path: outcome(path) for path in unsafe} == dict.fromkeys(unsafe, "path_unsafe")
    assert outcome("link/a", True) == outcome("c", True) == "path_unsafe"
    assert outcome("link/x.tar/a.mp4", False, 0, 3) == "path_unsafe"
    assert outcome("d", True) == "fine"
    assert outcome("e.mp4") == "missing_file"
    assert outcome("f.mp4") == "not_a_file"
    assert outcome("in") == "not_a_file"
    assert outcome("in/b.mp4/c.mp4") == "missing_file"
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="is gone"):
        outcome("in/b.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mp4").chmod(stat.S_IWUSR)
    with pytest.raises(DecodeError, match="permission"), Fetcher(str(tmp_path), FetchConfig()).fetch("a.mp4"):
        pass


def test_secrets_are_left_out() -> None:
    assert public_uri("https://user:p@ss@x.org:8/a@b.mp4?X-Amz-Signature=1#t") == "https://x.org:8/a@b.mp4"
    assert public_uri("https://x.org?key=1") == "https://x.org"
    assert public_uri("p/a?b.mp4") == "p/a?b.mp4"
    assert public_text("got http://a:b@c/d?e=f, not s3://k:s@b/x?v=1") == "got http://c/d not s3://b/x"


# Object stores


@pytest.fixture
def bucket(s3_bucket: str) -> str:
    """A bucket with videos."""
    fs = fsspec.filesystem("s3")
    for name in (
        "v/a.mp4",
        "v/b.webm",
        "v/c.x.MKV",
        "v/e\u0301.gif",
        "v/1.5.mkv",
        "v/b.webm.txt",
        "w/b.mov",
        "secret.mp4",
    ):
        fs.pipe_file(f"{s3_bucket}/{name}", name.encode())
    return s3_bucket


def test_endings_on_an_object_store(bucket: str) -> None:
    fetcher = Fetcher(f"{bucket}/v", FetchConfig(retries=0))

    def found(path: str, needs_ending: bool = True) -> str:
        try:
            with fetcher.fetch(path, needs_ending) as local:
                assert Path(local.path).read_bytes() == f"v/{local.uri}".encode()
                return local.uri
        except DecodeError as error:
            return error.reason

    stems = ["a", "b", "c.x", "\xe9", "1.5", "1", "c"]
    wanted = ["a.mp4", "b.webm", "c.x.MKV", "e\u0301.gif", "1.5.mkv", "missing_file", "missing_file"]
    assert [found(stem) for stem in stems] == wanted
    assert [found(path, False) for path in ("b.webm", "b.mp4", "../secret.mp4", "a.mp4/..")] == [
        "b.webm",
        "missing_file",
        "path_unsafe",
        "path_unsafe",
    ]
    fsspec.filesystem("s3").pipe_file(f"{bucket}/big.mp4", bytes(1 << 21))
    with pytest.raises(DecodeError, match="too_large"), Fetcher(bucket, FetchConfig(max_mb=1)).fetch("big.mp4"):
        pass


@pytest.fixture
def faulty(bucket: str, s3_server: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    """The bucket behind a server that answers as the list says, and asks the real one once the list is empty."""
    import s3fs

    faults: list[Any] = []
    real = urlsplit(s3_server).netloc

    def forward(request: BaseHTTPRequestHandler) -> None:
        if faults:
            faults.pop(0)(request)
            return
        connection = http.client.HTTPConnection(real, timeout=30)
        connection.request("GET", request.path, headers=dict(request.headers))
        response = connection.getresponse()
        answer(response.status, response.read(), Content_Type=response.getheader("Content-Type", ""))(request)
        connection.close()

    site.otherwise = forward
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield bucket, faults
    s3fs.S3FileSystem.clear_instance_cache()


def s3_error(status: int, code: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return answer(
        status, f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode(), Content_Type="application/xml"
    )


@pytest.mark.faults
def test_faults_of_an_object_store_pass(faulty: tuple[str, list[Any]]) -> None:
    bucket, faults = faulty
    fetcher = Fetcher(bucket, FetchConfig(retries=3, timeout_s=1))
    over = threading.Event()

    def cut(request: BaseHTTPRequestHandler) -> None:
        answer(200, b"v/a", Content_Length="7")(request)
        request.connection.shutdown(socket.SHUT_RDWR)

    for fault in (
        s3_error(500, "InternalError"),
        s3_error(503, "SlowDown"),
        cut,
        lambda request: void(over.wait(30)),
    ):
        faults += [fault, fault]
        with fetcher.fetch("v/a", needs_ending=True) as local:
            assert Path(local.path).read_bytes() == b"v/a.mp4"
        faults += [fault, fault]
        with fetcher.fetch("v/a.tar/b.mp4".replace("a.tar", "a.mp4.tar"), offset=0, num_bytes=0) as local:
            assert local.num_bytes == 0
        faults.clear()
    over.set()


@pytest.mark.parametrize(
    ("status", "code", "reason", "asked"),
    [
        (404, "NoSuchKey", "missing_file", 1),
        (403, "AccessDenied", "fetch_error", 1),
        (400, "ExpiredToken", "fetch_error", 1),
        (503, "SlowDown", "fetch_error", 3),
    ],
)
def test_what_an_object_store_says(
    faulty: tuple[str, list[Any]], status: int, code: str, reason: str, asked: int
) -> None:
    bucket, faults = faulty
    faults += [s3_error(status, code)] * 9
    with pytest.raises(DecodeError) as caught, Fetcher(bucket, FetchConfig(retries=2)).fetch("v/a.mp4"):
        pass
    assert (caught.value.reason, 9 - len(faults)) == (reason, asked)
    assert reason == "missing_file" or (str(status) in caught.value.detail and code in caught.value.detail)


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(ConfigError, match="no such bucket"), Fetcher(f"{bucket}x", FetchConfig()).fetch("v/a.mp4"):
        pass


def test_no_credentials_are_no_fault_of_the_clips(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="no credentials"), Fetcher(bucket, FetchConfig()).fetch("v/a.mp4"):
        pass
    s3fs.S3FileSystem.clear_instance_cache()
