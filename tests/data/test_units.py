"""Units of work that fail, shards that are lost or damaged, and what is published while others are being made."""

import csv
import io
import json
import logging
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs

from evilm.errors import HaltedError, ShardError, StorageError, UnfinishedError, UsageError
from evilm.ingest.shard_videos import period, shard_videos
from evilm.io import storage
from evilm.jobs import commits, runner
from evilm.shards import FrameManifest
from helpers.commands import files_of, start
from helpers.failing_units import fail_some
from helpers.gates import Gate, serve
from helpers.s3_faults import FaultyS3
from helpers.small_corpus import SMALL, clips_of, in_this_process, shard_config
from helpers.video_files import write_video

_NUM_CLIPS = 20
_ONE_EACH = {"sampling.shard_clips": 1, "sampling.row_group_clips": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty good clips."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "videos" / "p").mkdir(parents=True)
    for number in range(_NUM_CLIPS):
        write_video(folder / "videos" / "p" / f"{number}.mp4", num_frames=6, first_picture=number)
    _write(folder / "clips.csv", [[str(number), "p", f"clip {number}"] for number in range(_NUM_CLIPS)])
    return folder


def _write(path: Path, rows: list[list[str]], *more: str) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["videoid", "page_dir", "name", *more], *rows])


def _run(ray_local: Any, names: list[str], kinds: dict[str, str]) -> tuple[list[str], BaseException | None]:
    from ray.data import TaskPoolStrategy

    done, options = [], {"compute": TaskPoolStrategy(size=2), "num_cpus": 1}
    try:
        for row in runner.run(names, partial(fail_some, kinds), 1, options, "shards", dict.fromkeys(names, 3)):
            done.append(str(row["name"]))
    except (StorageError, ShardError, HaltedError) as error:
        return sorted(done), error
    return sorted(done), None


def test_the_units_that_fail_are_told_when_all_others_are_done(ray_local: Any, caplog: Any) -> None:
    names = [f"s-{number}" for number in range(12)]
    caplog.set_level(logging.INFO, "evilm")
    done, error = _run(ray_local, names, {"s-3": "storage", "s-7": "shard"})
    assert done == sorted(set(names) - {"s-3", "s-7"})
    assert isinstance(error, UnfinishedError)
    assert "shards: 2 of 12 shards failed, 10 are done: " in str(error)
    assert "s-3: no place for s-3" in str(error)
    assert "s-7: no place for s-7" in str(error)
    assert str(error).endswith("; run the same command again for the rest")
    assert caplog.text.count("s-3 failed") == 2, "tried twice"
    done, error = _run(ray_local, names, {})
    assert (done, error) == (sorted(names), None)
    assert "30 of 36 clips" in caplog.text or "36 of 36 clips" in caplog.text


def test_one_unit_alone_fails_with_its_own_error(ray_local: Any) -> None:
    done, error = _run(ray_local, ["s-0"], {"s-0": "storage"})
    assert (done, type(error), str(error)) == ([], StorageError, "no place for s-0")


def test_an_error_of_the_job_ends_it_and_a_place_that_is_dead_too(ray_local: Any) -> None:
    names = [f"s-{number}" for number in range(40)]
    _, error = _run(ray_local, names, {"s-0": "halted"})
    assert isinstance(error, HaltedError)
    done, error = _run(ray_local, names, dict.fromkeys(names, "storage"))
    assert not done
    assert isinstance(error, UnfinishedError)
    assert ": 8 of 40 shards failed, 0 are done, stopping early: " in str(error), "not all of them were tried"


def test_attempts_that_ended_with_an_error_have_not_died(tmp_path: Path) -> None:
    out = str(tmp_path)
    for _ in range(4):
        with pytest.raises(StorageError), commits.attempt(out, 1, "a", 1):
            raise StorageError("full")
    with commits.attempt(out, 1, "a", 1):
        pass


