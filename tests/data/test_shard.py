"""Sharding from end to end: real files through Ray Data, bad ones aside, kills survived, equal bytes every time."""

import csv
import json
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from doors import files_of, kill, start, wait_for
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from video_files import write_video

from evilm.config.runs import ShardVideos
from evilm.data import job
from evilm.data.shard import shard_videos
from evilm.errors import ClusterError, ConfigError, ManifestError, ShardError
from evilm.shards import FrameManifest, read_group
from evilm.video.reasons import Reason

SMALL = {"sampling.frame_px": 64, "sampling.shard_clips": 4, "sampling.row_group_clips": 3}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 rows: 22 good clips in two splits, one broken, one missing, one doubled, one without a caption."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "videos" / "p").mkdir(parents=True)
    rows = []
    for number in range(23):
        write_video(folder / "videos" / "p" / f"{number}.mp4", num_frames=12, first_picture=number)
        rows.append([str(number), "p", f"clip {number}", "val" if number % 4 == 0 else "train"])
    broken = folder / "videos" / "p" / "22.mp4"
    broken.write_bytes(broken.read_bytes()[:-300])
    rows += [["99", "p", "gone", "train"], ["3", "p", "again", "train"], ["4", "p", " ", "train"]]
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["videoid", "page_dir", "name", "split"], *rows])
    return folder


def door(corpus: Path, out: Path, **settings: Any) -> ShardVideos:
    config = ShardVideos(manifest=str(corpus / "clips.csv"), videos=str(corpus / "videos"), out=str(out))
    return config.override(SMALL | settings)


def clips_of(out: Path) -> list[dict[str, Any]]:
    manifest = FrameManifest.load(str(out))
    rows = []
    for shard in manifest.shards:
        for group in range(len(shard.row_groups)):
            rows += read_group(
                f"{out}/{shard.file}", group, ["clip_id", "row", "split", "caption", "frames"]
            ).to_pylist()
    return rows


