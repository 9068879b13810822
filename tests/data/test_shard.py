"""Sharding from end to end: real files through Ray Data, bad ones aside, growth, second tries, equal bytes."""

import csv
import json
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evilm.config.data import FetchConfig, FramesConfig
from evilm.config.stages import ShardVideos
from evilm.errors import (
    ClusterError,
    ConfigError,
    DecodeError,
    ManifestError,
    ShardError,
    SourceError,
    StorageError,
    UsageError,
)
from evilm.ingest import shard_plan
from evilm.ingest.failure_budget import too_many
from evilm.ingest.merge import CommitLog
from evilm.ingest.quarantine import RejectCounts
from evilm.ingest.shard_videos import _finder, shard_videos
from evilm.ingest.shard_writer import ShardJob, _get, make_shard
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs import commits
from evilm.manifests.rows import ClipRow
from evilm.shards import FrameManifest, read_group
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from helpers.commands import files_of, start
from helpers.small_corpus import SMALL, clips_of, in_this_process, make_corpus, quarantine_of, shard_config
from helpers.video_files import write_video


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards made in one go by two workers."""
    out = tmp_path_factory.mktemp("unbroken") / "frames"
    summary = shard_videos(shard_config(corpus, out, **{"cluster.num_workers": 2}))
    assert summary["clips"] == {"train": 16, "val": 6}
    return out


def test_shards_hold_every_good_clip_once(unbroken: Path) -> None:
    clips = clips_of(unbroken)
    assert sorted(int(clip["clip_id"]) for clip in clips) == list(range(22))
    assert all(clip["captions"] == [f"clip {clip['clip_id']}"] and len(clip["frames"]) == 4 for clip in clips)
    assert all(clip["split"] == ("val" if int(clip["clip_id"]) % 4 == 0 else "train") for clip in clips)
    manifest = FrameManifest.load(str(unbroken))
    assert len(manifest.of_split("train")) == 5, "18 rows, of which two have no video"
    assert all(shard.num_clips in (2, 3, 4) for shard in manifest.shards)
    assert all(sum(shard.row_groups) == shard.num_clips for shard in manifest.shards)
    for shard in manifest.shards:
        shard.verify(str(unbroken))


def test_bad_rows_are_told(unbroken: Path) -> None:
    assert quarantine_of(unbroken) == {
        "22/23": RejectReason.TRUNCATED.value,
        "99/24": RejectReason.MISSING_FILE.value,
        "3/25": RejectReason.DUPLICATE_ID.value,
        "4/26": RejectReason.EMPTY_CAPTION.value,
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
    shard_videos(shard_config(corpus, tmp_path / "frames"))
    assert files_of(tmp_path / "frames") == files_of(unbroken)


def test_a_finished_run_is_reused(unbroken: Path, corpus: Path) -> None:
    before = files_of(unbroken)
    assert shard_videos(shard_config(corpus, unbroken))["reused"]
    assert files_of(unbroken) == before
    with pytest.raises(ConfigError, match=r"made with other settings .*jpeg_quality"):
        shard_videos(shard_config(corpus, unbroken, **{"sampling.jpeg_quality": 80}))


def test_what_is_committed_is_not_done_again(unbroken: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    shard_videos(shard_config(corpus, out), in_this_process)
    for name in ("summary.json", "manifest.json", "commits/train-00001.*.json", "commits/val-00000.*.json"):
        next(out.glob(name)).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "commits").iterdir()}
    (out / "train-00001-0123456789ab.parquet").write_bytes(b"left by an attempt that was killed")
    shard_videos(shard_config(corpus, out), in_this_process)
    assert files_of(out) == files_of(unbroken)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_too_many_failures(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    with pytest.raises(ShardError, match=r"4 of 26 rows were quarantined \(duplicate_id 1, .*max_failed_share = 0\.12"):
        shard_videos(shard_config(corpus, out, max_failed_share=0.12), in_this_process)
    assert not (out / "manifest.json").exists()
    assert len(quarantine_of(out)) == 4
    assert (
        shard_videos(shard_config(corpus, out, max_failed_share=0.2), in_this_process)["num_clips"] == 22
    )  # the same folder goes on


def test_nothing_survives(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "clips.csv").write_text("videoid,name\na,hello\n")
    with pytest.raises(ShardError, match=r"1 of 1 rows were quarantined .*not_a_video 1, e\.g\. 'a'"):
        shard_videos(shard_config(tmp_path, tmp_path / "frames", max_failed_share=1), in_this_process)
    write_video(tmp_path / "videos" / "a.mp4")
    assert (
        shard_videos(shard_config(tmp_path, tmp_path / "frames", max_failed_share=1), in_this_process)["num_clips"] == 1
    )


def test_messages(corpus: Path, tmp_path: Path) -> None:
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


def test_buckets_that_do_not_exist(corpus: Path, s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--videos s3://evilm-gone/x: there is no such folder or bucket"):
        shard_videos(shard_config(corpus, tmp_path, videos="s3://evilm-gone/x"))
    with pytest.raises(ConfigError, match="there is no such folder or bucket"):
        shard_videos(shard_config(corpus, tmp_path, videos=f"{s3_bucket}/no/such/folder"))
    with pytest.raises(StorageError, match=r"cannot use s3://evilm-gone/frames/_runs/\S+: .*bucket does not exist"):
        shard_videos(shard_config(corpus, tmp_path).override({"out": "s3://evilm-gone/frames"}))


def test_shards_of_another_version(growing: Path) -> None:
    config = shard_config(growing, growing / "frames")
    shard_videos(config, in_this_process)
    shutil.rmtree(growing / "frames" / "_runs")  # which earlier versions did not have
    place = growing / "frames" / "manifest.json"
    place.write_text(place.read_text().replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$"):
        shard_videos(config, in_this_process)
    write_manifest(growing / "clips.csv", [[str(number), f"clip {number}"] for number in range(12)])
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$"):
        shard_videos(config, in_this_process)
    assert '"schema_version": 1' in place.read_text()
    assert shard_videos(config.override({"overwrite": True}), in_this_process)["num_clips"] == 12


def test_missing_flags_are_usage_errors(tmp_path: Path) -> None:
    process = start("shard_videos", "--manifest", "x.csv", "--tracking.no-enabled")
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 2
    assert complaints.decode().splitlines()[-1] == "error: --out is missing; name a folder"


def test_a_unit_that_kills_its_process_again_and_again(tmp_path: Path) -> None:
    def attempt(run: int, max_failures: int) -> None:
        with suppress(SystemExit), commits.attempt(str(tmp_path), run, "train-00000", max_failures):
            raise SystemExit  # no error of the unit

    for _ in range(3):
        attempt(1, 2)
    with pytest.raises(ClusterError, match="died 3 times"):
        attempt(1, 2)
    attempt(2, 2)
    attempt(1, -1)


def test_an_unforeseen_error_costs_one_clip(tmp_path: Path) -> None:
    row = ClipRow(record=1, clip_id="a", split="train", captions=("x",), path="\ud800.mp4")
    with pytest.raises(DecodeError, match="fetch_error: unexpected UnicodeEncodeError"):
        _get(row, Fetcher(str(tmp_path), FetchConfig()))


def test_doubles_ask_no_server(tmp_path: Path) -> None:
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


def test_limit(corpus: Path, tmp_path: Path) -> None:
    summary = shard_videos(shard_config(corpus, tmp_path / "frames", limit=3), in_this_process)
    assert summary["num_rows"] == summary["num_clips"] == 3
    assert "note" not in summary


def write_manifest(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["videoid", "name"], *rows])


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A folder with clips.csv of 10 good clips; 20 videos are there."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "0.mp4", num_frames=8)
    for number in range(1, 20):
        os.link(tmp_path / "videos" / "0.mp4", tmp_path / "videos" / f"{number}.mp4")
    write_manifest(tmp_path / "clips.csv", [[str(number), f"clip {number}"] for number in range(10)])
    return tmp_path


def test_spans_of_several_manifests(growing: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_rows_added_to_a_manifest(growing: Path) -> None:
    out = growing / "frames"
    config = shard_config(growing, out)
    first = shard_videos(config, in_this_process)
    before = files_of(out)
    write_manifest(
        growing / "clips.csv", [["30", "gone"], *[[str(n), f"clip {n}"] for n in range(16)], ["15", "again"]]
    )
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
    write_manifest(growing / "clips.csv", [[str(number), f"clip {number}"] for number in range(9)])
    with pytest.raises(ConfigError, match=r"8 rows are gone .*--overwrite"):
        shard_videos(config, in_this_process)
    assert json.loads((out / "summary.json").read_text())["num_clips"] == 16, "what was there stays"
    assert shard_videos(config.override({"overwrite": True}), in_this_process)["num_clips"] == 9


def test_a_limit_may_grow(growing: Path) -> None:
    config = shard_config(growing, growing / "frames")
    assert shard_videos(config.override({"limit": 3}), in_this_process)["num_clips"] == 3
    assert shard_videos(config.override({"limit": 5}), in_this_process)["num_clips"] == 5
    assert shard_videos(config, in_this_process)["num_clips"] == 10
    with pytest.raises(ConfigError, match="5 rows are gone or cut off by --limit"):
        shard_videos(config.override({"limit": 5}), in_this_process)


def test_quarantined_clips_are_tried_again(growing: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    assert "3 quarantined clips may be there next time: --retry missing_file" in caplog.text
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
    write_manifest(growing / "clips.csv", [[str(number), f"clip {number}"] for number in range(12)])
    summary = shard_videos(config.override({"retry": "all"}), in_this_process)
    assert (summary["num_clips"], summary["reasons"], summary["num_rows"]) == (12, {}, 12)
    assert quarantine_of(out) == {}
    assert sorted(int(clip["clip_id"]) for clip in clips_of(out)) == list(range(12))
    kinds = [each["kind"] for each in FrameManifest.load(str(out)).generations]
    assert kinds == ["rows", "retry", "rows", "retry"]


def test_a_try_that_was_interrupted_goes_on(growing: Path) -> None:
    videos, out = growing / "videos", growing / "frames"
    (videos / "2.mp4").rename(videos / "2.away")
    config = shard_config(growing, out, retry="all")
    assert shard_videos(config, in_this_process)["reasons"] == {"missing_file": 1}
    for name in ("summary.json", "manifest.json", "commits/train-00003.*.json"):
        next(out.glob(name)).unlink()
    summary = shard_videos(config, in_this_process)
    assert summary["generations"] == 2, "the second try was there already; it was done, not planned once more"
    assert summary["reasons"] == {"missing_file": 1}


def test_videos_that_went_away(growing: Path, ray_local: Any) -> None:
    out = growing / "frames"
    write_manifest(growing / "clips.csv", [[str(number), "a clip"] for number in range(240)])
    config = shard_config(growing, out, **{"sampling.shard_clips": 40})
    with pytest.raises(
        SourceError,
        match=r"of the last 2\d\d videos could not be fetched, e\.g\. '\d+': missing_file no .*; max_f",
    ):
        shard_videos(config)
    assert not (out / "manifest.json").exists()
    assert not any((out / "commits").iterdir()), "none counts as done"
    for number in range(20, 240):
        os.link(growing / "videos" / "0.mp4", growing / "videos" / f"{number}.mp4")
    assert shard_videos(config)["num_clips"] == 240


def test_a_data_set_that_is_broken_ends_early(growing: Path) -> None:
    out = growing / "frames"
    for number in range(20, 320):
        (growing / "videos" / f"{number}.mp4").write_bytes(b"<html>no video</html>")
    write_manifest(growing / "clips.csv", [[str(number), "a clip"] for number in range(320)])
    config = shard_config(growing, out, **{"sampling.shard_clips": 40, "cluster.num_workers": 1})
    with pytest.raises(
        ShardError, match=r"of the first 2\d\d videos failed \(last not_a_video \d+, .*--max-failed-share"
    ):
        shard_videos(config, in_this_process)
    assert not (out / "manifest.json").exists()
    assert len(list((out / "commits").iterdir())) < 8
    assert shard_videos(config.override({"max_failed_share": 0.95}), in_this_process)["num_clips"] == 20


def test_what_may_fail_of_a_job() -> None:
    def plans(*numbers: int) -> list[shard_plan.Generation]:
        kinds = zip(("rows", "rows", "retry"), numbers, strict=False)
        return [
            shard_plan.Generation(
                n,
                f"000{n}",
                kind,
                "",
                "",
                1000,
                [shard_plan.PlannedShard(f"train-{n}", "train", number)],
                RejectCounts({"x": 50}),
            )
            for n, (kind, number) in enumerate(kinds)
        ]

    assert CommitLog("", 0, plans(800)).allowance(["0000/train-0"], 0, 0.5) == 450 / 800
    assert CommitLog("", 0, plans(600, 200)).allowance(["0001/train-1"], 300, 0.5) == 150 / 200, "300 failed before"
    assert CommitLog("", 0, plans(600, 200, 9)).allowance(["0001/train-1", "0002/train-2"], 450, 0.5) == 1


def test_a_shard_ends_early_where_its_videos_went_away(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    rows = [ClipRow(record=n, clip_id=str(n), split="train", captions=("x",), path=f"{n}.mp4") for n in range(300)]
    with Output(ShardVideos(), out, {}) as output:
        made = shard_plan.plan_rows(output, rows, "m", [], 0, 1000, lambda _: False)
    (tmp_path / "videos").mkdir()
    sampling = FramesConfig()
    work = ShardJob(out, 1, str(tmp_path / "videos"), {made.folder: made.plan_id}, sampling, FetchConfig(), 0.5, 1)
    with pytest.raises(SourceError, match="200 of the last 200 videos"):
        make_shard(work, f"{made.folder}/train-00000")
    assert not commits.any_committed(out)
    assert [name for name in storage.list_names(out) if "train" in name] == []
    assert too_many(129, 200, 0.5)
    assert not too_many(128, 200, 0.5)
    assert not too_many(199, 199, 0.5)
    assert not too_many(2500, 5000, 0.5)
    assert not too_many(5000, 5000, 1.0)


@pytest.mark.slow
def test_bad_set_through_the_command(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_real_clips_are_all_accepted(shared_data: Path, ray_local: Any, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    config = ShardVideos(manifest=str(shared_data / "clips.csv"), videos=str(shared_data / "clips"), out=str(out))
    summary = shard_videos(config.override({"sampling.shard_clips": 23, "cluster.num_workers": 2}))
    assert (summary["num_clips"], summary["reasons"]) == (92, {})
