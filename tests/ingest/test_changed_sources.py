"""Sources that change between runs: URLs signed again, a tar written anew."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import HaltedError
from evilm.ingest.shard_videos import shard_videos
from evilm.jobs import runner
from helpers.gates import Gate, serve
from helpers.small_corpus import clips_of, shard_config
from helpers.tables import write_csv


@pytest.fixture
def web(good_corpus: Path) -> Iterator[str]:
    with serve(good_corpus / "videos" / "p", Gate()) as url:
        yield url


def test_newly_signed_urls_are_the_same_rows_and_never_stored(
    good_corpus: Path, web: str, ray_local: Any, tmp_path: Path
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
        write_csv(manifest, ["videoid", "page_dir", "name", "path", "note"], *rows)
        values = {"columns.path": "path", "fetch.urls": True, "fetch.allow_private": True, "sampling.shard_clips": 2}
        return shard_config(good_corpus, out, **values).override({"manifest": str(manifest), "videos": ""})

    def first_alone(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        yield from runner.run(todo[:1], *rest)
        raise HaltedError("killed")

    with pytest.raises(HaltedError):
        shard_videos(sign("hidden-one"), first_alone)
    summary = shard_videos(sign("hidden-two"))
    assert (summary["num_clips"], summary["generations"]) == (6, 1), "no row counts as changed"
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert b"hidden-" not in path.read_bytes(), path
    (extra,) = {dict(row)["note"] for row in _extra(out)}
    assert extra == "s3://h/x?a=1"


def _extra(out: Path) -> list[Any]:
    import pyarrow.parquet as pq

    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path)["extra"].to_pylist()]


def _pack(tar: Path, good_corpus: Path, order: list[int]) -> None:
    """A tar of clips in some order, all videos of one size."""
    size = max(path.stat().st_size for path in (good_corpus / "videos" / "p").iterdir())
    with tarfile.open(tar, "w") as file:
        for number in order:
            for name, data in (
                (f"c{number}.mp4", (good_corpus / "videos" / "p" / f"{number}.mp4").read_bytes().ljust(size, b"\0")),
                (f"c{number}.txt", f"clip {number:02d}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def test_rewritten_tar_is_noticed_and_its_clips_retried(good_corpus: Path, ray_local: Any, tmp_path: Path) -> None:
    tar, out = tmp_path / "clips.tar", tmp_path / "frames"
    config = shard_config(good_corpus, out, **{"sampling.shard_clips": 2}).override(
        {"manifest": str(tar), "videos": ""}
    )

    def first_alone(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        yield from runner.run(todo[:1], *rest)
        _pack(tar, good_corpus, [5, 4, 3, 2, 1, 0])  # same size, another order
        yield from runner.run(todo[1:2], *rest)
        raise HaltedError("killed")

    _pack(tar, good_corpus, [0, 1, 2, 3, 4, 5])
    size = tar.stat().st_size
    with pytest.raises(HaltedError):
        shard_videos(config, first_alone)
    assert tar.stat().st_size == size
    bad = [row for path in out.glob("commits/*.json") for row in json.loads(path.read_text())["bad"]]
    assert [row["reason"] for row in bad] == ["source_changed"] * 2
    assert all(row["detail"].startswith("its tar was rewritten: 'c") for row in bad)
    assert all(row["detail"].endswith("is there now; list it again: --retry source_changed") for row in bad)
    summary = shard_videos(config.override({"retry": "source_changed"}))
    _pack(tar, good_corpus, [0, 1, 2, 3, 4, 5])
    whole = shard_videos(config.override({"out": str(tmp_path / "whole")}))
    assert summary["num_clips"] == whole["num_clips"] == 6
    found, expected = (
        {clip["clip_id"]: (clip["captions"], clip["frames"]) for clip in clips_of(each)}
        for each in (out, tmp_path / "whole")
    )
    assert found == expected
