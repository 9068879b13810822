"""Sharding that is killed, interrupted, robbed of a node, of space, or of answers: nothing is lost or done twice."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3fs

from evilm.errors import StorageError
from evilm.ingest.shard_videos import shard_videos
from evilm.io import storage
from helpers.commands import ROOT, files_of, kill, start, wait_for
from helpers.gates import Gate, serve
from helpers.s3_faults import FaultyS3, at_random
from helpers.small_corpus import clips_of, make_corpus, quarantine_of, shard_config

_SHARDS = 24
_ONE, _OTHER = "17.mp4", "10.mp4"
"""Videos that come from a web server, which can withhold them: a job waits there as long as a test wants. The other one
is later in the plan."""
_VALUES = {
    "sampling.shard_clips": 1,
    "columns.url": "url",
    "fetch.urls": True,
    "fetch.allow_private": True,
    "fetch.timeout_s": 3000.0,
    "fetch.deadline_s": 3000.0,
}
_FLAGS = [
    "--sampling.frame-px=64", "--sampling.row-group-clips=3", "--sampling.shard-clips=1", "--columns.url=url",
    "--fetch.urls", "--fetch.allow-private", "--fetch.timeout-s=3000", "--fetch.deadline-s=3000",
    "--tracking.no-enabled",
]  # fmt: skip

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def gate() -> Gate:
    """Before the server of two of the videos."""
    return Gate()


@pytest.fixture(autouse=True)
def open_gate(gate: Gate) -> Iterator[None]:
    """Every test begins and ends with an open gate."""
    yield
    gate.open()


@pytest.fixture(scope="module")
def corpus(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The corpus, with two of its videos on the server instead of in the folder."""
    folder, web = make_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("web")
    for name in (_ONE, _OTHER):
        (folder / "videos" / "p" / name).rename(web / name)
    with serve(web, gate) as url:
        with (folder / "clips.csv").open() as file:
            header, *rows = csv.reader(file)
        with (folder / "clips.csv").open("w", newline="") as file:
            there = {_ONE: f"{url}/{_ONE}", _OTHER: f"{url}/{_OTHER}"}
            csv.writer(file).writerows([[*header, "url"], *([*row, there.get(f"{row[0]}.mp4", "")] for row in rows)])
        yield folder


