"""Videos as local files: from folders, URLs and S3, and never from outside of the root."""

import http.client
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

from evilm.config.data import FetchConfig
from evilm.errors import AccessError, ConfigError, DecodeError
from evilm.video.fetch import Fetcher
from helpers.web_site import HERE, VIDEO, Site, answer, void

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_missing_file_is_downloaded_from_its_url(site: Site, tmp_path: Path) -> None:
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


def test_files_outside_the_root_are_unsafe(tmp_path: Path) -> None:
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
    assert outcome("in") == "missing_file"
    assert outcome("in/b.mp4/c.mp4") == "missing_file"
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(AccessError, match="is gone"):
        outcome("in/b.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_local_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mp4").chmod(stat.S_IWUSR)
    with pytest.raises(DecodeError, match="permission"), Fetcher(str(tmp_path), FetchConfig()).fetch("a.mp4"):
        pass


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


def test_videos_on_s3_are_found_by_ending(bucket: str) -> None:
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
def test_transient_s3_errors_are_retried(faulty: tuple[str, list[Any]]) -> None:
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
def test_s3_error_code_decides_the_reason(
    faulty: tuple[str, list[Any]], status: int, code: str, reason: str, asked: int
) -> None:
    bucket, faults = faulty
    faults += [s3_error(status, code)] * 9
    with pytest.raises(DecodeError) as caught, Fetcher(bucket, FetchConfig(retries=2)).fetch("v/a.mp4"):
        pass
    assert (caught.value.reason, 9 - len(faults)) == (reason, asked)
    assert reason == "missing_file" or (str(status) in caught.value.detail and code in caught.value.detail)


def test_missing_bucket_is_a_config_error(bucket: str) -> None:
    with pytest.raises(ConfigError, match="no such bucket"), Fetcher(f"{bucket}x", FetchConfig()).fetch("v/a.mp4"):
        pass


def test_missing_credentials_are_an_access_error(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(AccessError, match="no credentials"), Fetcher(bucket, FetchConfig()).fetch("v/a.mp4"):
        pass
    s3fs.S3FileSystem.clear_instance_cache()
