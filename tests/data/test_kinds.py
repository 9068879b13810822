"""Kinds of tables and folders that people have: names with endings, lists, pairs, tars packed in their own way."""

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.config.data import FetchConfig
from evilm.config.secrets import unsigned
from evilm.config.stages import ShardVideos
from evilm.errors import DecodeError, ManifestError
from evilm.ingest.external_sort import content_of
from evilm.ingest.shard_writer import fetch_source
from evilm.io import storage
from evilm.manifests.captions import read_captions
from evilm.manifests.reader import read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow, clean_caption
from evilm.video.fetch import Fetcher


def rows_of(folder: Path, text: str | None = None, name: str = "clips.csv", **settings: Any) -> list[ClipRow | BadRow]:
    """Every row of a manifest with this text; videos lie in `v`."""
    if text is not None:
        (folder / name).write_text(text, newline="")
    videos = folder / "v"
    videos.mkdir(exist_ok=True)
    config = ShardVideos(manifest=str(folder / name), videos=str(videos)).override(settings)
    return list(read_manifests(config))


def clips(rows: list[ClipRow | BadRow]) -> list[ClipRow]:
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, ClipRow)]


def fetched(folder: Path, row: ClipRow, **config: Any) -> tuple[str, bool]:
    """What is fetched for a row, and whether it is a file of the clip alone."""
    (video,) = fetch_source([row], Fetcher(str(folder / "v"), FetchConfig(**config)))
    if isinstance(video, DecodeError):
        raise video
    video.close()
    return video.uri, video.is_cut


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "v" / name).write_bytes(b"video")


def test_an_id_with_an_ending_is_the_file_of_that_name(tmp_path: Path) -> None:
    touch(tmp_path, "a1.mp4", "a2.MP4", "a3.mp4.mp4", "a4.webm.mkv", "a4.webm")
    rows = clips(rows_of(tmp_path, "videoid,name\na1.mp4,x\na2.mp4,x\na3.mp4,x\na4.webm,x\n"))
    with pytest.raises(DecodeError):  # capitals differ, and it is no name without its ending
        fetched(tmp_path, rows[1])
    assert [fetched(tmp_path, rows[n])[0] for n in (0, 2, 3)] == ["a1.mp4", "a3.mp4.mp4", "a4.webm"]


def test_lists_of_captions_in_any_format(tmp_path: Path) -> None:
    text = "videoid,name\na1,\"['a man sings', 'someone sings']\"\na2,plain\na3,[music] plays\na4,\"[1, 2]\"\n"
    rows = clips(rows_of(tmp_path, text))
    assert [row.captions[0] for row in rows] == ["a man sings", "plain", "[music] plays", "[1, 2]"]
    assert read_captions(str(tmp_path / "clips.csv")) == [
        "a man sings",
        "someone sings",
        "plain",
        "[music] plays",
        "[1, 2]",
    ]
    lines = [{"videoid": "a1", "name": ["", None, "real"]}, {"videoid": "a2", "name": {"short": "a dog", "long": "b"}}]
    good, bad = rows_of(tmp_path, "\n".join(map(json.dumps, lines)), "clips.jsonl")
    assert isinstance(good, ClipRow)
    assert good.captions == ("real",)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == (
        "bad_caption",
        "an object with short, long, not a text; make one of them the column",
    )


def test_columns_of_bytes_are_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"bytes": b"\0" * 1000, "path": "a.mp4"}]
    lists = [[b"1", b"2"]]
    table = pa.table({"videoid": ["a"], "name": ["one"], "clip": rows, "frames": lists, "raw": [b"x"]})
    pq.write_table(table, tmp_path / "clips.parquet")
    with caplog.at_level(logging.INFO):
        (row,) = clips(rows_of(tmp_path, name="clips.parquet"))
    assert row.extra == {}
    assert "clip, frames, raw: columns of bytes are not read" in caplog.text
    pq.write_table(pa.table({"video": rows, "caption": ["one"]}), tmp_path / "clips.parquet")
    with pytest.raises(ManifestError, match="has no column 'videoid'") as caught:
        rows_of(tmp_path, name="clips.parquet")
    assert len(str(caught.value)) < 400


def test_one_span_per_row_as_a_pair(tmp_path: Path) -> None:
    text = (
        "videoID,url,timestamp,caption,clarity_score\n"
        "a1_0,https://x.org/watch?v=a1,\"['0:00:00.000', '0:00:00.500']\",\"A street, at night.\",0.9\n"
        'a2_7,https://x.org/watch?v=a2,"[0.25, 0.75]",Two hands.,0.9\n'
    )
    rows = clips(rows_of(tmp_path, text))
    assert [(row.clip_id, row.start_s, row.end_s, row.captions[0]) for row in rows] == [
        ("a1_0", 0.0, 0.5, "A street, at night."),
        ("a2_7", 0.25, 0.75, "Two hands."),
    ]
    panda = "videoID,timestamp,caption\nb,\"[['0', '1'], ['2', '3']]\",\"['x', 'y']\"\n"
    assert [row.clip_id for row in clips(rows_of(tmp_path, panda))] == ["b_0", "b_1"]


