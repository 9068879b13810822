"""Videos that are replaced after they were sharded."""

import logging
from pathlib import Path

import pytest
import s3fs

from evilm.ingest.shard_videos import shard_videos
from helpers.small_corpus import in_this_process, make_corpus, shard_config
from helpers.video_files import write_video


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_replaced_video_is_reported_by_the_next_run(
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
    assert "1 of 22 videos compared have another size than when they were sharded: p/5.mp4" in caplog.text
    assert shard_videos(config.override({"overwrite": True}), in_this_process).get("changed_sources") is None
