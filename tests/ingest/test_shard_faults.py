"""Sharding that is killed, interrupted, or loses a node, space or answers: nothing is lost or done twice."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3fs

from evilm.ingest.shard_videos import shard_videos
from helpers.commands import files_of, finish, kill, start, wait_for
from helpers.gates import Gate
from helpers.paths import ROOT
from helpers.s3_faults import FaultyS3, Through, at_random
from helpers.small_corpus import SERVED, clips_of, quarantine_of, shard_config

_SHARDS = 24
_ONE, _OTHER = SERVED
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
def undisturbed(served_corpus: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one clip made in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "frames"
    shard_videos(shard_config(served_corpus, out, **_VALUES, **{"cluster.num_workers": 2}))
    return out


def places(served_corpus: Path, out: Path) -> list[str]:
    return [
        "--manifest",
        str(served_corpus / "clips.csv"),
        "--videos",
        str(served_corpus / "videos"),
        "--out",
        str(out),
    ]


def commits(out: Path) -> int:
    return len(list(out.glob("commits/*.json")))


def assert_same(out: Path, undisturbed: Path) -> None:
    assert files_of(out) == files_of(undisturbed)
    assert quarantine_of(out) == quarantine_of(undisturbed)
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("*attempt*"))


@pytest.mark.long
@pytest.mark.restart
def test_killed_driver_continues_to_equal_shards(
    served_corpus: Path, undisturbed: Path, tmp_path: Path, gate: Gate
) -> None:
    out = tmp_path / "frames"
    gate.shut(_ONE)
    process = start("shard_videos", *places(served_corpus, out), *_FLAGS)
    wait_for(lambda: gate.holds(_ONE) and commits(out) > 0, process)
    kill(process, and_workers=True)
    before = commits(out)
    assert 0 < before < _SHARDS - 1
    assert not (out / "manifest.json").exists()
    gate.open()
    summary = shard_videos(shard_config(served_corpus, out, **_VALUES))
    assert (summary["num_clips"], summary["num_quarantined"]) == (22, 4)
    assert_same(out, undisturbed)


@pytest.mark.long
@pytest.mark.restart
def test_interrupted_driver_continues_to_equal_shards(
    served_corpus: Path, undisturbed: Path, tmp_path: Path, gate: Gate
) -> None:
    out = tmp_path / "frames"
    gate.shut(_OTHER)
    process = start("shard_videos", *places(served_corpus, out), *_FLAGS)
    wait_for(lambda: gate.holds(_OTHER) and commits(out) > 0, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=400)
    assert process.returncode == 130, complaints.decode()
    assert complaints.decode().splitlines()[-1] == "interrupted; run the same command again to continue"
    psutil.wait_procs(family, timeout=30)
    assert not (out / "manifest.json").exists()
    gate.open()
    shard_videos(shard_config(served_corpus, out, **_VALUES))
    assert_same(out, undisturbed)


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
def test_killed_worker_is_replaced(served_corpus: Path, undisturbed: Path, tmp_path: Path, gate: Gate) -> None:
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
    shard_videos(shard_config(served_corpus, out, **_VALUES))
    thread.join()
    assert killed
    assert_same(out, undisturbed)


@pytest.mark.long
def test_lost_node_costs_no_shard(
    served_corpus: Path, undisturbed: Path, tmp_path: Path, nodes: dict[str, Any], gate: Gate
) -> None:
    out = tmp_path / "frames"
    flags = [*_FLAGS, "--cluster.num-workers=2"]
    gate.shut(_ONE, _OTHER)  # as many as nodes: each has a worker that waits
    process = start("shard_videos", *places(served_corpus, out), *flags, RAY_ADDRESS=nodes["address"])
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
    assert_same(out, undisturbed)


@pytest.mark.long
def test_shards_on_a_faulty_s3_equal_undisturbed_ones(
    served_corpus: Path, undisturbed: Path, tmp_path: Path, s3_server: str, s3_through: Through
) -> None:
    sound = s3fs.S3FileSystem(endpoint_url=s3_server)
    with FaultyS3(s3_server, at_random(0.1)) as faulty:
        bucket = s3_through(faulty)
        sound.put(f"{served_corpus}/", f"{bucket}/corpus/", recursive=True)
        where = [f"--manifest={bucket}/corpus/clips.csv", f"--videos={bucket}/corpus/videos", f"--out={bucket}/frames"]
        summary = finish(start("shard_videos", *where, *_FLAGS, "--cluster.num-workers=2"))
        assert summary["reasons"] == {"duplicate_id": 1, "empty_caption": 1, "missing_file": 1, "truncated": 1}
        assert sum(faulty.counts[fault] for fault in ("500", "503", "drop", "lost", "cut", "silence")) > 20
        sound.get(f"{bucket}/frames/", f"{tmp_path}/frames/", recursive=True)
    assert_same(tmp_path / "frames", undisturbed)
    assert len(clips_of(tmp_path / "frames")) == 22


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


def test_full_disk_leaves_no_part_of_a_shard(served_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    code = FULL_DISK.format(tests=str(ROOT / "tests"), corpus=str(served_corpus), out=str(out))
    mount = f'mount -t tmpfs -o size=160k none {out} && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this system lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    told, left = done.stdout.splitlines()
    assert told.startswith(f"no space left for {out}/train-00000"), told
    assert told.endswith("free some, or choose another path (temporary files go to TMPDIR)")
    assert left == "['_attempts', '_plan', '_runs', 'ballast', 'quarantine', 'run.json']", "no part of a shard stays"
