"""Manifests of every format and layout in use, many files, tars of clips."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.config.data import ColumnsConfig, FetchConfig
from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, EvilmError, ManifestError
from evilm.manifests.captions import read_captions
from evilm.manifests.reader import fingerprint_of_manifests, read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason


def rows_of(manifest: Path | str, videos: Path | str = "", **settings: Any) -> list[ClipRow | BadRow]:
    settings = {name: ColumnsConfig(**value) if name == "columns" else value for name, value in settings.items()}
    return list(read_manifests(ShardVideos(manifest=str(manifest), videos=str(videos), **settings)))


def clips(manifest: Path | str, videos: Path | str = "", **settings: Any) -> list[ClipRow]:
    """All rows, which must be good ones."""
    rows = rows_of(manifest, videos, **settings)
    good = [row for row in rows if isinstance(row, ClipRow)]
    assert good == rows
    return good


def bad(manifest: Path | str, videos: Path | str = "", **settings: Any) -> list[BadRow]:
    return [row for row in rows_of(manifest, videos, **settings) if isinstance(row, BadRow)]


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if ".tsv" in path.name else ",").writerows([header, *rows])
    path.write_bytes(gzip.compress(text.getvalue().encode()) if path.suffix == ".gz" else text.getvalue().encode())
    return path


def write_json_lines(path: Path, *records: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


HEADER = ["videoid", "name", "page_dir"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz", "a.jsonl", "a.ndjson.gz", "a.parquet"])
def test_every_format_gives_the_same_clips(tmp_path: Path, name: str) -> None:
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
    good = clips(path, tmp_path)
    assert [(row.record, row.clip_id, row.captions[0], row.path) for row in good] == [
        (1, "1", "One, \u65e5\u672c", "p/1"),
        (2, "2", "Two. New line", "p/2"),
    ]
    assert read_captions(str(path)) == ["One, \u65e5\u672c", "Two.\nNew line"]


def test_values_that_are_no_text(tmp_path: Path) -> None:
    record = {"videoid": 7, "name": "x", "page_dir": None, "n": 1.5, "ok": True, "tags": ["\xe9"], "gap": None}
    (row,) = clips(write_json_lines(tmp_path / "a.jsonl", record), tmp_path)
    assert (row.clip_id, row.path) == ("7", "7")
    assert row.extra == {"n": "1.5", "ok": "true", "tags": '["\xe9"]', "gap": ""}
    table = pa.table({"videoid": [7.0, None], "name": ["x", "y"], "mp4": [b"\0", b"\1"]})
    pq.write_table(table, tmp_path / "a.parquet")
    good, lost = rows_of(tmp_path / "a.parquet", tmp_path)
    assert isinstance(good, ClipRow)
    assert (good.clip_id, good.extra) == ("7", {})
    assert isinstance(lost, BadRow)
    assert lost.reason == RejectReason.MISSING_ID


def test_broken_json_lines_are_bad_rows(tmp_path: Path) -> None:
    good = '{"videoid": "a", "name": "hello"}'
    lines = [good, "{", "[1]", "", '{"videoid": "b", "name": "\\ud800"}', "[" * 5000, '{"name": "x"}', "\xff" + good]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    rows = rows_of(tmp_path / "a.jsonl", tmp_path)
    assert [row.record for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.reason.value for row in rows if isinstance(row, BadRow)] == ["bad_row"] * 4 + ["missing_id", "bad_row"]


def test_parquet_text_that_is_no_text(tmp_path: Path) -> None:
    names = pa.array([b"fine", b"caf\xe9", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"videoid": ["a", "b", "c"], "name": names}), tmp_path / "a.parquet")
    good, broken, last = rows_of(tmp_path / "a.parquet", tmp_path)
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
    ],
)
def test_a_file_that_is_no_manifest_is_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=message) as caught:
        rows_of(tmp_path / "a.csv", tmp_path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 400


def test_a_video_as_manifest(shared_data: Path, tmp_path: Path) -> None:
    for video in sorted((shared_data / "clips" / "000001_000050").iterdir())[:5]:
        with pytest.raises(ManifestError, match="binary data"):
            rows_of(video, tmp_path)


def test_many_files(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "x").mkdir()
    for n, name in enumerate(["b.csv", "a.csv", "x/a.csv", "x/_part.csv"]):
        write_csv(tmp_path / name, HEADER, [str(n), "hello", "p"])

    def sources(manifest: str) -> list[tuple[str, str]]:
        return [(row.source, row.clip_id) for row in clips(manifest, tmp_path)]

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
    assert [row.clip_id for row in clips(f"{tmp_path}/*.csv", tmp_path, limit=1)] == ["1"]
    for manifest, message in (
        (f"{tmp_path}/c*.csv", "no file matches"),
        (f"{tmp_path}/v", "without tables"),
        (",", "names no"),
    ):
        with pytest.raises(ManifestError, match=message):
            rows_of(manifest, tmp_path)


def test_fingerprint_goes_by_content(tmp_path: Path) -> None:
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


def test_videos_must_be_somewhere(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / "a.csv", [*HEADER, "contentUrl"], ["1", "hello", "p", "https://x.org/1.mp4"])
    with pytest.raises(ConfigError, match="--videos is missing"):
        rows_of(manifest)
    with pytest.raises(ConfigError, match="no such folder"):
        rows_of(manifest, tmp_path / "nope")
    with pytest.raises(ConfigError, match=r"--fetch\.urls"):
        rows_of(manifest, "https://x.org/videos")
    (row,) = clips(manifest, tmp_path)
    assert (row.path, row.needs_ending, row.url) == ("p/1", True, "")  # a URL is no invitation
    (row,) = clips(manifest, tmp_path, fetch=FetchConfig(urls=True))
    assert (row.path, row.needs_ending, row.url) == ("p/1", True, "https://x.org/1.mp4")
    (row,) = clips(manifest, fetch=FetchConfig(urls=True))
    assert (row.path, row.needs_ending, row.url) == ("https://x.org/1.mp4", False, "")


# Layouts


def test_webvid_is_what_nothing_else_is(shared_data: Path) -> None:
    rows = clips(shared_data / "clips.csv", shared_data / "clips")
    assert len(rows) == 92
    assert (rows[0].clip_id, rows[0].path, rows[0].start_s) == ("910000001", "000001_000050/910000001", None)


def test_openvid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    manifest = write_csv(
        tmp_path / "OpenVid-1M.csv",
        header.split(","),
        ["celebv_-AbC_1_0.mp4", "A man talks.", "5.1", "3.2", "0.99", "static", "100", "24.0", "4.1"],
    )
    with caplog.at_level("INFO"):
        (row,) = clips(manifest, tmp_path)
    assert "columns of openvid, by its header" in caplog.text
    assert (row.clip_id, row.path, row.needs_ending) == ("celebv_-AbC_1_0", "celebv_-AbC_1_0.mp4", False)
    assert row.extra["seconds"] == "4.1"


def test_internvid(tmp_path: Path) -> None:
    records = [
        {"YoutubeID": "Gx", "Start_timestamp": start, "End_timestamp": end, "Caption": "hello", "UMT_Score": 0.4}
        for start, end in [
            ("00:07:33.689", "00:07:51.085"),
            ("00:00:01.000", "00:00:01.000"),
            ("x", "00:00:02"),
            ("", ""),
        ]
    ]
    first, *others = rows_of(write_json_lines(tmp_path / "a.jsonl", *records), tmp_path)
    assert isinstance(first, ClipRow)
    assert (first.clip_id, first.path, first.needs_ending) == ("Gx_453.689_471.085", "Gx", True)
    assert (first.start_s, first.end_s, first.extra) == (453.689, 471.085, {"UMT_Score": "0.4"})
    assert [(row.clip_id, row.reason.value) for row in others if isinstance(row, BadRow)] == [("Gx", "bad_span")] * 3


def test_panda(tmp_path: Path) -> None:
    header = ["videoID", "url", "timestamp", "caption", "matching_score"]
    spans = "[['0:00:11.180', '0:00:18.020'], ['0:00:30.0', '0:00:20.0'], ['0:01:00.5', '0:01:10']]"
    captions = str(["A dog's day.", "Backwards.", ""])
    url = "https://www.youtube.com/watch?v=AbC"
    manifest = write_csv(
        tmp_path / "panda.csv",
        header,
        ["AbC", url, spans, captions, "[0.5, 0.4, 0.3]"],
        ["DeF", url, spans, "['one']", "[0.5]"],
        ["GhI", url, "soon", "['one']", "[0.5]"],
        ["JkL", url, "[]", "[]", "[]"],
    )
    first, *others = rows_of(manifest, tmp_path)
    assert isinstance(first, ClipRow)
    assert (first.record, first.clip_id, first.path, first.captions[0]) == (1, "AbC_0", "AbC", "A dog's day.")
    assert (first.start_s, first.end_s, first.extra["matching_score"]) == (11.18, 18.02, "0.5")
    assert [(row.record, row.clip_id, row.reason.value) for row in others if isinstance(row, BadRow)] == [
        (1, "AbC_1", "bad_span"),
        (1, "AbC_2", "empty_caption"),
        (2, "DeF", "bad_row"),
        (3, "GhI", "bad_span"),
        (4, "JkL", "bad_span"),
    ]
    assert read_captions(str(manifest))[:2] == ["A dog's day.", "Backwards."]


def test_kinetics_by_flags(shared_data: Path, tmp_path: Path) -> None:
    columns = {"videoid": "youtube_id", "caption": "label", "start": "time_start", "end": "time_end"}
    rows = clips(shared_data / "annotations" / "kinetics400" / "kinetics-400_val.csv", tmp_path, columns=columns)
    assert len(rows) == len({row.clip_id for row in rows}) == 3000
    assert rows[0].clip_id == "0wR5jVB-WPk_417_427"
    assert (rows[0].split, rows[0].start_s, rows[0].end_s, rows[0].captions[0]) == ("val", 417, 427, "abseiling")


@pytest.mark.parametrize(
    ("file", "columns", "number"),
    [
        ("msrvtt/MSRVTT_JSFUSION_test.csv", {"videoid": "video_id", "caption": "sentence"}, 500),
        (
            "tgif_qa/Test_frameqa_question.csv",
            {"videoid": "gif_name", "caption": "description"},
            2000,
        ),  # tabs in a .csv
        ("msrvtt_qa/msrvtt_qa_val.jsonl", {"videoid": "video_id", "caption": "question"}, 2000),
        ("msrvtt_mc/msrvtt_mc_test.jsonl", {"videoid": "clip_name", "caption": "options"}, 1000),
    ],
)
def test_real_annotations(shared_data: Path, tmp_path: Path, file: str, columns: dict[str, str], number: int) -> None:
    rows = rows_of(shared_data / "annotations" / file, tmp_path, columns=columns)
    assert len(rows) == number
    assert sum(isinstance(row, ClipRow) for row in rows) >= number - 2


# Tars


def video2dataset(folder: Path, kind: str) -> Path:
    """What video2dataset leaves: a table per shard, beside a folder or a tar of its clips."""
    statuses = ["success", "failed_to_download", "success"]
    table = pa.table(
        {
            "videoid": ["a", "b", "c"],
            "key": ["00000000", "00000001", "00000002"],
            "status": statuses,
            "error_message": [None, "403 at https://u:p@x.org/b.mp4?token=secret", None],
            "url": ["https://x.org/a.mp4", "https://x.org/b.mp4", "https://x.org/c.mp4"],
            "caption": ["A.", "B.", "C."],
        }
    )
    pq.write_table(table, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    files = {f"{key}.{kind}": f"{key}.{kind}".encode() for key in ("00000000", "00000002") for kind in ("mp4", "txt")}
    if kind == "tar":
        write_tar(folder / "00000.tar", files)
    else:
        (folder / "00000").mkdir()
        for name, data in files.items():
            (folder / "00000" / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("columns", [{}, {"videoid": "videoid"}])
@pytest.mark.parametrize("kind", ["tar", "files"])
def test_video2dataset(tmp_path: Path, kind: str, columns: dict[str, str]) -> None:
    folder = video2dataset(tmp_path, kind)
    rows = rows_of(folder, "" if kind == "tar" else folder, columns=columns)
    good, lost = [row for row in rows if isinstance(row, ClipRow)], rows[1]
    assert [row.captions[0] for row in good] == ["A.", "C."]
    assert [row.clip_id for row in good] == (["a", "c"] if columns else ["00000000", "00000002"])
    assert isinstance(lost, BadRow)
    assert lost.reason == RejectReason.MISSING_FILE
    assert lost.detail == "video2dataset says failed_to_download: 403 at https://x.org/b.mp4"
    fetcher = Fetcher(str(folder), FetchConfig())
    for row, key in zip(good, ("00000000", "00000002"), strict=True):
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == f"{key}.mp4".encode()
            assert local.uri == f"00000{'.tar' * (kind == 'tar')}/{key}.mp4"


MEMBERS = {
    "d/0.mp4": b"zero" * 700,
    "d/0.txt": b"Zero.",
    "d/0.json": b'{"fps": 25, "caption": "not this"}',
    "1.json": b'{"caption": "One.", "split": "val"}',
    "1.webm": b"one" * 500,
    "2.mp4": b"two",
    "3.txt": b"No video.",
    "4.mp4": b"4",
    "4.json": b"[",
    "5.mp4": b"5",
    "5.gif": b"5",
    ".DS_Store": b"",
}


def test_tars_of_clips(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", MEMBERS)
    write_tar(tmp_path / "b.tar", {"z.mp4": b"z" * 10_000, "z.txt": b"Zed."})
    config = ShardVideos(manifest=f"{tmp_path}/*.tar")
    rows = list(read_manifests(config))
    good = [row for row in rows if isinstance(row, ClipRow)]
    assert [(row.source, row.clip_id, row.path, row.captions[0]) for row in good] == [
        ("a.tar", "d_0", "a.tar/d/0.mp4", "Zero."),
        ("a.tar", "1", "a.tar/1.webm", "One."),
        ("b.tar", "z", "b.tar/z.mp4", "Zed."),
    ]
    assert (good[1].split, good[0].extra["fps"]) == ("val", "25")
    assert [(row.clip_id, row.reason.value) for row in rows if isinstance(row, BadRow)] == [
        ("2", "empty_caption"),
        ("3", "missing_file"),
        ("4", "bad_row"),
        ("5", "bad_row"),
    ]
    assert videos_root(config) == str(tmp_path)
    fetcher = Fetcher(videos_root(config), FetchConfig())
    for row, data in zip(good, (b"zero" * 700, b"one" * 500, b"z" * 10_000), strict=True):
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == data
            assert (local.uri, local.num_bytes) == (row.path, len(data))
    assert read_captions(f"{tmp_path}/*.tar") == ["Zero.", "One.", "No video.", "Zed."]
    (tmp_path / "v").mkdir()
    with pytest.raises(ConfigError, match="outside of --videos"):
        rows_of(tmp_path / "a.tar", tmp_path / "v")


@pytest.mark.parametrize("cut", [100, 512, 1024, 2700, 5000, 5632, 6144, 7168])
def test_a_cut_tar_keeps_what_is_whole(tmp_path: Path, cut: int) -> None:
    members = {f"{n}.{kind}": f"{n}{kind}".encode() * 200 for n in range(4) for kind in ("mp4", "txt")}
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    rows = rows_of(tmp_path / "a.tar")
    good = [row for row in rows if isinstance(row, ClipRow)]
    per_sample = 2 * (512 + 1024)
    assert [row.clip_id for row in good] == [str(n) for n in range(cut // per_sample)]
    assert all(row.offset + row.num_bytes <= cut for row in good)
    (fault,) = [row for row in rows if isinstance(row, BadRow)]
    assert fault.reason == RejectReason.BAD_ROW
    assert fault.detail.startswith("a.tar: ")


def test_a_damaged_header_in_a_tar_is_named(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": b"x" for n in range(4) for kind in ("mp4", "txt")}
    data = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    data[4 * 1024 : 4 * 1024 + 512] = b"\x81" * 512
    (tmp_path / "a.tar").write_bytes(data)
    rows = rows_of(tmp_path / "a.tar")
    assert [row.clip_id for row in rows if isinstance(row, ClipRow)] == ["0", "1"]
    assert "damaged header after 2 samples" in rows[-1].detail  # type: ignore[union-attr]
    (tmp_path / "b.tar").write_bytes(b"not a tar at all" * 100)
    assert "no tar" in bad(tmp_path / "b.tar")[0].detail
    (tmp_path / "c.tar").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(ManifestError, match="compressed"):
        rows_of(tmp_path / "c.tar")


def test_tars_in_a_cache_of_downloads(tmp_path: Path) -> None:
    """Hugging Face keeps files in blobs/ and links to them in snapshots/."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "a").mkdir(parents=True)
    write_tar(tmp_path / "blobs" / "0123", sample("a"))
    (tmp_path / "snapshots" / "a" / "0.tar").symlink_to("../../blobs/0123")
    config = ShardVideos(manifest=str(tmp_path / "snapshots" / "a"))
    (row,) = clips(config.manifest)
    with Fetcher(videos_root(config), FetchConfig()).fetch(row.path, False, row.offset, row.num_bytes) as local:
        assert Path(local.path).read_bytes() == b"video" * 300


