"""The share of clips that may fail: a job ends early if a data set is broken or its videos are missing."""

import os
from pathlib import Path
from typing import Any

import pytest

from evilm.config.data import FetchConfig, FramesConfig
from evilm.config.stages import ShardVideos
from evilm.errors import ShardError, SourceError
from evilm.ingest import shard_plan
from evilm.ingest.failure_budget import too_many
from evilm.ingest.merge import CommitLog
from evilm.ingest.quarantine import RejectCounts
from evilm.ingest.shard_videos import shard_videos
from evilm.ingest.shard_writer import ShardJob, make_shard
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.jobs import commits
from evilm.manifests.rows import ClipRow
from helpers.small_corpus import in_this_process, quarantine_of, shard_config
from helpers.tables import write_csv
from helpers.video_files import write_video

HEADER = ["videoid", "name"]


def test_too_many_quarantined_rows_stop_publication(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    with pytest.raises(ShardError, match=r"4 of 26 rows were quarantined \(duplicate_id 1, .*max_failed_share = 0\.12"):
        shard_videos(shard_config(corpus, out, max_failed_share=0.12), in_this_process)
    assert not (out / "manifest.json").exists()
    assert len(quarantine_of(out)) == 4
    assert (
        shard_videos(shard_config(corpus, out, max_failed_share=0.2), in_this_process)["num_clips"] == 22
    )  # the same folder goes on


def test_corpus_without_a_good_clip_fails(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "clips.csv").write_text("videoid,name\na,hello\n")
    with pytest.raises(ShardError, match=r"1 of 1 rows were quarantined .*not_a_video 1, e\.g\. 'a': .*--retry all"):
        shard_videos(shard_config(tmp_path, tmp_path / "frames", max_failed_share=1), in_this_process)
    write_video(tmp_path / "videos" / "a.mp4")
    assert (
        shard_videos(shard_config(tmp_path, tmp_path / "frames", max_failed_share=1), in_this_process)["num_clips"] == 1
    )


def test_last_line_says_why_a_path_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "videos" / "a.mp4").symlink_to(tmp_path / "a.mp4")
    write_csv(tmp_path / "clips.csv", HEADER, ["a", "hello"])
    with pytest.raises(ShardError, match=r"path_unsafe 1, e\.g\. 'a': a link .*; --follow-links allows.*--retry all"):
        shard_videos(shard_config(tmp_path, tmp_path / "frames"), in_this_process)
    write_csv(tmp_path / "clips.csv", [*HEADER, "page_dir"], ["a", "hello", "/etc"])
    with pytest.raises(ShardError, match=r"path_unsafe 1, e\.g\. 'a': an absolute path") as caught:
        shard_videos(shard_config(tmp_path, tmp_path / "other"), in_this_process)
    assert "--retry" not in str(caught.value), "rows that the manifest spoils are not tried again"


@pytest.mark.long
def test_missing_videos_stop_the_job_without_commits(growing: Path, ray_local: Any) -> None:
    out = growing / "frames"
    write_csv(growing / "clips.csv", HEADER, *([str(number), "a clip"] for number in range(240)))
    config = shard_config(growing, out, **{"sampling.shard_clips": 40})
    with pytest.raises(
        SourceError,
        match=r"of the last 2\d\d videos could not be fetched, e\.g\. '\d+': missing_file no .*; check --v.*; max_f",
    ):
        shard_videos(config)
    assert not (out / "manifest.json").exists()
    assert not any((out / "commits").iterdir()), "none counts as done"
    for number in range(20, 240):
        os.link(growing / "videos" / "0.mp4", growing / "videos" / f"{number}.mp4")
    assert shard_videos(config)["num_clips"] == 240


def test_message_names_the_columns_only_where_a_path_was_tried(growing: Path) -> None:
    hint = "check --videos, and the column of paths (--columns.path) or of folders (--columns.page-dir) below it"
    config = shard_config(growing, growing / "frames")
    write_csv(growing / "clips.csv", [*HEADER, "where"], *([f"gone{n}", "a clip", ""] for n in range(10)))
    with pytest.raises(ShardError, match=r"10 of 10 rows were quarantined \(missing_file 10, .*") as caught:
        shard_videos(config, in_this_process)
    assert hint in str(caught.value)
    with pytest.raises(ShardError, match=r"10 of 10 rows were quarantined \(missing_file 10, .*no path\)") as caught:
        shard_videos(config.override({"columns.path": "where", "out": str(growing / "other")}), in_this_process)
    assert hint not in str(caught.value)


def test_mostly_broken_data_set_stops_early(growing: Path) -> None:
    out = growing / "frames"
    for number in range(20, 320):
        (growing / "videos" / f"{number}.mp4").write_bytes(b"<html>no video</html>")
    write_csv(growing / "clips.csv", HEADER, *([str(number), "a clip"] for number in range(320)))
    config = shard_config(growing, out, **{"sampling.shard_clips": 40, "cluster.num_workers": 1})
    with pytest.raises(
        ShardError, match=r"of the first 2\d\d videos failed \(last not_a_video \d+, .*--max-failed-share"
    ):
        shard_videos(config, in_this_process)
    assert not (out / "manifest.json").exists()
    assert len(list((out / "commits").iterdir())) < 8
    assert shard_videos(config.override({"max_failed_share": 0.95}), in_this_process)["num_clips"] == 20


def test_failure_allowance_counts_rows_of_all_generations() -> None:
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


def test_shard_stops_once_most_of_its_videos_are_missing(tmp_path: Path) -> None:
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
