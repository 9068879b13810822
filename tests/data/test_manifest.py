"""From records to clips: columns by name, every bad row with its reason, nothing outside the video root."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evilm.config.data import ColumnsConfig, FetchConfig
from evilm.config.stages import ShardVideos
from evilm.errors import DecodeError, EvilmError, ManifestError
from evilm.manifests.reader import read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow, clean_caption, count_reasons
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from evilm.video.urls import flat_name

HEADER = ["videoid", "contentUrl", "duration", "page_dir", "name"]


def as_csv(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def read(
    data: bytes, folder: Path, columns: ColumnsConfig | None = None, name: str = "a.csv"
) -> tuple[list[ClipRow], list[BadRow]]:
    """The good and the bad rows of a manifest that holds `data`."""
    (folder / name).write_bytes(data)
    config = ShardVideos(manifest=str(folder / name), videos=str(folder), columns=columns or ColumnsConfig())
    rows = list(read_manifests(config))
    return [row for row in rows if isinstance(row, ClipRow)], [row for row in rows if isinstance(row, BadRow)]


def outcomes(manifest: Path, videos: Path) -> dict[int, str]:
    """By record: ok, or the reason. Of rows with the same id, the first one that has a file counts."""
    config = ShardVideos(manifest=str(manifest), videos=str(videos))
    fetcher, got, taken = Fetcher(videos_root(config), FetchConfig()), {}, set()
    for row in read_manifests(config):
        if isinstance(row, BadRow):
            got[row.record] = row.reason.value
            continue
        try:
            with fetcher.fetch(row.path, row.needs_ending) as local:
                assert Path(local.path).is_file()
            got[row.record] = "duplicate_id" if row.clip_id in taken else "ok"
            taken.add(row.clip_id)
        except DecodeError as error:
            got[row.record] = error.reason
    return got


def test_bad_rows_as_expected(shared_data: Path) -> None:
    bad = shared_data / "bad"
    with (bad / "EXPECT.csv").open() as file:
        cases = [case for case in csv.DictReader(file) if case["csv"] == "rows_main.csv"]
    got = outcomes(bad / "rows_main.csv", bad / "files")
    assert len(got) == len(cases) == 29
    for case in cases:
        wanted = "ok" if case["expect"] == "accept" else case["reason_class"]
        assert got[int(case["row"])] == wanted, case["case"]


@pytest.mark.parametrize("name", ["csv_bom_crlf.csv", "csv_no_final_newline.csv", "csv_old_header.csv"])
def test_odd_layouts(shared_data: Path, name: str) -> None:
    bad = shared_data / "bad"
    assert outcomes(bad / name, bad / "files") == {1: "ok", 2: "ok", 3: "ok"}


def test_bad_files_as_far_as_names_tell(shared_data: Path) -> None:
    got = outcomes(shared_data / "bad" / "files.csv", shared_data / "bad" / "files")
    assert {record: reason for record, reason in got.items() if reason != "ok"} == {23: "not_a_file"}
    assert len(got) == 30


def test_real_manifest(shared_data: Path) -> None:
    got = outcomes(shared_data / "clips.csv", shared_data / "clips")
    assert list(got.values()) == ["ok"] * 92


def test_columns_are_mapped(tmp_path: Path) -> None:
    data = as_csv([["a", "hello", "x/a.webm", "val", "7"]], ["id", "text", "file", "part", "score"])
    mapped = ColumnsConfig(videoid="id", caption="text", path="file", split="part")
    (row,), bad = read(data, tmp_path, mapped)
    assert not bad
    assert (row.clip_id, row.captions[0], row.path, row.split) == ("a", "hello", "x/a.webm", "val")
    assert not row.needs_ending
    assert row.extra == {"score": "7"}
    with pytest.raises(EvilmError, match=r"no column 'videoid' .*found: id, text.*--columns\.videoid"):
        read(data, tmp_path)
    with pytest.raises(EvilmError, match=r"--columns\.path"):
        read(data, tmp_path, mapped.override({"path": "where"}))
    with pytest.raises(EvilmError, match=r"--columns\.page-dir"):
        read(data, tmp_path, mapped.override({"page_dir": "where"}))
    with pytest.raises(EvilmError, match=r"columns\.caption is empty"):
        read(data, tmp_path, mapped.override({"caption": ""}))
    with pytest.raises(EvilmError, match="'a' twice"):
        read(b"a,a\n1,2\n", tmp_path)


def test_an_empty_name_means_no_such_column(tmp_path: Path) -> None:
    data = as_csv([["a", "", "", "p", "hello"]])
    assert read(data, tmp_path)[0][0].path == "p/a"
    assert read(data, tmp_path, ColumnsConfig(page_dir=""))[0][0].path == "a"
    (row,), _ = read(as_csv([["p/a.MP4", "hello"]], ["file", "name"]), tmp_path, ColumnsConfig(videoid="", path="file"))
    assert (row.clip_id, row.path) == (flat_name("p/a"), "p/a.MP4")


def test_extra_columns_are_kept(tmp_path: Path) -> None:
    good, _ = read(as_csv([["a", "https://u:p@x.org/a.mp4?key=1", "PT1S", "p", "hello"]]), tmp_path)
    assert good[0].extra == {"contentUrl": "https://x.org/a.mp4", "duration": "PT1S"}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    data = as_csv([["a", "", "", "", "hello"]]) + b"b,,,,caf\xe9\n" + b"c,,,,fine\n"
    good, bad = read(data, tmp_path)
    assert [row.clip_id for row in good] == ["a", "c"]
    assert [(row.record, row.clip_id, row.reason) for row in bad] == [(2, "b", RejectReason.BAD_ROW)]


def test_an_open_quote_takes_no_row_after_its_own(tmp_path: Path) -> None:
    rows = "".join(f"{n},,,,{'fine ' * 100}\n" for n in range(3000))  # longer than a field may be
    good, bad = read(as_csv([["a", "", "", "", "hello"]]) + b'b,,,,"never closed\n' + rows.encode(), tmp_path)
    assert [row.clip_id for row in good] == ["a", *map(str, range(3000))]
    assert [(row.record, row.clip_id, row.reason) for row in bad] == [(2, "b", RejectReason.BAD_ROW)]
    assert "lines 3 to" in bad[0].detail


BROKEN_QUOTES = [
    ('1,"a dog\n2,two\n3,three\n', ["bad", "two", "three"]),  # to the end of the file
    ('1,"a dog\n2,two\n3,"three"\n4,four\n', ["bad", "two", "three", "four"]),
    ('1,"a dog\n2,"two\n3,"three\n', ["bad", "bad", "bad"]),
    ('1,"Hello" he said\n2,two\n', ["bad", "two"]),
    ('1,"a dog\n2,"two,\nand ""more"""\n3,three\n', ["bad", 'two, and "more"', "three"]),
    ('1,"a dog\n2,two",,\n3,three\n', ["bad", "bad", "three"]),
    ('1,6" long\n2,"two\r\n\r\nlines"\n\n3,"t,hree"', ['6" long', "two lines", "t,hree"]),
]