def sample(key: str) -> dict[str, bytes]:
    return {f"{key}.mp4": b"video" * 300, f"{key}.txt": b"Words."}


def test_tars_that_were_joined_by_cat(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", sample(f"a{n}") | sample(f"b{n}")).read_bytes() for n in range(3)]
    (tmp_path / "all.tar").write_bytes(parts[0] + bytes(1 << 17) + b"".join(parts[1:]))
    rows = clips(tmp_path / "all.tar")
    assert [row.clip_id for row in rows] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    fetcher = Fetcher(str(tmp_path), FetchConfig())
    for row in rows:
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == b"video" * 300
    (tmp_path / "all.tar").write_bytes(parts[0] + parts[1][:6144] + b"\xff" * 512)
    *good, last = rows_of(tmp_path / "all.tar")
    assert [row.clip_id for row in good] == ["a0", "b0", "a1", "b1"]
    assert isinstance(last, BadRow)
    assert "damaged header after 4 samples" in last.detail
    (tmp_path / "all.tar").write_bytes(parts[0] + b"no tar" * 100)
    (lost,) = bad(tmp_path / "all.tar")
    assert "bytes that are no tar follow its end mark, after 2 samples" in lost.detail


def test_headers_of_tars_that_lie(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, pax: Mapping[str, str] = {}) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.pax_headers = abs(size), kind, dict(pax)
        data = bytearray(info.tobuf(tarfile.PAX_FORMAT))
        if size < 0 and not pax:
            data[-512 + 124 : -512 + 136] = (2**96 + size).to_bytes(12)
            data[-512 + 148 : -512 + 156] = b"        "
            data[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(data[-512:])
        return bytes(data)

    good = write_tar(tmp_path / "a.tar", sample("a")).read_bytes()[: 512 * 6]
    chain = header("x", 0, tarfile.XHDTYPE) * 3000
    for lie in (
        header("b.mp4", -512),
        header("b.txt", -1),
        header("b", -1024, tarfile.GNUTYPE_LONGNAME),
        header("b", 1 << 32, tarfile.XHDTYPE),
        header("b.txt", 3, pax={"size": "-99"}),
        chain + header("b.mp4", 0),
    ):
        (tmp_path / "a.tar").write_bytes(good + lie + bytes(20_000))
        first, last = rows_of(tmp_path / "a.tar")
        assert isinstance(first, ClipRow)
        assert isinstance(last, BadRow)
        assert "damaged header after 1 samples" in last.detail
        (tmp_path / "a.tar").write_bytes(lie + bytes(20_000))
        assert [row.reason for row in bad(tmp_path / "a.tar")] == [RejectReason.BAD_ROW]


def test_members_of_tars_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, data in (sample("a") | {"o.\udcff.mp4": b"x"} | sample("o") | sample("u\udcff")).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("d.mp4", tarfile.CHRTYPE), ("l.mp4", tarfile.SYMTYPE), ("e.x", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.mp4"
            tar.addfile(info)
    rows = rows_of(tmp_path / "a.tar")
    assert [row.clip_id for row in rows if isinstance(row, ClipRow)] == ["a"]
    told = {row.clip_id: row.detail for row in rows if isinstance(row, BadRow)}
    assert told["o"] == "the name of a member is not UTF-8"
    assert told["u?"] == "not UTF-8"
    assert told["l"].startswith("l.mp4 is a link")
    assert told["d"].startswith("d.mp4 is a link, a device")


def test_all_on_an_object_store(s3_bucket: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", HEADER, ["1", "hello", "p"])
    write_json_lines(tmp_path / "b.jsonl", {"videoid": "2", "name": "hello"})
    pq.write_table(pa.table({"videoid": ["3"], "name": ["hello"]}), tmp_path / "c.parquet")
    write_tar(tmp_path / "t.tar", {**MEMBERS, "big.mp4": b"big" * 100_000, "big.txt": b"Big."})
    fs = fsspec.filesystem("s3")
    for path in tmp_path.iterdir():
        fs.put_file(str(path), f"{s3_bucket}/m/{path.name}")
    assert [(row.source, row.clip_id) for row in clips(f"{s3_bucket}/m/[abc].*", s3_bucket)] == [
        ("a.csv", "1"),
        ("b.jsonl", "2"),
        ("c.parquet", "3"),
    ]
    assert [(row.source, row.clip_id) for row in rows_of(f"{s3_bucket}/m", f"{s3_bucket}/m")][-1] == ("t.tar", "big")
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
    assert good == [row for row in rows_of(tmp_path / "t.tar") if isinstance(row, ClipRow)]
    with Fetcher(videos_root(config), FetchConfig()).fetch(
        good[-1].path, good[-1].needs_ending, good[-1].offset, good[-1].num_bytes
    ) as local:
        assert Path(local.path).read_bytes() == b"big" * 100_000