def quarantine_of(out: Path) -> dict[str, str]:
    rows = [row for path in (out / "quarantine").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {f"{row['clip_id']}/{row['record']}": row["reason"] for row in rows}


@pytest.fixture(scope="module")
def unbroken(corpus: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards made in one go by two workers."""
    out = tmp_path_factory.mktemp("unbroken") / "frames"
    summary = shard_videos(door(corpus, out, **{"cluster.num_workers": 2}))
    assert summary["clips"] == {"train": 16, "val": 6}
    return out


def test_shards_hold_every_good_clip_once(unbroken: Path) -> None:
    clips = clips_of(unbroken)
    assert sorted(int(clip["clip_id"]) for clip in clips) == list(range(22))
    assert all(clip["caption"] == f"clip {clip['clip_id']}" and len(clip["frames"]) == 4 for clip in clips)
    assert all(clip["split"] == ("val" if int(clip["clip_id"]) % 4 == 0 else "train") for clip in clips)
    manifest = FrameManifest.load(str(unbroken))
    assert [shard.num_clips for shard in manifest.of_split("train")] in ([4, 4, 4, 4, 0], [4, 4, 4, 3, 1], [4, 4, 4, 4])
    assert all(sum(shard.row_groups) == shard.num_clips for shard in manifest.shards)
    for shard in manifest.shards:
        shard.verify(str(unbroken))


def test_bad_rows_are_told(unbroken: Path) -> None:
    assert quarantine_of(unbroken) == {
        "22/23": Reason.TRUNCATED.value,
        "99/24": Reason.MISSING_FILE.value,
        "3/25": Reason.DUPLICATE_ID.value,
        "4/26": Reason.EMPTY_CAPTION.value,
    }
    summary = json.loads((unbroken / "summary.json").read_text())
    assert summary["num_rows"] == 26
    assert summary["num_quarantined"] == 4
    assert sum(summary["reasons"].values()) == 4


def test_no_place_of_this_machine_in_the_shards(unbroken: Path, corpus: Path) -> None:
    for name, data in files_of(unbroken).items():
        assert str(corpus).encode() not in data, name
        assert str(unbroken).encode() not in data, name


def test_same_bytes_with_another_number_of_workers(unbroken: Path, corpus: Path, tmp_path: Path) -> None:
    shard_videos(door(corpus, tmp_path / "frames"))
    assert files_of(tmp_path / "frames") == files_of(unbroken)


def test_a_finished_run_is_reused(unbroken: Path, corpus: Path) -> None:
    before = files_of(unbroken)
    assert shard_videos(door(corpus, unbroken))["reused"]
    assert files_of(unbroken) == before
    with pytest.raises(ConfigError, match=r"made with other settings .*jpeg_quality"):
        shard_videos(door(corpus, unbroken, **{"sampling.jpeg_quality": 80}))


def test_what_is_committed_is_not_done_again(unbroken: Path, corpus: Path, ray_local: Any, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    shard_videos(door(corpus, out))
    for name in ("summary.json", "manifest.json", "commits/train-00001.json", "commits/val-00000.json"):
        (out / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "commits").iterdir()}
    (out / "train-00001-0123456789ab.parquet").write_bytes(b"left by an attempt that was killed")
    shard_videos(door(corpus, out))
    assert files_of(out) == files_of(unbroken)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_too_many_failures(corpus: Path, ray_local: Any, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    with pytest.raises(ShardError, match=r"4 of 26 rows were quarantined \(duplicate_id 1, .*max_failed_share = 0\.12"):
        shard_videos(door(corpus, out, max_failed_share=0.12))
    assert not (out / "manifest.json").exists()
    assert len(quarantine_of(out)) == 4
    assert shard_videos(door(corpus, out, max_failed_share=0.2))["num_clips"] == 22  # the same folder goes on


def test_nothing_survives(ray_local: Any, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "clips.csv").write_text("videoid,name\na,hello\n")
    with pytest.raises(ShardError, match=r"1 of 1 rows were quarantined .*not_a_video 1, e\.g\. 'a'"):
        shard_videos(door(tmp_path, tmp_path / "frames", max_failed_share=1))
    write_video(tmp_path / "videos" / "a.mp4")
    assert shard_videos(door(tmp_path, tmp_path / "frames", max_failed_share=1))["num_clips"] == 1


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--videos is missing"):
        shard_videos(ShardVideos(manifest="a.csv", out=str(tmp_path)))
    with pytest.raises(ManifestError, match=r"cannot read .*gone\.csv"):
        shard_videos(ShardVideos(manifest=f"{tmp_path}/gone.csv", videos="v", out=str(tmp_path)))


def test_a_unit_that_kills_its_process_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        job.begin_attempt(str(tmp_path), "job", "train-00000", 2)
    with pytest.raises(ClusterError, match="died 3 times"):
        job.begin_attempt(str(tmp_path), "job", "train-00000", 2)
    job.begin_attempt(str(tmp_path), "another", "train-00000", 2)
    job.begin_attempt(str(tmp_path), "job", "train-00000", -1)


def test_limit(corpus: Path, ray_local: Any, tmp_path: Path) -> None:
    summary = shard_videos(door(corpus, tmp_path / "frames", limit=3))
    assert summary["num_rows"] == summary["num_clips"] == 3


def arguments(corpus: Path, out: Path) -> list[str]:
    return ["--manifest", str(corpus / "clips.csv"), "--videos", str(corpus / "videos"), "--out", str(out), *FLAGS]


@pytest.mark.slow
def test_sigkill_of_the_driver(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "frames"
    process = start("shard_videos", *arguments(corpus, out), "--tracking.no-enabled")
    wait_for(lambda: any(out.glob("commits/*.json")), process)
    kill(process, and_workers=True)
    assert not (out / "manifest.json").exists()
    assert 0 < len(list(out.glob("commits/*.json"))) < 7
    process = start("shard_videos", *arguments(corpus, out), "--tracking.no-enabled")
    printed, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints.decode()
    assert json.loads(printed.decode().splitlines()[-1])["num_clips"] == 22
    assert files_of(out) == files_of(unbroken)
    assert quarantine_of(out) == quarantine_of(unbroken)


def _is_task(process: psutil.Process) -> bool:
    """Whether this is a Ray worker that is making a shard right now."""
    try:
        title = "".join(process.cmdline()[:1])
    except psutil.Error:  # it ended meanwhile
        return False
    return "ray::" in title and ("_task" in title or "Map" in title)


@pytest.mark.slow
def test_sigkill_of_a_worker(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "frames"
    process = start("shard_videos", *arguments(corpus, out), "--tracking.no-enabled")
    wait_for(lambda: any(out.glob("commits/*.json")), process)
    busy: list[psutil.Process] = []

    def is_working() -> bool:
        """Between two tasks a worker's title says that it is idle."""
        busy[:] = [child for child in psutil.Process(process.pid).children(recursive=True) if _is_task(child)]
        return bool(busy)

    wait_for(is_working, process)
    for child in busy:
        child.kill()
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints.decode()
    assert files_of(out) == files_of(unbroken)


@pytest.mark.slow
def test_object_store(corpus: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        for name, value in (variables | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        store = S3FileSystem(endpoint_url=variables["AWS_ENDPOINT_URL"], key="x", secret="x")
        store.mkdir("bucket")
        store.put(f"{corpus}/", "bucket/corpus/", recursive=True)
        places = ["--manifest=s3://bucket/corpus/clips.csv", "--videos=s3://bucket/corpus/videos"]
        process = start("shard_videos", *places, "--out=s3://bucket/frames", *FLAGS, "--tracking.no-enabled")
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints.decode()
        store.get("bucket/frames/", f"{tmp_path}/frames/", recursive=True)
    finally:
        server.stop()
    assert files_of(tmp_path / "frames") == files_of(unbroken)
    assert quarantine_of(tmp_path / "frames") == quarantine_of(unbroken)


@pytest.mark.slow
def test_bad_set_through_the_door(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
    bad = shared_data / "bad"
    with (bad / "EXPECT.csv").open() as file:
        cases = [case for case in csv.DictReader(file) if case["csv"] in ("files.csv", "rows_main.csv")]
    for name in ("files.csv", "rows_main.csv"):
        out = tmp_path / name
        config = ShardVideos(manifest=str(bad / name), videos=str(bad / "files"), out=str(out)).override(SMALL)
        shard_videos(config)
        refused = {key.rpartition("/")[2]: reason for key, reason in quarantine_of(out).items()}
        for case in cases:
            if case["csv"] == name:
                wanted = None if case["expect"] == "accept" else case["reason_class"]
                assert refused.get(case["row"]) == wanted, case["case"]


@pytest.mark.slow
def test_real_clips_are_all_accepted(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    config = ShardVideos(manifest=str(shared_data / "clips.csv"), videos=str(shared_data / "clips"), out=str(out))
    summary = shard_videos(config.override({"sampling.shard_clips": 23, "cluster.num_workers": 2}))
    assert (summary["num_clips"], summary["reasons"]) == (92, {})
