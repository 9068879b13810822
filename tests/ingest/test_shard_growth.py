"""Shards of a manifest that grew, clips tried again, a larger limit, shards of another version."""

import json
import shutil
from pathlib import Path

import pytest

from evilm.errors import ConfigError, ShardError
from evilm.ingest.shard_videos import shard_videos
from evilm.shards import FrameManifest
from evilm.video import decoder_process
from helpers.commands import files_of
from helpers.small_corpus import clips_of, in_this_process, quarantine_of, shard_config
from helpers.tables import write_csv

HEADER = ["videoid", "name"]


def test_shards_of_another_version_need_overwrite(growing: Path) -> None:
    config = shard_config(growing, growing / "frames")
    shard_videos(config, in_this_process)
    shutil.rmtree(growing / "frames" / "_runs")  # which earlier versions did not have
    place = growing / "frames" / "manifest.json"
    place.write_text(place.read_text().replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$"):
        shard_videos(config, in_this_process)
    write_csv(growing / "clips.csv", HEADER, *([str(number), f"clip {number}"] for number in range(12)))
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$"):
        shard_videos(config, in_this_process)
    assert '"schema_version": 1' in place.read_text()
    assert shard_videos(config.override({"overwrite": True}), in_this_process)["num_clips"] == 12


def test_rows_added_to_a_manifest_become_new_shards(growing: Path) -> None:
    out = growing / "frames"
    config = shard_config(growing, out)
    first = shard_videos(config, in_this_process)
    before = files_of(out)
    more = [[str(n), f"clip {n}"] for n in range(16)]
    write_csv(growing / "clips.csv", HEADER, ["30", "gone"], *more, ["15", "again"])
    second = shard_videos(config, in_this_process)
    assert (second["num_clips"], second["num_rows"]) == (16, 18)
    assert second["reasons"] == {"duplicate_id": 1, "missing_file": 1}
    assert second["fingerprint"] != first["fingerprint"]
    after = files_of(out)
    assert {name: data for name, data in after.items() if name in before and name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert sorted(int(clip["clip_id"]) for clip in clips_of(out)) == list(range(16))
    names = [shard.file.rpartition("-")[0] for shard in FrameManifest.load(str(out)).shards]
    assert names == [f"train-{number:05d}" for number in range(5)], "10 clips in three shards, then 7 planned in two"
    assert [each["num_clips"] for each in FrameManifest.load(str(out)).generations] == [10, 6]
    assert shard_videos(config, in_this_process)["reused"]
    write_csv(growing / "clips.csv", HEADER, *([str(number), f"clip {number}"] for number in range(9)))
    with pytest.raises(ConfigError, match=r"8 rows are gone .*--overwrite"):
        shard_videos(config, in_this_process)
    assert json.loads((out / "summary.json").read_text())["num_clips"] == 16, "what was there stays"
    assert shard_videos(config.override({"overwrite": True}), in_this_process)["num_clips"] == 9


def test_limit_may_grow_but_not_shrink(growing: Path) -> None:
    config = shard_config(growing, growing / "frames")
    assert shard_videos(config.override({"limit": 3}), in_this_process)["num_clips"] == 3
    assert shard_videos(config.override({"limit": 5}), in_this_process)["num_clips"] == 5
    assert shard_videos(config, in_this_process)["num_clips"] == 10
    with pytest.raises(ConfigError, match="5 rows are gone or cut off by --limit"):
        shard_videos(config.override({"limit": 5}), in_this_process)


def test_quarantined_clips_are_retried_on_request(growing: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "evilm")
    videos, out = growing / "videos", growing / "frames"
    for number in (2, 3, 5):
        (videos / f"{number}.mp4").rename(videos / f"{number}.away")
    whole = (videos / "7.mp4").read_bytes()
    (videos / "7.mp4").unlink()
    (videos / "7.mp4").write_bytes(whole[:-200])
    config = shard_config(growing, out)
    summary = shard_videos(config, in_this_process)
    assert summary["reasons"] == {"missing_file": 3, "truncated": 1}
    assert "3 quarantined clips may succeed on a retry: --retry missing_file" in caplog.text
    assert summary["examples"]["truncated"][0] == "7"
    before = files_of(out)

    assert shard_videos(config, in_this_process)["reused"], "nothing is tried that nobody asked for"
    assert shard_videos(config.override({"retry": "fetch_timeout"}), in_this_process)["reused"]
    (videos / "2.away").rename(videos / "2.mp4")
    (videos / "3.away").rename(videos / "3.mp4")
    summary = shard_videos(config.override({"retry": "missing_file,fetch_error"}), in_this_process)
    assert (summary["num_clips"], summary["num_rows"], summary["num_quarantined"]) == (8, 10, 2)
    assert summary["reasons"] == {"missing_file": 1, "truncated": 1}
    assert set(quarantine_of(out)) == {"5/6", "7/8"}
    assert all(files_of(out)[name] == data for name, data in before.items() if name != "manifest.json")

    (videos / "7.mp4").write_bytes(whole)
    (videos / "5.away").rename(videos / "5.mp4")
    write_csv(growing / "clips.csv", HEADER, *([str(number), f"clip {number}"] for number in range(12)))
    summary = shard_videos(config.override({"retry": "all"}), in_this_process)
    assert (summary["num_clips"], summary["reasons"], summary["num_rows"]) == (12, {}, 12)
    assert quarantine_of(out) == {}
    assert sorted(int(clip["clip_id"]) for clip in clips_of(out)) == list(range(12))
    kinds = [each["kind"] for each in FrameManifest.load(str(out)).generations]
    assert kinds == ["rows", "retry", "rows", "retry"]


def test_clip_is_retried_with_a_longer_time_limit(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = growing / "frames"
    config = shard_config(growing, out)
    fingerprint = shard_videos(config, in_this_process)["fingerprint"]
    write_csv(growing / "clips.csv", HEADER, *([str(number), f"clip {number}"] for number in range(11)))
    monkeypatch.setattr(decoder_process, "_S_PER_MB", 0.0)
    hurried = config.override({"sampling.decode_timeout_s": 1e-6})
    assert shard_videos(hurried, in_this_process)["reasons"] == {"decode_timeout": 1}
    patient = config.override({"sampling.decode_timeout_s": 90, "retry": "decode_timeout"})
    assert shard_videos(patient, in_this_process)["num_clips"] == 11
    write_csv(growing / "clips.csv", HEADER, *([str(number), f"clip {number}"] for number in range(10)))
    other = patient.override({"out": str(growing / "other")})
    assert shard_videos(other, in_this_process)["fingerprint"] == fingerprint, "the time limit decides nothing"


def test_interrupted_retry_continues(growing: Path) -> None:
    videos, out = growing / "videos", growing / "frames"
    (videos / "2.mp4").rename(videos / "2.away")
    config = shard_config(growing, out, retry="all")
    assert shard_videos(config, in_this_process)["reasons"] == {"missing_file": 1}
    for name in ("summary.json", "manifest.json", "commits/train-00003.*.json"):
        next(out.glob(name)).unlink()
    summary = shard_videos(config, in_this_process)
    assert summary["generations"] == 2, "the second try was there already; it was done, not planned once more"
    assert summary["reasons"] == {"missing_file": 1}