def test_a_lost_and_a_damaged_shard_are_repaired(corpus: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "frames"
    made = shard_videos(shard_config(corpus, out), in_this_process)
    before, (lost, damaged, *_) = files_of(out), sorted(out.glob("*.parquet"))
    lost.unlink()
    caplog.set_level(logging.INFO, "evilm")
    again = shard_videos(shard_config(corpus, out), in_this_process)
    assert f"1 shards are missing from {out}, e.g. {lost.name}; making them again" in caplog.text
    assert (again["fingerprint"], again.get("reused"), files_of(out)) == (made["fingerprint"], None, before)

    lost.unlink()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    for path in out.glob("*.arrow"):
        path.write_bytes(b"damaged")
    repaired = shard_videos(shard_config(corpus, out, repair=True), in_this_process)
    assert (repaired["fingerprint"], files_of(out)) == (made["fingerprint"], before)
    assert all(path.read_bytes() != b"damaged" for path in out.glob("*.arrow"))
    assert shard_videos(shard_config(corpus, out), in_this_process)["reused"]


def test_a_shard_whose_video_was_replaced_is_not_repaired_in_silence(corpus: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "frames"
    (videos / "p").mkdir(parents=True)
    for path in (corpus / "videos" / "p").iterdir():
        (videos / "p" / path.name).symlink_to(path)
    config = shard_config(corpus, out).override({"videos": str(videos), "fetch.follow_links": True})
    shard_videos(config, in_this_process)
    before = files_of(out)
    (videos / "p" / "3.mp4").unlink()
    write_video(videos / "p" / "3.mp4", num_frames=6, first_picture=77)
    for path in out.glob("*.parquet"):
        path.unlink()
    with pytest.raises(ShardError, match=r"can't be repaired: made again it has other bytes .* have changed"):
        shard_videos(config, in_this_process)
    assert (out / "manifest.json").read_bytes() == before["manifest.json"]
    (videos / "p" / "3.mp4").unlink()
    (videos / "p" / "3.mp4").symlink_to(corpus / "videos" / "p" / "3.mp4")
    shard_videos(config, in_this_process)
    assert files_of(out) == before


def test_a_lost_shard_without_videos_is_no_shard_without_clips(corpus: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "frames"
    shutil.copytree(corpus / "videos", videos)
    config = shard_config(corpus, out, **_ONE_EACH, max_failed_share=1.0).override({"videos": str(videos)})
    shard_videos(config, in_this_process)
    for path in (*out.glob("train-00003-*"), *(videos / "p").iterdir()):
        path.unlink()
    with pytest.raises(ShardError, match=r"train-00003 can't be repaired: .* \(SHA-256 of no clip\)"):
        shard_videos(config, in_this_process)


def test_shards_are_published_while_others_are_made(corpus: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "frames", list[FrameManifest]()

    def watched(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(in_this_process(todo, *rest)):
            if number and number % 2 == 0:
                seen.append(FrameManifest.load(str(out)))
            yield row

    summary = shard_videos(shard_config(corpus, out, publish_every="2"), watched)
    assert [(len(each.shards), each.num_missing) for each in seen] == [(2, 3), (4, 1)]
    assert not {shard.file for shard in seen[0].shards} - {shard.file for shard in seen[1].shards}, "only added to"
    final = FrameManifest.load(str(out))
    assert (len(final.shards), final.num_missing, final.num_clips()) == (5, 0, _NUM_CLIPS)
    whole = shard_videos(shard_config(corpus, tmp_path / "whole", publish_every="0"), in_this_process)
    assert whole["fingerprint"] == summary["fingerprint"], "it leaves no trace"
    early = FrameManifest.load(f"{out}@{seen[0].fingerprint}")
    assert (early.num_clips(), early.uri) == (8, str(out))
    with pytest.raises(ShardError, match="which are gone"):
        FrameManifest.load(f"{out}@{'0' * 16}")


@pytest.mark.parametrize(
    ("text", "expected"), [("200", (200, 0.0)), ("30m", (0, 1800.0)), ("2h", (0, 7200.0)), ("0", (0, 0.0))]
)
def test_periods_are_shards_or_times(text: str, expected: tuple[int, float]) -> None:
    assert period(text) == expected


def test_a_period_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"--publish-every often: give a number of shards \(200\), minutes"):
        period("often")


@pytest.fixture
def web(corpus: Path) -> Iterator[str]:
    with serve(corpus / "videos" / "p", Gate()) as url:
        yield url


def test_urls_that_are_signed_again_are_the_same_rows_and_lie_nowhere(
    corpus: Path, web: str, ray_local: Any, tmp_path: Path
) -> None:
    out, manifest = tmp_path / "frames", tmp_path / "clips.csv"

    def sign(secret: str) -> Any:
        rows = [
            [
                str(n),
                "",
                f"clip {n}",
                f"{web}/{n}.mp4?X-Amz-Signature={secret}",
                f"s3://u:{secret}@h/x?a=1&token={secret}",
            ]
            for n in range(6)
        ]
        _write(manifest, rows, "path", "note")
        values = {"columns.path": "path", "fetch.urls": True, "fetch.allow_private": True, "sampling.shard_clips": 2}
        return shard_config(corpus, out, **values).override({"manifest": str(manifest), "videos": ""})

    def first_alone(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        yield from runner.run(todo[:1], *rest)
        raise HaltedError("killed")

    with pytest.raises(HaltedError):
        shard_videos(sign("hidden-one"), first_alone)
    summary = shard_videos(sign("hidden-two"))
    assert (summary["num_clips"], summary["generations"]) == (6, 1), "no row counts as changed"
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert b"masked-" not in path.read_bytes(), path
    (extra,) = {dict(row)["note"] for row in _extra(out)}
    assert extra == "s3://h/x?a=1"


def _extra(out: Path) -> list[Any]:
    import pyarrow.parquet as pq

    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path)["extra"].to_pylist()]


def _pack(tar: Path, corpus: Path, order: list[int]) -> None:
    """A tar of clips in some order, all videos of one size."""
    size = max(path.stat().st_size for path in (corpus / "videos" / "p").iterdir())
    with tarfile.open(tar, "w") as file:
        for number in order:
            for name, data in (
                (f"c{number}.mp4", (corpus / "videos" / "p" / f"{number}.mp4").read_bytes().ljust(size, b"\0")),
                (f"c{number}.txt", f"clip {number:02d}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def test_a_tar_that_is_written_anew_between_runs_mixes_no_clips(corpus: Path, ray_local: Any, tmp_path: Path) -> None:
    tar, out = tmp_path / "clips.tar", tmp_path / "frames"
    config = shard_config(corpus, out, **{"sampling.shard_clips": 2}).override({"manifest": str(tar), "videos": ""})

    def first_alone(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        yield from runner.run(todo[:1], *rest)
        _pack(tar, corpus, [5, 4, 3, 2, 1, 0])  # same size, another order
        yield from runner.run(todo[1:2], *rest)
        raise HaltedError("killed")

    _pack(tar, corpus, [0, 1, 2, 3, 4, 5])
    size = tar.stat().st_size
    with pytest.raises(HaltedError):
        shard_videos(config, first_alone)
    assert tar.stat().st_size == size
    bad = [row for path in out.glob("commits/*.json") for row in json.loads(path.read_text())["bad"]]
    assert [row["reason"] for row in bad] == ["source_changed"] * 2
    assert all("its tar was rewritten: 'c" in row["detail"] for row in bad)
    summary = shard_videos(config.override({"retry": "source_changed"}))
    _pack(tar, corpus, [0, 1, 2, 3, 4, 5])
    whole = shard_videos(config.override({"out": str(tmp_path / "whole")}))
    assert summary["num_clips"] == whole["num_clips"] == 6
    found, expected = (
        {clip["clip_id"]: (clip["captions"], clip["frames"]) for clip in clips_of(each)}
        for each in (out, tmp_path / "whole")
    )
    assert found == expected


@pytest.mark.long
@pytest.mark.faults
def test_a_shard_that_the_store_never_takes(corpus: Path, s3_server: str, s3_bucket: str, monkeypatch: Any) -> None:
    """Nineteen of twenty shards are published, the other is named, and the same command finishes once it is taken."""
    broken = {"is": True}

    def choose(method: str, path: str) -> str:
        return "503" if broken["is"] and method in ("PUT", "POST") and "/train-00007-" in path else ""

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | _ONE_EACH).items()]
    places = [f"--manifest={corpus}/clips.csv", f"--videos={corpus}/videos", f"--out={s3_bucket}/frames"]
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
        printed, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
        assert json.loads(printed.decode().splitlines()[-1])["num_clips"] == _NUM_CLIPS
        whole = FrameManifest.load(f"{s3_bucket}/frames")
        assert (len(whole.shards), whole.num_missing) == (20, 0)
        assert {shard.file for shard in partial_manifest.shards} < {shard.file for shard in whole.shards}
        print(last)
