"""Reading manifests: columns by name, every bad row with its reason, nothing outside the video root."""

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evilm.config.data import ColumnsConfig
from evilm.data.manifest import ClipRow, clean_caption, count_reasons, find_files, read_manifest
from evilm.data.plan import cut, plan_id, read_plan, read_rows, write_plan
from evilm.errors import ManifestError
from evilm.video.reasons import Reason

COLUMNS = ColumnsConfig()
HEADER = ["videoid", "contentUrl", "duration", "page_dir", "name"]


def as_csv(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def outcomes(data: bytes, videos: Path, name: str = "a.csv") -> dict[int, str]:
    """By record: ok, or the reason."""
    good, bad = read_manifest(data, name, COLUMNS, "train")
    found, lost = find_files(good, str(videos))
    return {row.record: "ok" for row in found} | {row.record: row.reason.value for row in [*bad, *lost]}


def test_bad_rows_as_expected(shared_data: Path) -> None:
    bad = shared_data / "bad"
    with (bad / "EXPECT.csv").open() as file:
        cases = [case for case in csv.DictReader(file) if case["csv"] == "rows_main.csv"]
    got = outcomes((bad / "rows_main.csv").read_bytes(), bad / "files")
    assert len(got) == len(cases) == 29
    for case in cases:
        wanted = "ok" if case["expect"] == "accept" else case["reason_class"]
        assert got[int(case["row"])] == wanted, case["case"]


@pytest.mark.parametrize("name", ["csv_bom_crlf.csv", "csv_no_final_newline.csv", "csv_old_header.csv"])
def test_odd_layouts(shared_data: Path, name: str) -> None:
    bad = shared_data / "bad"
    assert outcomes((bad / name).read_bytes(), bad / "files") == {1: "ok", 2: "ok", 3: "ok"}


def test_header_alone_is_a_clear_error(shared_data: Path) -> None:
    with pytest.raises(ManifestError, match="a header and no rows"):
        read_manifest((shared_data / "bad" / "csv_header_only.csv").read_bytes(), "a.csv", COLUMNS, "train")


def test_real_manifest(shared_data: Path) -> None:
    got = outcomes((shared_data / "clips.csv").read_bytes(), shared_data / "clips")
    assert list(got.values()) == ["ok"] * 92


def test_columns_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.webm").touch()
    data = as_csv([["a", "hello", "x/a.webm", "val", "7"]], ["id", "text", "file", "part", "score"])
    mapped = ColumnsConfig(videoid="id", caption="text", path="file", split="part")
    good, bad = read_manifest(data, "a.csv", mapped, "train")
    (row,), lost = find_files(good, str(tmp_path))
    assert not bad + lost
    assert (row.clip_id, row.caption, row.path, row.split) == ("a", "hello", "x/a.webm", "val")
    assert row.extra == {"score": "7"}
    with pytest.raises(ManifestError, match=r"no column 'videoid' .*found: id, text.*--columns\.videoid"):
        read_manifest(data, "a.csv", COLUMNS, "train")
    with pytest.raises(ManifestError, match=r"--columns\.path"):
        read_manifest(data, "a.csv", mapped.override({"path": "where"}), "train")
    with pytest.raises(ManifestError, match="'a' twice"):
        read_manifest(b"a,a\n1,2\n", "a.csv", COLUMNS, "train")


def test_extra_columns_are_kept(tmp_path: Path) -> None:
    good, _ = read_manifest(as_csv([["a", "u", "PT1S", "p", "hello"]]), "a.csv", COLUMNS, "train")
    assert good[0].extra == {"contentUrl": "u", "duration": "PT1S"}


def test_bytes_that_are_no_text() -> None:
    data = as_csv([["a", "", "", "", "hello"]]) + b"b,,,,caf\xe9\n" + b"c,,,,fine\n"
    good, bad = read_manifest(data, "a.csv", COLUMNS, "train")
    assert [row.clip_id for row in good] == ["a", "c"]
    assert [(row.record, row.reason) for row in bad] == [(2, Reason.BAD_ROW)]


def test_nothing_outside_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"secret")
    (root / "link").symlink_to(outside)
    names = ["link", "../outside", str(outside), "x/../../outside", "..\\outside", "\x01"]
    got = outcomes(as_csv([["a", "", "", name, "hello"] for name in names]), root)
    assert set(got.values()) == {Reason.PATH_UNSAFE.value}


def test_endings_and_unicode_names(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.gif", "b.mp4", "c.txt", "e\u0301.webm", "1.5.mkv"):
        (tmp_path / name).touch()
    ids = ["a", "b", "c", "\xe9", "1.5", "1"]
    good, _ = read_manifest(as_csv([[name, "", "", "", "hello"] for name in ids]), "a.csv", COLUMNS, "train")
    found, lost = find_files(good, str(tmp_path))
    assert [row.path for row in found] == ["a.MP4", "b.mp4", "e\u0301.webm", "1.5.mkv"]
    assert count_reasons(lost) == {"missing_file": 2}


def test_captions_are_cleaned() -> None:
    assert clean_caption("  A\tdog\r\n runs ") == "A dog runs"
    assert clean_caption("e\u0301") == "\xe9"
    assert clean_caption("a\x1b[31m red\x07 \u202edog\u2066") == "a red dog"
    assert clean_caption("\U0001f468\u200d\U0001f469\u200d\U0001f467") == "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert clean_caption(" \t \xa0\u200b\u200d ") == ""


@given(st.text(max_size=40))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean_caption(clean_caption(text)) == clean_caption(text)


def rows(num: int) -> list[ClipRow]:
    return [
        ClipRow(n, f"id{n}", ("train", "val")[n % 5 == 0], f"c{n}", "", f"id{n}.mp4", {"k": "v"}) for n in range(num)
    ]


def test_plan_ignores_the_order_of_rows() -> None:
    members = rows(50)
    shards = cut(members, 0, 16)
    assert {name: len(clips) for name, clips in shards.items()} == {
        "train-00000": 16,
        "train-00001": 16,
        "train-00002": 8,
        "val-00000": 10,
    }
    random.Random(0).shuffle(members)
    assert cut(members, 0, 16) == shards
    assert plan_id(cut(members, 0, 16)) == plan_id(shards)
    assert plan_id(cut(members, 1, 16)) != plan_id(shards)
    assert sorted(row.record for clips in shards.values() for row in clips) == list(range(50))


def test_plan_round_trip(tmp_path: Path) -> None:
    assert read_plan(str(tmp_path)) is None
    good, bad = read_manifest(as_csv([["a", "", "", "p", "hello"], ["", "", "", "", "x"]]), "a.csv", COLUMNS, "train")
    plan = write_plan(str(tmp_path), good, bad, 0, 4)
    assert read_plan(str(tmp_path)) == plan
    assert read_rows(str(tmp_path), "train-00000") == good
    assert plan.num_rows == 2
