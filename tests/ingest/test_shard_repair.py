"""Shards that are lost, damaged or never stored: written again with equal bytes, or refused."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import s3fs

from evilm.errors import ShardError
from evilm.ingest.shard_videos import shard_videos
from evilm.io import storage
from evilm.shards import FrameManifest
from helpers.commands import files_of, finish, start
from helpers.s3_faults import FaultyS3
from helpers.small_corpus import SMALL, in_this_process, shard_config
from helpers.video_files import write_video

_ONE_EACH = {"sampling.shard_clips": 1, "sampling.row_group_clips": 1}


def test_lost_and_damaged_shards_are_repaired(good_corpus: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "frames"
    made = shard_videos(shard_config(good_corpus, out), in_this_process)
    before, (lost, damaged, *_) = files_of(out), sorted(out.glob("*.parquet"))
    lost.unlink()
    caplog.set_level(logging.INFO, "evilm")
    again = shard_videos(shard_config(good_corpus, out), in_this_process)
    assert f"1 shards are missing from {out}, e.g. {lost.name}; writing them again" in caplog.text
    assert (again["fingerprint"], again.get("reused"), files_of(out)) == (made["fingerprint"], None, before)

    lost.unlink()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    for path in out.glob("*.arrow"):
        path.write_bytes(b"damaged")
    repaired = shard_videos(shard_config(good_corpus, out, repair=True), in_this_process)
    assert (repaired["fingerprint"], files_of(out)) == (made["fingerprint"], before)
    assert repaired["num_repaired"] == 2
    assert all(path.read_bytes() != b"damaged" for path in out.glob("*.arrow"))
    assert shard_videos(shard_config(good_corpus, out), in_this_process)["reused"]


def test_shard_whose_video_changed_is_not_repaired(good_corpus: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "frames"
    (videos / "p").mkdir(parents=True)
    for path in (good_corpus / "videos" / "p").iterdir():
        (videos / "p" / path.name).symlink_to(path)
    config = shard_config(good_corpus, out).override({"videos": str(videos), "fetch.follow_links": True})
    shard_videos(config, in_this_process)
    before = files_of(out)
    (videos / "p" / "3.mp4").unlink()
    write_video(videos / "p" / "3.mp4", num_frames=6, first_picture=77)
    for path in out.glob("*.parquet"):
        path.unlink()
    with pytest.raises(
        ShardError,
        match=r"cannot be repaired: the rebuilt file differs \(SHA-256 .*, expected \w{12}\), because .* have changed",
    ):
        shard_videos(config, in_this_process)
    assert (out / "manifest.json").read_bytes() == before["manifest.json"]
    (videos / "p" / "3.mp4").unlink()
    (videos / "p" / "3.mp4").symlink_to(good_corpus / "videos" / "p" / "3.mp4")
    shard_videos(config, in_this_process)
    assert files_of(out) == before


@pytest.mark.parametrize("retry", ["", "missing_file"])
def test_repaired_shard_lacks_the_clips_that_it_lacked_before(
    retry: str, good_corpus: Path, tmp_path: Path, ray_local: Any, caplog: Any
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "frames"
    shutil.copytree(good_corpus / "videos", videos)
    (videos / "p" / "3.mp4").rename(tmp_path / "3.mp4")
    config = shard_config(good_corpus, out).override({"videos": str(videos)})
    made = shard_videos(config, in_this_process)
    assert (made["num_clips"], made["reasons"]) == (19, {"missing_file": 1})
    (tmp_path / "3.mp4").rename(videos / "p" / "3.mp4")
    if retry:
        made = shard_videos(config.override({"retry": retry}), in_this_process)
        assert (made["num_clips"], made["reasons"]) == (20, {})
    before = files_of(out)
    for path in out.glob("train-*.parquet"):
        path.unlink()
    caplog.set_level(logging.INFO, "evilm")
    again = shard_videos(config.override({"repair": True}))
    assert caplog.text.count("was lost or damaged and was rewritten") == again["num_repaired"] > 0
    assert (again["fingerprint"], files_of(out)) == (made["fingerprint"], before)
    assert again["reasons"] == made["reasons"]


def test_lost_shard_without_its_videos_cannot_be_repaired(good_corpus: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "frames"
    shutil.copytree(good_corpus / "videos", videos)
    config = shard_config(good_corpus, out, **_ONE_EACH, max_failed_share=1.0).override({"videos": str(videos)})
    shard_videos(config, in_this_process)
    for path in (*out.glob("train-00003-*"), *(videos / "p").iterdir()):
        path.unlink()
    with pytest.raises(
        ShardError, match=r"train-00003 cannot be repaired: .* \(SHA-256 none: no clip, expected \w{12}\)"
    ):
        shard_videos(config, in_this_process)


@pytest.mark.long
@pytest.mark.faults
def test_shard_that_cannot_be_stored_is_named_and_made_later(
    good_corpus: Path, s3_server: str, s3_bucket: str, monkeypatch: Any
) -> None:
    """Nineteen of twenty shards are published, the other is named, and the same command finishes once it is taken."""
    broken = {"is": True}

    def choose(method: str, path: str) -> str:
        return "503" if broken["is"] and method in ("PUT", "POST") and "/train-00007-" in path else ""

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | _ONE_EACH).items()]
    places = [f"--manifest={good_corpus}/clips.csv", f"--videos={good_corpus}/videos", f"--out={s3_bucket}/frames"]
    with FaultyS3(s3_server, choose) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        s3fs.S3FileSystem.clear_instance_cache()
        process = start("shard_videos", *places, *flags, "--tracking.no-enabled", AWS_ENDPOINT_URL=faulty.url)
        _, said = process.communicate(timeout=900)
        last = said.decode().splitlines()[-1]
        assert process.returncode == 1, said.decode()
        assert last.startswith("error: frames: 1 of 20 shards failed, 19 are done: ")
        assert "train-00007: cannot use" in last
        partial_manifest = FrameManifest.load(f"{s3_bucket}/frames")
        assert (len(partial_manifest.shards), partial_manifest.num_missing) == (19, 1)
        assert not storage.exists(f"{s3_bucket}/frames/summary.json")
        broken["is"] = False
        process = start("shard_videos", *places, *flags, "--tracking.no-enabled", AWS_ENDPOINT_URL=faulty.url)
        assert finish(process, timeout_s=600)["num_clips"] == 20
        whole = FrameManifest.load(f"{s3_bucket}/frames")
        assert (len(whole.shards), whole.num_missing) == (20, 0)
        assert {shard.file for shard in partial_manifest.shards} < {shard.file for shard in whole.shards}
        print(last)
