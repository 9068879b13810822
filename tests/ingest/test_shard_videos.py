"""Sharding from end to end: real files through Ray Data, bad rows quarantined, equal bytes."""

import csv
import json
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evilm.config.data import FetchConfig
from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, ManifestError, StorageError, UsageError
from evilm.ingest.shard_videos import _finder, shard_videos
from evilm.ingest.source_videos import fetch_source
from evilm.manifests.rows import ClipRow
from evilm.shards import FrameManifest, read_group
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from helpers.commands import files_of, start
from helpers.small_corpus import SMALL, clips_of, in_this_process, quarantine_of, shard_config
from helpers.tables import write_csv
from helpers.video_files import write_video


@pytest.fixture(scope="module")
def frames(corpus: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards made in one go by two workers."""
    out = tmp_path_factory.mktemp("one_go") / "frames"
    summary = shard_videos(shard_config(corpus, out, **{"cluster.num_workers": 2}))
    assert summary["clips"] == {"train": 16, "val": 6}
    return out


def test_shards_hold_every_good_clip_once(frames: Path) -> None:
    clips = clips_of(frames)
    assert sorted(int(clip["clip_id"]) for clip in clips) == list(range(22))
    assert all(clip["captions"] == [f"clip {clip['clip_id']}"] and len(clip["frames"]) == 4 for clip in clips)
    assert all(clip["split"] == ("val" if int(clip["clip_id"]) % 4 == 0 else "train") for clip in clips)
    manifest = FrameManifest.load(str(frames))
    assert len(manifest.of_split("train")) == 5, "18 rows, of which two have no video"
    assert all(shard.num_clips in (2, 3, 4) for shard in manifest.shards)
    assert all(sum(shard.row_groups) == shard.num_clips for shard in manifest.shards)
    for shard in manifest.shards:
        shard.verify(str(frames))


def test_bad_rows_are_quarantined_with_reasons(frames: Path) -> None:
    assert quarantine_of(frames) == {
        "22/23": RejectReason.TRUNCATED.value,
        "99/24": RejectReason.MISSING_FILE.value,
        "3/25": RejectReason.DUPLICATE_ID.value,
        "4/26": RejectReason.EMPTY_CAPTION.value,
    }
    summary = json.loads((frames / "summary.json").read_text())
    assert summary["num_rows"] == 26
    assert summary["num_quarantined"] == 4
    assert sum(summary["reasons"].values()) == 4


def test_shards_contain_no_local_paths(frames: Path, corpus: Path) -> None:
    for name, data in files_of(frames).items():
        assert str(corpus).encode() not in data, name
        assert str(frames).encode() not in data, name


def test_bytes_do_not_depend_on_the_number_of_workers(frames: Path, corpus: Path, tmp_path: Path) -> None:
    shard_videos(shard_config(corpus, tmp_path / "frames"))
    assert files_of(tmp_path / "frames") == files_of(frames)


def test_finished_run_is_reused_and_other_settings_rejected(frames: Path, corpus: Path) -> None:
    before = files_of(frames)
    assert shard_videos(shard_config(corpus, frames))["reused"]
    assert files_of(frames) == before
    with pytest.raises(ConfigError, match=r"made with other settings .*jpeg_quality"):
        shard_videos(shard_config(corpus, frames, **{"sampling.jpeg_quality": 80}))


def test_committed_shards_are_not_made_again(frames: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    shard_videos(shard_config(corpus, out), in_this_process)
    for name in ("summary.json", "manifest.json", "commits/train-00001.*.json", "commits/val-00000.*.json"):
        next(out.glob(name)).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "commits").iterdir()}
    (out / "train-00001-0123456789ab.parquet").write_bytes(b"left by an attempt that was killed")
    shard_videos(shard_config(corpus, out), in_this_process)
    assert files_of(out) == files_of(frames)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_wrong_settings_are_rejected_in_one_line(corpus: Path, tmp_path: Path) -> None:
    good = {"manifest": str(corpus / "clips.csv"), "videos": str(corpus / "videos"), "out": str(tmp_path / "frames")}
    for values, error, told in (
        ({"out": ""}, UsageError, "--out is missing"),
        ({"manifest": ""}, UsageError, "--manifest is missing"),
        ({"videos": ""}, ConfigError, "--videos is missing"),
        ({"videos": f"{tmp_path}/gone"}, ConfigError, "--videos .*gone: there is no such folder"),
        ({"manifest": f"{tmp_path}/gone.csv"}, ManifestError, r"gone\.csv"),
        ({"retry": "fetch_eror"}, UsageError, r"--retry fetch_eror: no such reason .* use all, .* fetch_error, "),
        ({"retry": "duplicate_id"}, UsageError, "--retry duplicate_id: no such reason"),
    ):
        with pytest.raises(error, match=told) as caught:
            shard_videos(ShardVideos.model_validate(good | values))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "frames").exists()


def test_missing_buckets_and_folders_are_named(corpus: Path, s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--videos s3://evilm-gone/x: no such folder or bucket"):
        shard_videos(shard_config(corpus, tmp_path, videos="s3://evilm-gone/x"))
    with pytest.raises(ConfigError, match="no such folder or bucket"):
        shard_videos(shard_config(corpus, tmp_path, videos=f"{s3_bucket}/no/such/folder"))
    with pytest.raises(StorageError, match=r"cannot use s3://evilm-gone/frames/_runs/\S+: .*bucket does not exist"):
        shard_videos(shard_config(corpus, tmp_path).override({"out": "s3://evilm-gone/frames"}))


def test_missing_flag_exits_with_code_2(tmp_path: Path) -> None:
    process = start("shard_videos", "--manifest", "x.csv", "--tracking.no-enabled")
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 2
    assert complaints.decode().splitlines()[-1] == "error: --out is missing; name a folder"


def test_file_named_by_its_clip_may_be_cut_already(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a1_0", "a1_1", "whole", "long"):
        write_video(tmp_path / "videos" / f"{name}.mp4", num_frames=144)  # 6 s
    table, koala = tmp_path / "clips.csv", ["videoID", "timestamp", "caption", "clarity_score"]
    rows = [["a1_0", 3, 9], ["a1_1", 50, 56], ["whole", 1, 3], ["long", 30, 50]]
    write_csv(table, koala, *([name, f"['{start}', '{end}']", "x", "1"] for name, start, end in rows))
    config = shard_config(tmp_path, tmp_path / "frames")
    assert shard_videos(config, in_this_process)["reasons"] == {"bad_span": 1}
    tables = [pq.read_table(path) for path in (tmp_path / "frames").glob("*.parquet")]
    lengths = {row["clip_id"]: row["duration_s"] for each in tables for row in each.to_pylist()}
    assert lengths == {"a1_0": 6.0, "a1_1": 6.0, "whole": 2.0}
    kinetics = ["videoid", "start", "end", "name"]
    write_csv(table, kinetics, *([*row, "x"] for row in rows))
    flags = {"columns.start": "start", "columns.end": "end", "out": str(tmp_path / "others")}
    assert shard_videos(config.override(flags), in_this_process)["reasons"] == {"bad_span": 2}, "ids of videos"


def test_unexpected_error_costs_one_clip(tmp_path: Path) -> None:
    row = ClipRow(record=1, clip_id="a", split="train", captions=("x",), path="\ud800.mp4")
    ((_, error),) = fetch_source(Fetcher(str(tmp_path), FetchConfig()), [row]).pairs
    assert str(error) == "fetch_error: unexpected UnicodeEncodeError"


def test_planning_asks_no_server_for_urls(tmp_path: Path) -> None:
    """A URL that takes a connection and says nothing would hold up the plan."""
    config = ShardVideos(videos=str(tmp_path), fetch=FetchConfig(urls=True))
    is_missing, clip = (
        _finder(str(tmp_path), config),
        {"record": 1, "clip_id": "a", "split": "train", "captions": ("x",)},
    )
    (tmp_path / "here.mp4").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        assert not is_missing(ClipRow(**clip, path=url))
        assert not is_missing(ClipRow(**clip, path="gone.mp4", url=url))
    assert is_missing(ClipRow(**clip, path="gone.mp4"))
    assert not is_missing(ClipRow(**clip, path="here", needs_ending=True))


def test_limit_takes_the_first_rows(corpus: Path, tmp_path: Path) -> None:
    summary = shard_videos(shard_config(corpus, tmp_path / "frames", limit=3), in_this_process)
    assert summary["num_rows"] == summary["num_clips"] == 3
    assert "note" not in summary


def test_spans_of_several_manifests_are_cut(growing: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "evilm")
    for name, span in (("a", "0.1,0.2"), ("b", "0,0.25"), ("c", "7,9")):
        (growing / f"{name}.csv").write_text(f"videoid,name,from,to\n{ord(name) - 96},a clip,{span}\n")
    config = shard_config(growing, growing / "frames", **{"columns.start": "from", "columns.end": "to"})
    summary = shard_videos(config.override({"manifest": f"{growing}/?.csv"}), in_this_process)
    assert summary["reasons"] == {"bad_span": 1}
    assert "no clips of the split val: trainings on these shards are not evaluated" in summary["note"]
    assert summary["note"] in caplog.text
    columns = ["start_s", "end_s", "source", "source_uri"]
    rows = [
        tuple(row.values())
        for shard in FrameManifest.load(str(growing / "frames")).shards
        for row in read_group(f"{growing}/frames/{shard.file}", 0, columns).to_pylist()
    ]
    assert sorted(rows, key=str) == [(0.0, 0.25, "b.csv", "2.mp4"), (0.1, 0.2, "a.csv", "1.mp4")]


@pytest.mark.long
def test_bad_files_of_a_real_set_get_the_expected_reasons(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
    bad = shared_data / "bad"
    with (bad / "EXPECT.csv").open() as file:
        cases = [case for case in csv.DictReader(file) if case["csv"] in ("files.csv", "rows_main.csv")]
    for name in ("files.csv", "rows_main.csv"):
        out = tmp_path / name
        config = ShardVideos(manifest=str(bad / name), videos=str(bad / "files"), out=str(out), max_failed_share=0.9)
        config = config.override(SMALL)
        shard_videos(config)
        refused = {key.rpartition("/")[2]: reason for key, reason in quarantine_of(out).items()}
        for case in cases:
            if case["csv"] == name:
                wanted = None if case["expect"] == "accept" else case["reason_class"]
                assert refused.get(case["row"]) == wanted, case["case"]


@pytest.mark.long
def test_real_clips_are_all_accepted(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    config = ShardVideos(manifest=str(shared_data / "clips.csv"), videos=str(shared_data / "clips"), out=str(out))
    summary = shard_videos(config.override({"sampling.shard_clips": 23, "cluster.num_workers": 2}))
    assert (summary["num_clips"], summary["reasons"]) == (92, {})
