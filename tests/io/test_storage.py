"""Files on local disks and S3: whole or not there, tried again where the store falters, errors in one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import ConfigError, ShardError, StorageError
from evilm.io import retries, storage
from helpers.commands import wait_for
from helpers.s3_faults import FaultyS3, Through, at_random


def test_put_if_absent_has_one_winner(out_uri: str) -> None:
    uri = storage.join(out_uri, "commit.json")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_writing_leaves_no_temporary_files(out_uri: str) -> None:
    storage.write_json(storage.join(out_uri, "a", "b.json"), {"x": 1})
    assert storage.list_names(out_uri) == ["a"]
    assert storage.list_names(storage.join(out_uri, "a")) == ["b.json"]
    assert storage.read_json(storage.join(out_uri, "a", "b.json")) == {"x": 1}
    storage.write_bytes(storage.join(out_uri, "a", "b.json"), b"{")
    with pytest.raises(ShardError, match="not valid JSON"):
        storage.read_json(storage.join(out_uri, "a", "b.json"))


def test_local_folder_holds_all_files_of_a_folder(out_uri: str) -> None:
    storage.write_bytes(storage.join(out_uri, "deep", "x.bin"), b"1")
    storage.write_bytes(storage.join(out_uri, "y.bin"), b"2")
    with storage.local_folder(out_uri) as folder:
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.bin")) == ["deep/x.bin", "y.bin"]


def test_full_disk_raises_one_line_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(ShardError, match=r"cannot use /dev/full/x: .*check that the path"):
        storage.write_bytes("/dev/full/x", b"data")


def test_unknown_scheme_error_names_accepted_schemes() -> None:
    with pytest.raises(ConfigError, match="local path or s3://"):
        storage.exists("gopher://x/y")


def scripted(faults: Sequence[str], method: str = "PUT") -> Callable[[str, str], str]:
    """The first requests of a method fail in these ways."""
    left = list(faults)
    return lambda found, _: left.pop(0) if found == method and left else ""


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["500", "503", "drop", "lost", "cut", "silence"])
def test_commit_is_put_once_despite_lost_answers(s3_server: str, s3_through: Through, fault: str) -> None:
    with FaultyS3(s3_server, scripted([fault, fault])) as faulty:
        uri = f"{s3_through(faulty)}/commits/x.json"
        assert storage.put_if_absent(uri, b"mine"), "also where the store took it and the answer was lost"
        assert faulty.counts[fault] > 0
        assert not storage.put_if_absent(uri, b"another's")
        assert storage.read_bytes(uri) == b"mine"


@pytest.mark.faults
def test_files_survive_failing_s3_requests(s3_server: str, s3_through: Through, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    with FaultyS3(s3_server, scripted(["lost", "503"])) as faulty:
        uri = f"{s3_through(faulty)}/x.bin"
        with storage.temporary(uri) as path:
            Path(path).write_bytes(data)
            storage.put_file(path, uri)
        assert not Path(path).exists()
        assert storage.read_bytes(uri) == data
    for fault in ("500", "cut", "silence"):
        with FaultyS3(s3_server, scripted([fault], "GET")) as faulty:
            s3_through(faulty)
            assert storage.read_bytes(uri) == data
            storage.get_file(uri, str(tmp_path / "x.bin"))
            assert (tmp_path / "x.bin").read_bytes() == data


@pytest.mark.faults
def test_unreachable_store_error_says_what_to_check(s3_through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_ATTEMPTS", 1)
    monkeypatch.setattr(storage, "_S3_ATTEMPTS", 1)
    with FaultyS3("http://127.0.0.1:9", at_random(0)) as faulty:
        bucket = s3_through(faulty)
    with pytest.raises(StorageError, match=r"cannot use s3://\S+: .*; check endpoint and credentials$"):
        storage.write_bytes(f"{bucket}/x", b"")


@pytest.mark.faults
def test_local_copy_is_deleted_after_its_block(s3_bucket: str, tmp_path: Path) -> None:
    for uri in (str(tmp_path / "a"), f"{s3_bucket}/a"):
        storage.write_bytes(uri, b"abc")
        with storage.local_copy(uri) as path:
            assert Path(path).read_bytes() == b"abc"
        assert Path(path).exists() == storage.is_local(uri), "files of one's own stay"
        with pytest.raises(FileNotFoundError), storage.local_copy(uri + "b"):
            pass


@pytest.mark.faults
def test_temporary_files_of_killed_processes_are_removed(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delattr(os, "O_TMPFILE")  # as where files need a name
    (tmp_path / "evilm-dead.tmp").write_bytes(b"of a process that was killed")
    with storage.temporary(f"{s3_bucket}/a") as one, storage.temporary(f"{s3_bucket}/b") as other:
        assert sorted(tmp_path.iterdir()) == sorted([Path(one), Path(other)]), "the first one is locked"
    with pytest.raises(RuntimeError), storage.temporary(f"{s3_bucket}/a"):
        raise RuntimeError("an error in the middle")
    assert list(tmp_path.iterdir()) == []


def no_links(error: int) -> Callable[..., None]:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    return link


@pytest.mark.parametrize("has_rename", [True, False])
def test_put_if_absent_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_rename: bool) -> None:
    import ctypes
    import errno

    monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    if not has_rename:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    uri = str(tmp_path / "commit.json")
    assert storage.put_if_absent(uri, b"one")
    assert storage.put_if_absent(uri, b"one"), "as it was there already"
    assert not storage.put_if_absent(uri, b"two")
    assert storage.read_bytes(uri) == b"one"
    assert os.listdir(tmp_path) == ["commit.json"]


def test_unfinished_uploads_of_other_folders_stay(s3_bucket: str) -> None:
    fs, bucket = storage.resolve(s3_bucket)
    for key in ("a/out/x", "a/out2/x", "b/out/x", "a/out/deep/y"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    storage.abort_uploads(f"{s3_bucket}/a/out")
    left = [upload["Key"] for upload in fs.list_multipart_uploads(bucket)]
    assert left == ["a/out2/x", "b/out/x"]


def test_unfinished_uploads_that_may_not_be_listed_stay_with_a_warning(
    s3_server: str, s3_through: Through, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyS3(s3_server, lambda _, path: "403" if "uploads" in path else "") as faulty:
        storage.abort_uploads(f"{s3_through(faulty)}/out")
    assert "grant s3:ListBucketMultipartUploads" in caplog.text


@pytest.mark.faults
@pytest.mark.parametrize(
    "temporary",
    [
        "evilm.io.storage import temporary as t; made = t('memory://a/b')",
        "evilm.io.temporary import temporary_folder as t; made = t()",
    ],
    ids=["file for an object store", "folder"],
)
def test_killed_process_leaves_nothing_temporary(tmp_path: Path, temporary: str) -> None:
    code = f"""
import os, signal, time, psutil
from {temporary}
with made as path:
    is_folder = os.path.isdir(path)
    open(path + "/rows" if is_folder else path, "wb").write(b"rows")
    while is_folder and len(psutil.Process().children(recursive=True)) < 2:
        time.sleep(0.01)
    for child in psutil.Process().children(recursive=True):
        child.terminate()  # as systemd and Slurm do with all processes of a job
    time.sleep(0.5)
    assert os.path.exists(path)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    wait_for(lambda: not list(tmp_path.iterdir()), timeout_s=60)