@pytest.fixture(scope="module")
def unbroken(corpus: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one clip made in one go."""
    out = tmp_path_factory.mktemp("unbroken") / "frames"
    shard_videos(shard_config(corpus, out, **_VALUES, **{"cluster.num_workers": 2}))
    return out


def places(corpus: Path, out: Path) -> list[str]:
    return ["--manifest", str(corpus / "clips.csv"), "--videos", str(corpus / "videos"), "--out", str(out)]


def commits(out: Path) -> int:
    return len(list(out.glob("commits/*.json")))


def finish(process: subprocess.Popen[bytes], timeout_s: float = 300) -> dict[str, Any]:
    printed, complaints = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, complaints.decode()[-3000:]
    return json.loads(printed.decode().splitlines()[-1])


def assert_same(out: Path, unbroken: Path) -> None:
    assert files_of(out) == files_of(unbroken)
    assert quarantine_of(out) == quarantine_of(unbroken)
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("*attempt*"))


@pytest.mark.slow
def test_sigkill_of_the_driver(corpus: Path, unbroken: Path, tmp_path: Path, gate: Gate) -> None:
    out = tmp_path / "frames"
    gate.shut(_ONE)
    process = start("shard_videos", *places(corpus, out), *_FLAGS)
    wait_for(lambda: gate.holds(_ONE) and commits(out) > 0, process)
    kill(process, and_workers=True)
    before = commits(out)
    assert 0 < before < _SHARDS - 1
    assert not (out / "manifest.json").exists()
    gate.open()
    summary = shard_videos(shard_config(corpus, out, **_VALUES))
    assert (summary["num_clips"], summary["num_quarantined"]) == (22, 4)
    assert_same(out, unbroken)


@pytest.mark.long
@pytest.mark.restart
def test_ctrl_c_of_the_driver(corpus: Path, unbroken: Path, tmp_path: Path, gate: Gate) -> None:
    out = tmp_path / "frames"
    gate.shut(_OTHER)
    process = start("shard_videos", *places(corpus, out), *_FLAGS)
    wait_for(lambda: gate.holds(_OTHER) and commits(out) > 0, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=400)
    assert process.returncode == 130, complaints.decode()
    assert complaints.decode().splitlines()[-1] == "interrupted; the same command goes on from here"
    psutil.wait_procs(family, timeout=30)
    assert not (out / "manifest.json").exists()
    gate.open()
    shard_videos(shard_config(corpus, out, **_VALUES))
    assert_same(out, unbroken)


def busy_workers(among: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Ray workers that are making a shard right now."""
    found = []
    for process in among:
        try:
            title = "".join(process.cmdline()[:1])
        except psutil.Error:  # it ended meanwhile
            continue
        if "ray::" in title and ("make_shards" in title or "Map" in title):
            found.append(process)
    return found


@pytest.mark.slow
def test_sigkill_of_a_worker(corpus: Path, unbroken: Path, tmp_path: Path, gate: Gate) -> None:
    out, killed = tmp_path / "frames", list[int]()
    gate.shut(_ONE)

    def kill_the_worker() -> None:
        """Runs beside the job, whose worker waits for the server."""
        while not gate.holds(_ONE):
            time.sleep(0.05)
        for worker in busy_workers(psutil.Process().children(recursive=True)):
            worker.kill()
            killed.append(worker.pid)
        gate.open()

    thread = threading.Thread(target=kill_the_worker, daemon=True)
    thread.start()
    shard_videos(shard_config(corpus, out, **_VALUES))
    thread.join()
    assert killed
    assert_same(out, unbroken)


@pytest.mark.long
def test_loss_of_a_node(corpus: Path, unbroken: Path, tmp_path: Path, nodes: dict[str, Any], gate: Gate) -> None:
    out = tmp_path / "frames"
    flags = [*_FLAGS, "--cluster.num-workers=2"]
    gate.shut(_ONE, _OTHER)  # as many as nodes: each has a worker that waits
    process = start("shard_videos", *places(corpus, out), *flags, RAY_ADDRESS=nodes["address"])
    wait_for(lambda: gate.holds(_ONE, _OTHER) and commits(out) > 0, process)
    raylet = psutil.Process(nodes["pids"][0])
    assert busy_workers(raylet.children(recursive=True))
    lost = [raylet, *raylet.children(recursive=True)]
    for part in lost:  # the raylet first: it must not see its workers go
        part.kill()
    assert commits(out) < _SHARDS - 1
    gate.open()
    summary = finish(process)
    assert (summary["num_clips"], summary["num_quarantined"]) == (22, 4)
    assert_same(out, unbroken)


@pytest.fixture
def s3(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[FaultyS3], str]:
    """Puts a faulty server between this test, its processes and the session's store; gives the bucket."""

    def use(faulty: FaultyS3) -> str:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        s3fs.S3FileSystem.clear_instance_cache()
        return s3_bucket

    return use


@pytest.mark.long
def test_an_object_store_with_faults(
    corpus: Path, unbroken: Path, tmp_path: Path, s3_server: str, s3: Callable[[FaultyS3], str]
) -> None:
    sound = s3fs.S3FileSystem(endpoint_url=s3_server)
    with FaultyS3(s3_server, at_random(0.1)) as faulty:
        bucket = s3(faulty)
        sound.put(f"{corpus}/", f"{bucket}/corpus/", recursive=True)
        where = [f"--manifest={bucket}/corpus/clips.csv", f"--videos={bucket}/corpus/videos", f"--out={bucket}/frames"]
        summary = finish(start("shard_videos", *where, *_FLAGS, "--cluster.num-workers=2"))
        assert summary["reasons"] == {"duplicate_id": 1, "empty_caption": 1, "missing_file": 1, "truncated": 1}
        assert sum(faulty.counts[fault] for fault in ("500", "503", "drop", "lost", "cut", "silence")) > 20
        sound.get(f"{bucket}/frames/", f"{tmp_path}/frames/", recursive=True)
    assert_same(tmp_path / "frames", unbroken)
    assert len(clips_of(tmp_path / "frames")) == 22


def scripted(faults: Sequence[str], method: str = "PUT") -> Callable[[str, str], str]:
    """The first requests of a method fail in these ways."""
    left = list(faults)
    return lambda found, _: left.pop(0) if found == method and left else ""


@pytest.mark.parametrize("fault", ["500", "503", "drop", "lost", "cut", "silence"])
def test_a_commit_counts_once(s3_server: str, s3: Callable[[FaultyS3], str], fault: str) -> None:
    with FaultyS3(s3_server, scripted([fault, fault])) as faulty:
        uri = f"{s3(faulty)}/commits/x.json"
        assert storage.put_if_absent(uri, b"mine"), "also where the store took it and the answer was lost"
        assert faulty.counts[fault] > 0
        assert not storage.put_if_absent(uri, b"another's")
        assert storage.read_bytes(uri) == b"mine"


def test_files_arrive_whole(s3_server: str, s3: Callable[[FaultyS3], str], tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    with FaultyS3(s3_server, scripted(["lost", "503"])) as faulty:
        uri = f"{s3(faulty)}/x.bin"
        with storage.temporary(uri) as path:
            Path(path).write_bytes(data)
            storage.put_file(path, uri)
        assert not Path(path).exists()
        assert storage.read_bytes(uri) == data
    for fault in ("500", "cut", "silence"):
        with FaultyS3(s3_server, scripted([fault], "GET")) as faulty:
            s3(faulty)
            assert storage.read_bytes(uri) == data
            storage.get_file(uri, str(tmp_path / "x.bin"))
            assert (tmp_path / "x.bin").read_bytes() == data


def test_a_store_that_is_down(s3: Callable[[FaultyS3], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ATTEMPTS", "_S3_ATTEMPTS"):
        monkeypatch.setattr(storage, name, 1)
    with FaultyS3("http://127.0.0.1:9", at_random(0)) as faulty:
        bucket = s3(faulty)
    with pytest.raises(StorageError, match=r"cannot use s3://\S+: .*; check endpoint and credentials$"):
        storage.write_bytes(f"{bucket}/x", b"")


def test_a_local_copy_lasts_as_long_as_its_block(s3_bucket: str, tmp_path: Path) -> None:
    for uri in (str(tmp_path / "a"), f"{s3_bucket}/a"):
        storage.write_bytes(uri, b"abc")
        with storage.local_copy(uri) as path:
            assert Path(path).read_bytes() == b"abc"
        assert Path(path).exists() == storage.is_local(uri), "files of one's own stay"
        with pytest.raises(FileNotFoundError), storage.local_copy(uri + "b"):
            pass


def test_temporary_files_of_the_killed_are_swept(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "evilm-dead.tmp").write_bytes(b"of a process that was killed")
    with storage.temporary(f"{s3_bucket}/a") as one, storage.temporary(f"{s3_bucket}/b") as other:
        assert sorted(tmp_path.iterdir()) == sorted([Path(one), Path(other)]), "the first one is locked"
    with pytest.raises(RuntimeError), storage.temporary(f"{s3_bucket}/a"):
        raise RuntimeError("an error in the middle")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers.small_corpus import shard_config
from evilm.ingest import shard_plan
from evilm.ingest.shard_writer import ShardJob, make_shard
from evilm.manifests.reader import read_manifests
from evilm.errors import StorageError
from evilm.io.outputs import Output
config, out = shard_config(Path({corpus!r}), Path({out!r})), {out!r}
with Output(config, out, {{}}) as output:
    made = shard_plan.plan_rows(output, read_manifests(config), "m", [], 0, 100, lambda row: False)
free = Path(out, "ballast")
free.write_bytes(bytes(120_000))
work = ShardJob(out, 1, config.videos, {{made.folder: made.plan_id}}, config.sampling, config.fetch, 0.5, 0)
try:
    make_shard(work, f"{{made.folder}}/train-00000")
except StorageError as error:
    print(error)
print(sorted(path.name for path in Path(out).iterdir()))
"""


def test_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    code = FULL_DISK.format(tests=str(ROOT / "tests"), corpus=str(corpus), out=str(out))
    mount = f'mount -t tmpfs -o size=160k none {out} && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this system lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    told, left = done.stdout.splitlines()
    assert told.startswith(f"no space left for {out}/train-00000"), told
    assert told.endswith("free some, or choose another place (temporary files go to TMPDIR)")
    assert left == "['_attempts', '_plan', '_runs', 'ballast', 'quarantine', 'run.json']", "no part of a shard stays"