@pytest.mark.parametrize(("text", "captions"), BROKEN_QUOTES)
def test_broken_quotes_lose_no_row(tmp_path: Path, text: str, captions: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(b"videoid,name\n" + text.encode())
    rows = list(read_manifests(ShardVideos(manifest=str(tmp_path / "a.csv"), videos=str(tmp_path))))
    assert [row.captions[0] if isinstance(row, ClipRow) else "bad" for row in rows] == captions
    assert [row.record for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('1\t"foo\n2\tbar"\n3\tok\n', ['"foo', 'bar"', "ok"]),
        ('1\t"Hello" he said\n2\t"open\n3\tok\n', ['"Hello" he said', '"open', "ok"]),
        ('1\t"a ""b""\nc"\n2\t"d"\n', ['a "b" c', "d"]),
    ],
)
def test_quotes_in_a_tsv(tmp_path: Path, text: str, captions: list[str]) -> None:
    good, bad = read(b"videoid\tname\n" + text.encode(), tmp_path, name="a.tsv")
    assert ([row.captions[0] for row in good], bad) == (captions, [])


def test_a_file_of_open_quotes_ends_soon(tmp_path: Path) -> None:
    """Each of its lines opens a quote that all others leave open."""
    number = 15_000
    good, bad = read(b"videoid,name\n" + b'a""","\n' * number, tmp_path)
    assert (good, len(bad)) == ([], number)