def test_lists_of_starts_and_of_ends(tmp_path: Path) -> None:
    line = {"video": "a", "start": [0, 5.5], "end": [4, 9], "text": ["one", "two"]}
    columns = {"videoid": "video", "start": "start", "end": "end", "caption": "text"}
    flags = {f"columns.{name}": column for name, column in columns.items()}
    rows = clips(rows_of(tmp_path, json.dumps(line), "clips.jsonl", **flags))
    assert [(row.clip_id, row.start_s, row.end_s, row.captions[0]) for row in rows] == [
        ("a_0", 0, 4, "one"),
        ("a_1", 5.5, 9, "two"),
    ]
    (bad,) = rows_of(tmp_path, json.dumps(line | {"end": [4]}), "clips.jsonl", **flags)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("bad_span", "2 starts and 1 ends")


def test_clips_that_are_cut_already_are_found_by_id_and_span(tmp_path: Path) -> None:
    touch(tmp_path, "m_33_46.avi", "long.mp4", "long_1_2.mp4")
    flags = {"columns.videoid": "VideoID", "columns.start": "Start", "columns.end": "End", "columns.caption": "Text"}
    rows = clips(rows_of(tmp_path, "VideoID,Start,End,Text\nm,33,46,x\nlong,1,2,y\nnone,1,2,z\n", **flags))
    assert fetched(tmp_path, rows[0]) == ("m_33_46.avi", True)
    assert fetched(tmp_path, rows[1]) == ("long.mp4", False)
    with pytest.raises(DecodeError, match=r"missing_file: no none \+ \.mp4, \.webm, \.\.\., nor none_1_2"):
        fetched(tmp_path, rows[2])


def test_absolute_paths_below_the_root(tmp_path: Path) -> None:
    flags = {"columns.videoid": "", "columns.path": "path", "columns.caption": "text"}
    inside, outside = tmp_path / "v" / "p" / "a.mp4", tmp_path / "a.mp4"
    good, bad = rows_of(tmp_path, f"path,text\n{inside},one\n{outside},two\n", **flags)
    assert isinstance(good, ClipRow)
    assert good.path == "p/a.mp4"
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("path_unsafe", "an absolute path outside of the video root")


def test_ids_from_paths_are_one_per_path(tmp_path: Path) -> None:
    flags = {"columns.videoid": "", "columns.path": "path", "columns.caption": "text"}
    rows = clips(rows_of(tmp_path, "path,text\n./a.mp4,x\na/b.mp4,x\na_b.mp4,x\n./a//b.mp4,x\n", **flags))
    assert [row.clip_id for row in rows] == ["a", rows[1].clip_id, "a_b", rows[1].clip_id]
    assert rows[1].clip_id.startswith("a_b-")


def test_signed_again_is_the_same_row(tmp_path: Path) -> None:
    def row(query: str, **settings: Any) -> ClipRow:
        text = f"videoid,name,contentUrl\na1,x,https://me:pw@x.org/a1.mp4?v=7&{query}\n"
        flags = {"fetch.urls": True, "columns.path": "contentUrl"} | settings
        return clips(rows_of(tmp_path, text, **flags))[0]

    for settings in ({}, {"columns.videoid": ""}):
        old, new = (row(f"X-Amz-Expires=3600&X-Amz-Signature={sign}", **settings) for sign in ("old", "new"))
        assert old.path != new.path
        assert (old.clip_id, content_of(old)) == (new.clip_id, content_of(new))
        assert content_of(old) != content_of(row("w=8", **settings))
    assert unsigned("https://u:p@x.org/a?v=1&Signature=x&Expires=2&b=c#f") == "https://x.org/a?v=1&b=c"


def test_control_characters_in_an_id(tmp_path: Path) -> None:
    (bad,) = rows_of(tmp_path, 'videoid,name\n"a\x07b",x\n')
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("bad_row", "a control character in the id")


def test_old_line_ends_and_missing_headers(tmp_path: Path) -> None:
    assert [row.clip_id for row in clips(rows_of(tmp_path, "videoid,name\ra,one\rb,two\r"))] == ["a", "b"]
    long = "videoid,name\r" + "".join(f"{n},{'word ' * 20}\r" for n in range(2000))
    assert len(rows_of(tmp_path, long)) == 2000
    for text in ("a1.mp4\ta man sings\n", "17\thttps://x.org/1.mp4\n", "k\tone dog runs\n"):
        with pytest.raises(ManifestError, match="its first line looks like a row: give it a header line"):
            rows_of(tmp_path, text, "clips.tsv")
    with pytest.raises(ManifestError, match=r"name it with --columns\.videoid"):
        rows_of(tmp_path, "clip,words\na,b\n")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tar_rows(folder: Path, **settings: Any) -> list[ClipRow | BadRow]:
    return list(read_manifests(ShardVideos(manifest=str(folder / "*.tar")).override(settings)))


