"""From records to clips: columns by name, every bad row with its reason, nothing outside the video root."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evilm.config.data import ColumnsConfig, FetchConfig
from evilm.config.secrets import unsigned
from evilm.config.stages import ShardVideos
from evilm.errors import DecodeError, EvilmError, ManifestError
from evilm.ingest.clip_table import content_of
from evilm.manifests.caption_text import clean_caption
from evilm.manifests.reader import read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from evilm.video.urls import flat_name
from helpers.tables import as_csv, only_clips, read_clips, read_rows, rows_of_bytes, rows_of_text, write_csv, write_tar

HEADER = ["videoid", "contentUrl", "duration", "page_dir", "name"]


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


def test_bad_rows_of_a_real_set_get_the_expected_reasons(shared_data: Path) -> None:
    bad = shared_data / "bad"
    with (bad / "EXPECT.csv").open() as file:
        cases = [case for case in csv.DictReader(file) if case["csv"] == "rows_main.csv"]
    got = outcomes(bad / "rows_main.csv", bad / "files")
    assert len(got) == len(cases) == 29
    for case in cases:
        wanted = "ok" if case["expect"] == "accept" else case["reason_class"]
        assert got[int(case["row"])] == wanted, case["case"]


@pytest.mark.parametrize("name", ["csv_bom_crlf.csv", "csv_no_final_newline.csv", "csv_old_header.csv"])
def test_bom_crlf_and_missing_final_newline_are_read(shared_data: Path, name: str) -> None:
    bad = shared_data / "bad"
    assert outcomes(bad / name, bad / "files") == {1: "ok", 2: "ok", 3: "ok"}


def test_only_a_non_file_is_rejected_before_decoding(shared_data: Path) -> None:
    got = outcomes(shared_data / "bad" / "files.csv", shared_data / "bad" / "files")
    assert {record: reason for record, reason in got.items() if reason != "ok"} == {23: "not_a_file"}
    assert len(got) == 30


def test_every_row_of_a_real_manifest_has_its_video(shared_data: Path) -> None:
    got = outcomes(shared_data / "clips.csv", shared_data / "clips")
    assert list(got.values()) == ["ok"] * 92


def test_columns_are_mapped_and_missing_ones_named(tmp_path: Path) -> None:
    data = as_csv(["id", "text", "file", "part", "score"], ["a", "hello", "x/a.webm", "val", "7"])
    mapped = ColumnsConfig(videoid="id", caption="text", path="file", split="part")
    (row,), bad = rows_of_bytes(data, tmp_path, mapped)
    assert not bad
    assert (row.clip_id, row.captions[0], row.path, row.split) == ("a", "hello", "x/a.webm", "val")
    assert not row.needs_ending
    assert row.extra == {"score": "7"}
    with pytest.raises(EvilmError, match=r"no column 'videoid' .*found: id, text.*--columns\.videoid"):
        rows_of_bytes(data, tmp_path)
    with pytest.raises(EvilmError, match=r"--columns\.path"):
        rows_of_bytes(data, tmp_path, mapped.override({"path": "where"}))
    with pytest.raises(EvilmError, match=r"--columns\.page-dir"):
        rows_of_bytes(data, tmp_path, mapped.override({"page_dir": "where"}))
    with pytest.raises(EvilmError, match=r"columns\.caption is empty"):
        rows_of_bytes(data, tmp_path, mapped.override({"caption": ""}))
    with pytest.raises(EvilmError, match="'a' twice"):
        rows_of_bytes(b"a,a\n1,2\n", tmp_path)


def test_empty_column_name_disables_the_column(tmp_path: Path) -> None:
    data = as_csv(HEADER, ["a", "", "", "p", "hello"])
    assert rows_of_bytes(data, tmp_path)[0][0].path == "p/a"
    assert rows_of_bytes(data, tmp_path, ColumnsConfig(page_dir=""))[0][0].path == "a"
    (row,), _ = rows_of_bytes(
        as_csv(["file", "name"], ["p/a.MP4", "hello"]), tmp_path, ColumnsConfig(videoid="", path="file")
    )
    assert (row.clip_id, row.path) == (flat_name("p/a"), "p/a.MP4")


def test_extra_columns_are_kept_without_secrets(tmp_path: Path) -> None:
    good, _ = rows_of_bytes(as_csv(HEADER, ["a", "https://u:p@x.org/a.mp4?key=1", "PT1S", "p", "hello"]), tmp_path)
    assert good[0].extra == {"contentUrl": "https://x.org/a.mp4", "duration": "PT1S"}


def test_invalid_utf8_spoils_only_its_row(tmp_path: Path) -> None:
    data = as_csv(HEADER, ["a", "", "", "", "hello"]) + b"b,,,,caf\xe9\n" + b"c,,,,fine\n"
    good, bad = rows_of_bytes(data, tmp_path)
    assert [row.clip_id for row in good] == ["a", "c"]
    assert [(row.record, row.clip_id, row.reason) for row in bad] == [(2, "b", RejectReason.BAD_ROW)]


def test_invalid_utf8_in_column_names_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="column 'caf\\?' that is not UTF-8") as caught:
        rows_of_bytes(b"videoid,name,caf\xe9\na,hello,x\n", tmp_path)
    assert "\n" not in str(caught.value)
    lines = b'{"videoid": "a", "name": "x"}\n{"videoid": "b", "name": "x", "\\ud800": 1}\n'
    good, bad = rows_of_bytes(lines, tmp_path, name="a.jsonl")
    assert [row.clip_id for row in good] == ["a"]
    assert [(row.clip_id, row.reason, row.detail) for row in bad] == [("b", RejectReason.BAD_ROW, "not UTF-8")]


def test_split_over_100_characters_is_a_bad_row(tmp_path: Path) -> None:
    data = as_csv(["videoid", "name", "split"], ["a", "hello", "s" * 100], ["b", "hello", "s" * 101])
    good, bad = rows_of_bytes(data, tmp_path)
    assert [row.split for row in good] == ["s" * 100]
    assert [row.reason for row in bad] == [RejectReason.BAD_ROW]


def test_paths_outside_the_root_are_unsafe(tmp_path: Path) -> None:
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
    manifest.write_bytes(as_csv(HEADER, *(["a", "", "", name, "hello"] for name in names), ["c", "", "", "", "hello"]))
    got = outcomes(manifest, root)
    assert len(got) == 9
    assert set(got.values()) == {RejectReason.PATH_UNSAFE.value}


def test_path_column_takes_relative_paths_and_http_urls(tmp_path: Path) -> None:
    cells = [
        "p/a.mp4",
        "./p//a.mp4",
        "https://x.org/a.mp4?k=1",
        "ftp://x.org/a.mp4",
        "/etc/passwd",
        "file:///etc/passwd",
        "",
    ]
    data = as_csv(["videoid", "name", "file"], *[[str(n), "hello", cell] for n, cell in enumerate(cells)])
    good, bad = rows_of_bytes(data, tmp_path, ColumnsConfig(path="file"))
    assert [row.path for row in good] == ["p/a.mp4", "p/a.mp4", "https://x.org/a.mp4?k=1"]
    assert [row.reason for row in bad] == [RejectReason.PATH_UNSAFE] * 3 + [RejectReason.MISSING_FILE]


def test_videos_are_found_by_any_ending_and_unicode_form(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.gif", "b.mp4", "c.txt", "e\u0301.webm", "1.5.mkv"):
        (tmp_path / name).touch()
    ids = ["a", "b", "c", "\xe9", "1.5", "1", "x" * 300]
    good, _ = rows_of_bytes(as_csv(HEADER, *[[name, "", "", "", "hello"] for name in ids]), tmp_path)
    fetcher, found = Fetcher(str(tmp_path), FetchConfig()), []
    for row in good:
        try:
            with fetcher.fetch(row.path, row.needs_ending) as local:
                found.append(local.uri)
        except DecodeError as error:
            found.append(error.reason)
    assert found == ["a.MP4", "b.mp4", "missing_file", "e\u0301.webm", "1.5.mkv", "missing_file", "missing_file"]


def test_clean_caption_drops_controls_and_extra_spaces() -> None:
    assert clean_caption("  A\tdog\r\n runs ") == "A dog runs"
    assert clean_caption("e\u0301") == "\xe9"
    assert clean_caption("a\x1b[31m red\x07 \u202edog\u2066") == "a red dog"
    assert clean_caption("\U0001f468\u200d\U0001f469\u200d\U0001f467") == "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert clean_caption(" \t \xa0\u200b\u200d ") == ""


@hypothesis_settings(deadline=None)
@given(st.text(max_size=40))
def test_clean_caption_is_idempotent(text: str) -> None:
    assert clean_caption(clean_caption(text)) == clean_caption(text)


def test_absolute_path_must_be_below_the_root(tmp_path: Path) -> None:
    flags = {"columns.videoid": "", "columns.path": "path", "columns.caption": "text"}
    inside, outside = tmp_path / "v" / "p" / "a.mp4", tmp_path / "a.mp4"
    good, bad = rows_of_text(tmp_path, f"path,text\n{inside},one\n{outside},two\n", **flags)
    assert isinstance(good, ClipRow)
    assert good.path == "p/a.mp4"
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("path_unsafe", "an absolute path outside of the video root")


def test_all_spellings_of_a_path_below_the_root_are_accepted(tmp_path: Path) -> None:
    root, link, other = tmp_path / "v", tmp_path / "link", tmp_path / "other"
    (root / "p q").mkdir(parents=True)
    other.mkdir()
    link.symlink_to(root)
    (root / "out").symlink_to(other)
    good = [f"{folder}/p q/a.mp4" for folder in (root, link, f"{root}/", f"/{root}", f"{root}/.", f"file://{root}")]
    good += [f"file://localhost{link}/p%20q/a.mp4".replace("link", name) for name in ("v", "link")]
    bad = [f"{other}/a.mp4", f"file://{other}/a.mp4", f"{root}/../other/a.mp4", f"file://{root}/%2e%2e/a.mp4"]
    bad += [f"file://host{root}/a.mp4", f"{tmp_path}/v2/a.mp4", str(root)]
    cells = [[str(number), "x", path] for number, path in enumerate(good + bad)]
    manifest = write_csv(tmp_path / "a.csv", ["videoid", "name", "file"], *cells)
    for videos in (root, link):
        rows = read_rows(manifest, videos, {"path": "file"})
        assert [row.path for row in rows if isinstance(row, ClipRow)] == ["p q/a.mp4"] * len(good)
        assert [row.reason for row in rows if isinstance(row, BadRow)] == [RejectReason.PATH_UNSAFE] * len(bad)


def test_ids_made_from_paths_are_unique_per_path(tmp_path: Path) -> None:
    flags = {"columns.videoid": "", "columns.path": "path", "columns.caption": "text"}
    rows = only_clips(rows_of_text(tmp_path, "path,text\n./a.mp4,x\na/b.mp4,x\na_b.mp4,x\n./a//b.mp4,x\n", **flags))
    assert [row.clip_id for row in rows] == ["a", rows[1].clip_id, "a_b", rows[1].clip_id]
    assert rows[1].clip_id.startswith("a_b-")


def test_newly_signed_url_is_the_same_row(tmp_path: Path) -> None:
    def row(query: str, **settings: Any) -> ClipRow:
        text = f"videoid,name,contentUrl\na1,x,https://me:pw@x.org/a1.mp4?v=7&{query}\n"
        flags = {"fetch.urls": True, "columns.path": "contentUrl"} | settings
        return only_clips(rows_of_text(tmp_path, text, **flags))[0]

    for settings in ({}, {"columns.videoid": ""}):
        old, new = (row(f"X-Amz-Expires=3600&X-Amz-Signature={sign}", **settings) for sign in ("old", "new"))
        assert old.path != new.path
        assert (old.clip_id, content_of(old)) == (new.clip_id, content_of(new))
        assert content_of(old) != content_of(row("w=8", **settings))
    assert unsigned("https://u:p@x.org/a?v=1&Signature=x&Expires=2&b=c#f") == "https://x.org/a?v=1&b=c"


def test_control_character_in_an_id_is_a_bad_row(tmp_path: Path) -> None:
    (bad,) = rows_of_text(tmp_path, 'videoid,name\n"a\x07b",x\n')
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("bad_row", "a control character in the id")


def test_clean_caption_ignores_pythons_unicode_version() -> None:
    assert clean_caption("new \U0001fae8 \U000323b0 \u20c0") == "new \U0001fae8 \U000323b0 \u20c0", (
        "of Unicode 15 and 13"
    )
    assert clean_caption("a\u180eb\u2028c\x85d\u3000e") == "ab c d e"
    assert clean_caption("x\ue000y\u00adz") == "xyz"


def test_val_and_test_shares_split_by_source_video(tmp_path: Path) -> None:
    flags = {"columns.videoid": "id", "columns.start": "from", "columns.end": "to", "columns.caption": "text"}
    spans = "".join(f"v{n % 200},{n // 200},{n // 200 + 1},x\n" for n in range(1000))
    shares = {"val_share": 0.2, "test_share": 0.1}
    rows = only_clips(rows_of_text(tmp_path, "id,from,to,text\n" + spans, **flags, **shares))
    sides = {row.path: row.split for row in rows}
    assert all(row.split == sides[row.path] for row in rows), "all spans of a video are on one side"
    counts = {split: list(sides.values()).count(split) for split in ("train", "val", "test")}
    assert counts["val"] in range(25, 56)
    assert counts["test"] in range(8, 34)
    other = only_clips(rows_of_text(tmp_path, **flags, **shares, **{"sampling.seed": 1}))
    assert {row.path: row.split for row in other} != sides
    named = only_clips(rows_of_text(tmp_path, "videoid,name,split\na,x,night\nb,x,night\n", val_share=0.9))
    assert {row.split for row in named} == {"night"}


@pytest.mark.parametrize(
    "urls",
    [
        ("https://h/get?key=v1.mp4", "https://h/get?key=v2.mp4"),
        ("https://h/media?token=1", "https://h/media?token=2"),
        ("https://h/clip.php?se=1&st=2", "https://h/clip.php?se=2&st=2"),
        ("https://h/a.mp4#t=0;5", "https://h/a.mp4#t=5;9"),
    ],
)
def test_urls_that_differ_in_more_than_a_signature_are_different_clips(tmp_path: Path, urls: tuple[str, str]) -> None:
    (tmp_path / "clips.csv").write_text("contentUrl,name\n" + "".join(f"{url},x\n" for url in urls))
    rows = read_clips(tmp_path / "clips.csv", **{"columns.videoid": "", "fetch.urls": True})
    assert len({row.clip_id for row in rows}) == len({content_of(row) for row in rows}) == 2
    assert [row.path for row in rows] == list(urls)


def test_quarantined_urls_have_no_secrets_in_ids_and_details(tmp_path: Path) -> None:
    url = "https://user:pw@h/a.mp4?X-Amz-Signature=SECRET"
    long = f"https://user:{'pw' * 60}@h/a.mp4"
    text = f'contentUrl,videoid,name,part\n"{url}",a,one,"{long}"\n'
    formats = " (seconds, [HH:]MM:SS[.mmm] or PT..H..M..S)"
    for column, settings, shown in (
        ("id", {"columns.videoid": "contentUrl"}, ("https://h/a.mp4", "'/' in the id")),
        ("split", {"columns.split": "contentUrl"}, ("a", "split 'https://h/a.mp4'")),
        ("split", {"columns.split": "part"}, ("a", "split 'https://h/a.mp4'")),
        ("start", {"columns.start": "part", "columns.end": "name"}, ("a", f"not a time: 'https://h/a.mp4'{formats}")),
    ):
        (bad,) = rows_of_text(tmp_path, text, **settings)
        assert isinstance(bad, BadRow), column
        assert (bad.clip_id, bad.detail) == shown, column


def test_extra_columns_hide_urls_however_they_are_written(tmp_path: Path) -> None:
    text = (
        "videoid,name,contentUrl,note\n"
        "a,x,//user:pw@h/a?X-Amz-Signature=SECRET,https:\\/\\/h\\/a?X-Amz-Signature=SECRET\n"
        "b,x,https://h/a'b.mp4?X-Amz-Signature=SECRET,https://h/a?accessToken=SECRET&id=7\n"
    )
    first, second = only_clips(rows_of_text(tmp_path, text))
    assert first.extra == {"contentUrl": "//h/a", "note": r"https:\/\/h\/a"}
    assert second.extra == {"contentUrl": "https://h/a'b.mp4", "note": "https://h/a?id=7"}


def test_cut_clips_of_one_source_are_in_one_split(tmp_path: Path) -> None:
    header, names = "videoID,url,timestamp,caption,clarity_score\n", [f"v{n // 10}_{n % 10}" for n in range(400)]
    koala = "".join(
        f"{name},https://x.org/watch?v={name.partition('_')[0]},\"['0:00:0{n % 10}.0', '0:00:30.0']\",x,1\n"
        for n, name in enumerate(names)
    )
    rows = only_clips(rows_of_text(tmp_path, header + koala, val_share=0.5))
    sides = {(row.clip_id.partition("_")[0], row.split) for row in rows}
    assert len(sides) == 40
    assert 8 < len([side for side in sides if side[1] == "val"]) < 32
    folder = tmp_path / "out"
    (folder / "00000").mkdir(parents=True)
    fixed = {"status": "success", "caption": "x", "clips": "[[0, 1]]"}
    records = [fixed | {"key": name, "url": f"https://x.org/{name.partition('_')[0]}"} for name in names]
    pq.write_table(pa.Table.from_pylist(records), folder / "00000.parquet")
    rows = read_clips(folder, folder, val_share=0.5)
    assert len({(row.clip_id.partition("_")[0], row.split) for row in rows}) == 40
    members = {f"{record['key']}.json": json.dumps(record).encode() for record in records}
    write_tar(tmp_path / "a.tar", members | {f"{name}.mp4": b"v" for name in names})
    in_tar = read_clips(tmp_path / "a.tar", val_share=0.5)
    assert {row.clip_id: row.split for row in in_tar} == {row.clip_id: row.split for row in rows}


def test_ids_with_and_without_an_ending_are_in_one_split(tmp_path: Path) -> None:
    text = "videoid,name,start,end\n" + "".join(f"v{n},x,0,1\nv{n}.mp4,x,1,2\n" for n in range(40))
    flags = {"columns.start": "start", "columns.end": "end", "val_share": 0.5}
    rows = only_clips(rows_of_text(tmp_path, text, **flags))
    assert len({(row.path.removesuffix(".mp4"), row.split) for row in rows}) == 40