def test_rows_added_after_an_open_quote_are_added(tmp_path: Path) -> None:
    text = b'videoid,name\n1,one\n2,"two\n3,three\n'
    good, bad = read(text, tmp_path)
    grown, grown_bad = read(text + b"4,four\n", tmp_path)
    assert grown[:-1] == good
    assert grown[-1].clip_id == "4"
    assert [row.record for row in grown_bad] == [row.record for row in bad] == [2]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="column 'caf\\?' that is not UTF-8") as caught:
        read(b"videoid,name,caf\xe9\na,hello,x\n", tmp_path)
    assert "\n" not in str(caught.value)
    lines = b'{"videoid": "a", "name": "x"}\n{"videoid": "b", "name": "x", "\\ud800": 1}\n'
    good, bad = read(lines, tmp_path, name="a.jsonl")
    assert [row.clip_id for row in good] == ["a"]
    assert [(row.clip_id, row.reason, row.detail) for row in bad] == [("b", RejectReason.BAD_ROW, "not UTF-8")]


def test_a_split_is_a_short_name(tmp_path: Path) -> None:
    data = as_csv([["a", "hello", "s" * 100], ["b", "hello", "s" * 101]], ["videoid", "name", "split"])
    good, bad = read(data, tmp_path)
    assert [row.split for row in good] == ["s" * 100]
    assert [row.reason for row in bad] == [RejectReason.BAD_ROW]


def test_nothing_outside_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"secret")
    (root / "link").symlink_to(outside)
    (root / "c.mp4").symlink_to(outside / "a.mp4")
    names = [
        "link",
        "../outside",
        str(outside),
        "x/../../outside",
        "..\\outside",
        "\x01",
        f"file://{outside}",
        "s3://b",
    ]
    manifest = tmp_path / "a.csv"
    manifest.write_bytes(as_csv([*(["a", "", "", name, "hello"] for name in names), ["c", "", "", "", "hello"]]))
    got = outcomes(manifest, root)
    assert len(got) == 9
    assert set(got.values()) == {RejectReason.PATH_UNSAFE.value}


def test_paths_and_urls_of_a_column(tmp_path: Path) -> None:
    cells = [
        "p/a.mp4",
        "./p//a.mp4",
        "https://x.org/a.mp4?k=1",
        "ftp://x.org/a.mp4",
        "/etc/passwd",
        "file:///etc/passwd",
        "",
    ]
    data = as_csv([[str(n), "hello", cell] for n, cell in enumerate(cells)], ["videoid", "name", "file"])
    good, bad = read(data, tmp_path, ColumnsConfig(path="file"))
    assert [row.path for row in good] == ["p/a.mp4", "p/a.mp4", "https://x.org/a.mp4?k=1"]
    assert [row.reason for row in bad] == [RejectReason.PATH_UNSAFE] * 3 + [RejectReason.MISSING_FILE]


def test_endings_and_unicode_names(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.gif", "b.mp4", "c.txt", "e\u0301.webm", "1.5.mkv"):
        (tmp_path / name).touch()
    ids = ["a", "b", "c", "\xe9", "1.5", "1", "x" * 300]
    good, _ = read(as_csv([[name, "", "", "", "hello"] for name in ids]), tmp_path)
    fetcher, found = Fetcher(str(tmp_path), FetchConfig()), []
    for row in good:
        try:
            with fetcher.fetch(row.path, row.needs_ending) as local:
                found.append(local.uri)
        except DecodeError as error:
            found.append(error.reason)
    assert found == ["a.MP4", "b.mp4", "missing_file", "e\u0301.webm", "1.5.mkv", "missing_file", "missing_file"]


def test_captions_are_cleaned() -> None:
    assert clean_caption("  A\tdog\r\n runs ") == "A dog runs"
    assert clean_caption("e\u0301") == "\xe9"
    assert clean_caption("a\x1b[31m red\x07 \u202edog\u2066") == "a red dog"
    assert clean_caption("\U0001f468\u200d\U0001f469\u200d\U0001f467") == "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert clean_caption(" \t \xa0\u200b\u200d ") == ""


@given(st.text(max_size=40))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean_caption(clean_caption(text)) == clean_caption(text)


def test_reasons_are_counted() -> None:
    rows = [
        BadRow(n, "", reason)
        for n, reason in enumerate([RejectReason.BAD_ROW, RejectReason.BAD_SPAN, RejectReason.BAD_SPAN])
    ]
    assert list(count_reasons(rows).items()) == [("bad_span", 2), ("bad_row", 1)]