def test_keys_that_begin_anew_in_each_tar(tmp_path: Path) -> None:
    for shard in range(3):
        members = [(f"{k:06d}{end}", data) for k in range(2) for end, data in ((".mp4", b"v"), (".txt", b"clip"))]
        write_tar(tmp_path / f"s-{shard}.tar", members)
    ids = [f"s-{shard}_{k:06d}" for shard in range(3) for k in range(2)]
    for settings in ({}, {"columns.videoid": ""}):
        rows = clips(tar_rows(tmp_path, **settings))
        assert [row.clip_id for row in rows] == ids
        assert [row.path for row in rows[:2]] == ["s-0.tar/000000.mp4", "s-0.tar/000001.mp4"]
    (tmp_path / "s-1.tar").unlink()
    (tmp_path / "s-2.tar").unlink()
    assert [row.clip_id for row in clips(tar_rows(tmp_path))] == ["000000", "000001"]


def test_members_of_a_sample_that_do_not_follow_each_other(tmp_path: Path) -> None:
    videos = [(f"{k}.mp4", bytes(10 + k)) for k in range(3)]
    texts = [(f"{k}.txt", f"clip {k}".encode()) for k in (2, 0)]
    write_tar(tmp_path / "a.tar", [*videos, *texts])
    rows = tar_rows(tmp_path)
    good = {row.clip_id: (row.captions[0], row.num_bytes) for row in rows if isinstance(row, ClipRow)}
    assert good == {"0": ("clip 0", 10), "2": ("clip 2", 12)}
    assert [row.reason for row in rows if isinstance(row, BadRow)] == ["empty_caption"]


def test_links_out_of_the_root_are_followed_on_demand(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "elsewhere.mp4").write_bytes(b"x")
    (tmp_path / "v" / "a.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (row,) = clips(rows_of(tmp_path, "videoid,name\na,x\n"))
    with pytest.raises(DecodeError, match="leaves the video root; --follow-links allows that"):
        fetched(tmp_path, row)
    assert fetched(tmp_path, row, follow_links=True) == ("a.mp4", False)


def no_links(error: int) -> Callable[..., None]:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    return link


@pytest.mark.parametrize("has_rename", [True, False])
def test_commits_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_rename: bool
) -> None:
    import ctypes
    import errno

    monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    if not has_rename:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    uri = str(tmp_path / "commit.json")
    assert storage.put_if_absent(uri, b"one")
    assert storage.put_if_absent(uri, b"one"), "as it was there already"
    assert not storage.put_if_absent(uri, b"two")
    assert storage.read_bytes(uri) == b"one"
    assert os.listdir(tmp_path) == ["commit.json"]


def test_captions_do_not_depend_on_the_unicode_of_python() -> None:
    assert clean_caption("new \U0001fae8 \U000323b0 \u20c0") == "new \U0001fae8 \U000323b0 \u20c0", (
        "of Unicode 15 and 13"
    )
    assert clean_caption("a\u180eb\u2028c\x85d\u3000e") == "ab c d e"
    assert clean_caption("x\ue000y\u00adz") == "xyz"


def test_videos_root_may_be_given_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v").mkdir()
    (tmp_path / "clips.csv").write_text("videoid,name\na,b\n")
    assert videos_root(ShardVideos(manifest="clips.csv", videos="v")) == str(tmp_path / "v")


def test_shares_of_source_videos_go_to_other_splits(tmp_path: Path) -> None:
    flags = {"columns.videoid": "id", "columns.start": "from", "columns.end": "to", "columns.caption": "text"}
    spans = "".join(f"v{n % 200},{n // 200},{n // 200 + 1},x\n" for n in range(1000))
    shares = {"val_share": 0.2, "test_share": 0.1}
    rows = clips(rows_of(tmp_path, "id,from,to,text\n" + spans, **flags, **shares))
    sides = {row.path: row.split for row in rows}
    assert all(row.split == sides[row.path] for row in rows), "all spans of a video are on one side"
    counts = {split: list(sides.values()).count(split) for split in ("train", "val", "test")}
    assert counts["val"] in range(25, 56)
    assert counts["test"] in range(8, 34)
    other = clips(rows_of(tmp_path, **flags, **shares, **{"sampling.seed": 1}))
    assert {row.path: row.split for row in other} != sides
    named = clips(rows_of(tmp_path, "videoid,name,split\na,x,dev\nb,x,dev\n", val_share=0.9))
    assert {row.split for row in named} == {"dev"}


def test_a_column_of_paths_may_lack_endings(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.mp4", "a/two", "a/two.mp4", "a/three.part.webm")
    text = "key,file,name\n1,a/one,x\n2,a/two,y\n3,a/three.part,z\n4,a/four,z\n"
    *found, gone = clips(rows_of(tmp_path, text, **{"columns.videoid": "key", "columns.path": "file"}))
    assert [fetched(tmp_path, row)[0] for row in found] == ["a/one.mp4", "a/two", "a/three.part.webm"]
    with pytest.raises(DecodeError, match="missing_file"):
        fetched(tmp_path, gone)
