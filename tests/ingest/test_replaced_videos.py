"""Videos that are replaced after they were sharded."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs

from evilm.errors import HaltedError
from evilm.ingest import changed_sources
from evilm.ingest.shard_videos import shard_videos
from helpers.small_corpus import in_this_process, make_clips, make_corpus, shard_config
from helpers.video_files import write_video


@pytest.mark.parametrize("where", ["local", "s3"])
def test_replaced_video_is_reported_by_the_next_run(
    where: str, tmp_path: Path, s3_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, videos = make_corpus(tmp_path / "corpus"), f"{s3_bucket}/videos"
    replaced, gone = (corpus / "videos" / "p" / name for name in ("5.mp4", "6.mp4"))
    if where == "s3":
        s3fs.S3FileSystem().put(f"{corpus}/videos/", f"{videos}/", recursive=True)
    config = shard_config(corpus, tmp_path / "out")
    config = config.override({"videos": videos}) if where == "s3" else config
    first = shard_videos(config, in_this_process)
    again = shard_videos(config, in_this_process)
    assert again == first | {"reused": True}

    write_video(replaced, num_frames=30, first_picture=50)
    gone.unlink()
    if where == "s3":
        s3fs.S3FileSystem().put(str(replaced), f"{videos}/p/5.mp4")
        s3fs.S3FileSystem().rm(f"{videos}/p/6.mp4")
    with caplog.at_level(logging.WARNING):
        again = shard_videos(config, in_this_process)
    assert again["changed_sources"] == ["p/5.mp4"]
    assert again["fingerprint"] == first["fingerprint"]
    assert "1 of 22 videos compared have changed since they were sharded: p/5.mp4" in caplog.text
    assert shard_videos(config.override({"overwrite": True}), in_this_process).get("changed_sources") is None


def test_replaced_video_is_reported_before_shards_are_published(tmp_path: Path) -> None:
    corpus = make_clips(tmp_path / "corpus", 8)
    config = shard_config(corpus, tmp_path / "out")

    def first_only(todo: Sequence[str], *rest: Any) -> Iterator[dict[str, Any]]:
        yield from in_this_process(todo[:1], *rest)
        raise HaltedError("killed")

    with pytest.raises(HaltedError):
        shard_videos(config, first_only)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (file,) = (tmp_path / "out").glob("*.parquet")
    sharded = sorted(pq.read_table(file)["source_uri"].to_pylist())
    for path in (corpus / "videos" / "p").iterdir():
        write_video(path, num_frames=30, first_picture=50)
    assert len(sharded) == 4
    assert shard_videos(config, in_this_process)["changed_sources"] == sharded


@pytest.mark.parametrize("where", ["local", "s3"])
def test_replacement_of_the_same_size_is_told_from_a_copy(where: str, tmp_path: Path, s3_bucket: str) -> None:
    corpus, store = make_clips(tmp_path / "corpus", 3), s3fs.S3FileSystem()
    folder = corpus / "videos" / "p"

    def upload() -> None:
        store.invalidate_cache()
        if where == "s3":
            store.put(f"{corpus}/videos/", f"{s3_bucket}/videos/", recursive=True)

    upload()
    config = shard_config(corpus, tmp_path / "out")
    config = config.override({"videos": f"{s3_bucket}/videos"}) if where == "s3" else config
    shard_videos(config, in_this_process)
    for shard in (tmp_path / "out").glob("*.parquet"):
        os.utime(shard, (shard.stat().st_mtime - 5,) * 2)  # S3 tells whole seconds

    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    upload()
    assert "changed_sources" not in shard_videos(config, in_this_process), "a copy has other times and the same bytes"

    data, time = bytearray((folder / "1.mp4").read_bytes()), (folder / "1.mp4").stat().st_mtime
    data[-1] ^= 1
    (folder / "1.mp4").write_bytes(data)
    os.utime(folder / "1.mp4", (time - 100, time - 100))  # as tools do that keep times
    upload()
    assert shard_videos(config, in_this_process)["changed_sources"] == ["p/1.mp4"]


def test_little_is_read_to_find_replaced_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_clips(tmp_path / "corpus", 4)
    config = shard_config(corpus, tmp_path / "out")
    shard_videos(config, in_this_process)
    videos = sorted((corpus / "videos" / "p").iterdir())
    for path in videos:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(changed_sources, "_MOST_HASHED_BYTES", 2 * max(path.stat().st_size for path in videos))
    assert 2 <= len(shard_videos(config, in_this_process)["changed_sources"]) < 4
