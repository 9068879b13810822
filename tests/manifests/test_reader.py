"""Manifests of every format, several files, S3, and what is rejected in one line."""

import gzip
import re
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.config.data import FetchConfig
from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, EvilmError, ManifestError
from evilm.manifests.captions import read_captions
from evilm.manifests.reader import fingerprint_of_manifests, read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from helpers.tables import TAR_MEMBERS, read_clips, read_rows, write_csv, write_json_lines, write_tar

HEADER = ["videoid", "name", "page_dir"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz", "a.jsonl", "a.ndjson.gz", "a.parquet"])
def test_every_table_format_gives_the_same_clips(tmp_path: Path, name: str) -> None:
    cells = [["1", "One, \u65e5\u672c", "p"], ["2", "Two.\nNew line", "p"]]
    records = [dict(zip(HEADER, row, strict=True)) for row in cells]
    path = tmp_path / name
    if "json" in name:
        write_json_lines(path, *records)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        write_csv(path, HEADER, *cells)
    good = read_clips(path, tmp_path)
    assert [(row.record, row.clip_id, row.captions[0], row.path) for row in good] == [
        (1, "1", "One, \u65e5\u672c", "p/1"),
        (2, "2", "Two. New line", "p/2"),
    ]
    assert read_captions(str(path)) == ["One, \u65e5\u672c", "Two.\nNew line"]


def test_numbers_and_nulls_become_text(tmp_path: Path) -> None:
    record = {"videoid": 7, "name": "x", "page_dir": None, "n": 1.5, "ok": True, "tags": ["\xe9"], "gap": None}
    (row,) = read_clips(write_json_lines(tmp_path / "a.jsonl", record), tmp_path)
    assert (row.clip_id, row.path) == ("7", "7")
    assert row.extra == {"n": "1.5", "ok": "true", "tags": '["\xe9"]', "gap": ""}
    table = pa.table({"videoid": [7.0, None], "name": ["x", "y"], "mp4": [b"\0", b"\1"]})
    pq.write_table(table, tmp_path / "a.parquet")
    good, lost = read_rows(tmp_path / "a.parquet", tmp_path)
    assert isinstance(good, ClipRow)
    assert (good.clip_id, good.extra) == ("7", {})
    assert isinstance(lost, BadRow)
    assert lost.reason == RejectReason.MISSING_ID


def test_split_that_only_later_json_lines_name_is_read(tmp_path: Path) -> None:
    first = [{"videoid": str(n), "name": "x"} for n in range(300)]
    last = [{"videoid": str(n), "name": "y", "split": "val"} for n in range(300, 310)]
    path = write_json_lines(tmp_path / "a.jsonl", *first, *last)
    assert [row.split for row in read_clips(path, tmp_path)] == ["train"] * 300 + ["val"] * 10
    assert read_captions(str(path), split="train") == ["x"] * 300
    assert {row.split for row in read_clips(path, tmp_path, **{"columns.split": ""})} == {"train"}
    with pytest.raises(ManifestError, match="no column 'part' for the split"):
        read_rows(path, tmp_path, {"split": "part"})


def test_broken_json_lines_are_bad_rows(tmp_path: Path) -> None:
    good = '{"videoid": "a", "name": "hello"}'
    lines = [good, "{", "[1]", "", '{"videoid": "b", "name": "\\ud800"}', "[" * 5000, '{"name": "x"}', "\xff" + good]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    rows = read_rows(tmp_path / "a.jsonl", tmp_path)
    assert [row.record for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.reason.value for row in rows if isinstance(row, BadRow)] == ["bad_row"] * 4 + ["missing_id", "bad_row"]
    assert isinstance(rows[1], BadRow)
    assert re.fullmatch(r"no JSON: Expecting property name .*, character 3", rows[1].detail)


def test_invalid_utf8_in_parquet_is_a_bad_row(tmp_path: Path) -> None:
    names = pa.array([b"fine", b"caf\xe9", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"videoid": ["a", "b", "c"], "name": names}), tmp_path / "a.parquet")
    good, broken, last = read_rows(tmp_path / "a.parquet", tmp_path)
    assert isinstance(broken, BadRow)
    assert (broken.record, broken.clip_id, broken.reason) == (2, "b", RejectReason.BAD_ROW)
    assert isinstance(good, ClipRow)
    assert isinstance(last, ClipRow)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\0\0\0\x20ftypisom\0\xff\n", "binary data"),
        (b"x" * 100_000, "binary data"),
        ("videoid,name\n".encode("utf-16"), "UTF-16"),
        (b"PAR1 and no more", "damaged or cut off"),
        (gzip.compress(b"videoid,name\na,hello\n" * 99, mtime=0)[:-9], "damaged or cut off"),
        (b'[\n {"videoid": 1}]', "JSON list"),
        (b"{\n}\n", "not JSON lines"),
        (b"videoid,name\n", "no rows"),
        (b"id,text\n1,x\n", r"found: id, text\); name it with --columns.videoid"),
        (b"v_abc\trunning\nv_x\twalks\n", r"if its first line is a row, give it a header line$"),
        (b"v_abc;running\nv_x;walks\n", r"found: v_abc, running\).* give it a header line$"),
        (b"videoid|text\nv_x|walks\n", r"found: videoid, text\); .*, or all by --columns.layout$"),
        (b"videoid;name;name\na;x;y\n", r"names column 'name' twice; rename one of them"),
    ],
)
def test_unreadable_manifest_raises_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=message) as caught:
        read_rows(tmp_path / "a.csv", tmp_path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400


def test_column_twice_in_parquet_is_rejected(tmp_path: Path) -> None:
    cells = [pa.array([text]) for text in ("a", "b", "c")]
    pq.write_table(pa.table(cells, names=["videoid", "name", "name"]), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"a\.parquet names column 'name' twice; rename one of them"):
        read_rows(tmp_path / "a.parquet", tmp_path)


@pytest.mark.parametrize("mark", [",", ";", "|"])
def test_commas_semicolons_and_bars_separate_columns(tmp_path: Path, mark: str) -> None:
    text = '\ufeffvideoid;"name";"x,y"\r\na1;"one; two, three | four";2\r\n'
    (tmp_path / "a.csv").write_text(text.replace(";", mark).replace(f"one{mark}", "one;"), newline="")
    (row,) = read_clips(tmp_path / "a.csv", tmp_path)
    assert (row.clip_id, row.captions, row.extra) == ("a1", ("one; two, three | four",), {"x,y": "2"})


def test_video_given_as_manifest_is_rejected(shared_data: Path, tmp_path: Path) -> None:
    for video in sorted((shared_data / "clips" / "000001_000050").iterdir())[:5]:
        with pytest.raises(ManifestError, match="binary data"):
            read_rows(video, tmp_path)


def test_manifest_may_be_several_files_patterns_or_folders(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "x").mkdir()
    for n, name in enumerate(["b.csv", "a.csv", "x/a.csv", "x/_part.csv"]):
        write_csv(tmp_path / name, HEADER, [str(n), "hello", "p"])

    def sources(manifest: str) -> list[tuple[str, str]]:
        return [(row.source, row.clip_id) for row in read_clips(manifest, tmp_path)]

    assert sources(f"{tmp_path}/b.csv") == [("", "0")]
    assert sources(f"{tmp_path}/b.csv, {tmp_path}/a.csv") == [("b.csv", "0"), ("a.csv", "1")]
    assert sources(f"{tmp_path}/*.csv") == [("a.csv", "1"), ("b.csv", "0")]
    assert sources(str(tmp_path)) == [("a.csv", "1"), ("b.csv", "0")]
    assert sources(f"{tmp_path}/**/*.csv") == [("a.csv", "1"), ("b.csv", "0"), ("x/a.csv", "2")]
    assert sources(f"{tmp_path}/a.csv,{tmp_path}/x,{tmp_path}/*.csv") == [
        ("a.csv", "1"),
        ("x/a.csv", "2"),
        ("b.csv", "0"),
    ]
    assert [row.clip_id for row in read_clips(f"{tmp_path}/*.csv", tmp_path, limit=1)] == ["1"]
    for manifest, message in (
        (f"{tmp_path}/c*.csv", "no file matches"),
        (f"{tmp_path}/v", "without tables"),
        (",", "names no"),
    ):
        with pytest.raises(ManifestError, match=message):
            read_rows(manifest, tmp_path)


def test_fingerprint_depends_on_content_not_name(tmp_path: Path) -> None:
    def fingerprint(manifest: Path | str) -> str:
        return fingerprint_of_manifests(ShardVideos(manifest=str(manifest)))

    (tmp_path / "x").mkdir()
    one = write_csv(tmp_path / "a.csv", HEADER, ["1", "hello", "p"])
    same = write_csv(tmp_path / "x" / "b.csv", HEADER, ["1", "hello", "p"])
    other = write_csv(tmp_path / "c.csv", HEADER, ["2", "hello", "p"])
    assert fingerprint(one) == fingerprint(same)
    assert len({fingerprint(m) for m in (one, other, f"{one},{other}", f"{other},{one}")}) == 4
    tar = write_tar(tmp_path / "a.tar", {"1.mp4": b"x" * 2000})
    assert fingerprint(tar) != fingerprint(write_tar(tmp_path / "b.tar", {"1.mp4": b"x" * 30000}))
    with pytest.raises(EvilmError, match="nope"):
        fingerprint(tmp_path / "nope.csv")


def test_videos_need_a_root_or_leave_to_download(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / "a.csv", [*HEADER, "contentUrl"], ["1", "hello", "p", "https://x.org/1.mp4"])
    with pytest.raises(ConfigError, match="--videos is missing"):
        read_rows(manifest)
    with pytest.raises(ConfigError, match="no such folder"):
        read_rows(manifest, tmp_path / "nope")
    with pytest.raises(ConfigError, match=r"--fetch\.urls"):
        read_rows(manifest, "https://x.org/videos")
    (row,) = read_clips(manifest, tmp_path)
    assert (row.path, row.needs_ending, row.url) == ("p/1", True, "")  # a URL is no invitation
    (row,) = read_clips(manifest, tmp_path, **{"fetch.urls": True})
    assert (row.path, row.needs_ending, row.url) == ("p/1", True, "https://x.org/1.mp4")
    (row,) = read_clips(manifest, **{"fetch.urls": True})
    assert (row.path, row.needs_ending, row.url) == ("https://x.org/1.mp4", False, "")


def test_manifests_and_tars_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", HEADER, ["1", "hello", "p"])
    write_json_lines(tmp_path / "b.jsonl", {"videoid": "2", "name": "hello"})
    pq.write_table(pa.table({"videoid": ["3"], "name": ["hello"]}), tmp_path / "c.parquet")
    write_tar(tmp_path / "t.tar", {**TAR_MEMBERS, "big.mp4": b"big" * 100_000, "big.txt": b"Big."})
    fs = fsspec.filesystem("s3")
    for path in tmp_path.iterdir():
        fs.put_file(str(path), f"{s3_bucket}/m/{path.name}")
    assert [(row.source, row.clip_id) for row in read_clips(f"{s3_bucket}/m/[abc].*", s3_bucket)] == [
        ("a.csv", "1"),
        ("b.jsonl", "2"),
        ("c.parquet", "3"),
    ]
    assert [(row.source, row.clip_id) for row in read_rows(f"{s3_bucket}/m", f"{s3_bucket}/m")][-1] == ("t.tar", "big")
    assert fingerprint_of_manifests(ShardVideos(manifest=f"{s3_bucket}/m/[abc].*")) == fingerprint_of_manifests(
        ShardVideos(manifest=f"{tmp_path}/[abc].*")
    )
    tar = ShardVideos(manifest=f"{s3_bucket}/m/t.tar")
    before = fingerprint_of_manifests(tar)
    data = (tmp_path / "t.tar").read_bytes().replace(b"bigbig", b"BIGbig")
    fs.pipe_file(f"{s3_bucket}/m/t.tar", data)
    assert fingerprint_of_manifests(tar) != before, "of the same size, but written anew"
    fs.put_file(str(tmp_path / "t.tar"), f"{s3_bucket}/m/t.tar")
    config = ShardVideos(manifest=f"{s3_bucket}/m/t.tar")
    good = [row for row in read_manifests(config) if isinstance(row, ClipRow)]
    assert good == [row for row in read_rows(tmp_path / "t.tar") if isinstance(row, ClipRow)]
    with Fetcher(videos_root(config), FetchConfig()).fetch(
        good[-1].path, good[-1].needs_ending, good[-1].offset, good[-1].num_bytes
    ) as local:
        assert Path(local.path).read_bytes() == b"big" * 100_000


def test_relative_video_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v").mkdir()
    (tmp_path / "clips.csv").write_text("videoid,name\na,b\n")
    assert videos_root(ShardVideos(manifest="clips.csv", videos="v")) == str(tmp_path / "v")
