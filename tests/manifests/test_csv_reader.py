"""Quotes in CSV and TSV: an unclosed one spoils its own row and no other."""

from pathlib import Path

import pytest

from evilm.config.data import ColumnsConfig
from evilm.config.stages import ShardVideos
from evilm.manifests.reader import read_manifests
from evilm.manifests.rows import ClipRow
from evilm.video.reasons import RejectReason
from helpers.tables import as_csv, rows_of_bytes

HEADER = ["videoid", "contentUrl", "duration", "page_dir", "name"]


def test_unclosed_quote_spoils_only_its_own_row(tmp_path: Path) -> None:
    rows = "".join(f"{n},,,,{'fine ' * 100}\n" for n in range(3000))  # longer than a field may be
    good, bad = rows_of_bytes(
        as_csv(HEADER, ["a", "", "", "", "hello"]) + b'b,,,,"never closed\n' + rows.encode(), tmp_path
    )
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
    ('1,"Stop\n2,a dog\n3,he said stop"\n4,x\n', ["bad", "a dog", 'he said stop"', "x"]),  # from quote to quote
    ('1,"Stop\r\n2,he said stop"\r\n4,x\r\n', ["bad", 'he said stop"', "x"]),
    (
        '1,"two lines,\nwaves, then\nleaves"\n2,"a\nb, c"\n3,"a,\nb,"\n',
        ["two lines, waves, then leaves", "a b, c", "a, b,"],
    ),
    ('1,6" long\n2,"two\r\n\r\nlines"\n\n3,"t,hree"', ['6" long', "two lines", "t,hree"]),
]


@pytest.mark.parametrize(("text", "captions"), BROKEN_QUOTES)
def test_every_row_is_counted_despite_broken_quotes(tmp_path: Path, text: str, captions: list[str]) -> None:
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
def test_tsv_quotes_are_literal_unless_they_wrap_a_field(tmp_path: Path, text: str, captions: list[str]) -> None:
    good, bad = rows_of_bytes(b"videoid\tname\n" + text.encode(), tmp_path, name="a.tsv")
    assert ([row.captions[0] for row in good], bad) == (captions, [])


def test_many_open_quotes_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each of its lines opens a quote that all others leave open."""
    number = 15_000
    good, bad = rows_of_bytes(b"videoid,name\n" + b'a""","\n' * number, tmp_path)
    assert (good, len(bad)) == ([], number)


def test_rows_appended_after_an_open_quote_are_read(tmp_path: Path) -> None:
    text = b'videoid,name\n1,one\n2,"two\n3,three\n'
    good, bad = rows_of_bytes(text, tmp_path)
    grown, grown_bad = rows_of_bytes(text + b"4,four\n", tmp_path)
    assert grown[:-1] == good
    assert grown[-1].clip_id == "4"
    assert [row.record for row in grown_bad] == [row.record for row in bad] == [2]


def test_rows_of_many_columns_in_one_field_are_read(tmp_path: Path) -> None:
    text = 'videoid;name;split\n1;"Stop;a\n2;two;\n3;a stop";val\n4;"a; b\nc; d; e";train\n'
    good, bad = rows_of_bytes(text.encode(), tmp_path)
    assert [(row.clip_id, row.captions[0]) for row in good] == [("2", "two"), ("3", 'a stop"'), ("4", "a; b c; d; e")]
    assert [row.detail for row in bad] == ["rows in one field, lines 2 to 4: a quote that is not closed?"]
    good, bad = rows_of_bytes(b'name\n"a\nb"\n', tmp_path, ColumnsConfig(videoid="name"))
    assert [row.clip_id for row in good] + [row.detail for row in bad] == ["a control character in the id"]
