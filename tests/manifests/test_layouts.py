"""Layouts of published data sets, recognised by their headers or described by flags."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.errors import ManifestError
from evilm.manifests.captions import read_captions
from evilm.manifests.rows import BadRow, ClipRow
from helpers.tables import only_clips, read_clips, read_rows, rows_of_text, write_csv, write_json_lines


def test_webvid_is_the_default_layout(shared_data: Path) -> None:
    rows = read_clips(shared_data / "clips.csv", shared_data / "clips")
    assert len(rows) == 92
    assert (rows[0].clip_id, rows[0].path, rows[0].start_s) == ("910000001", "000001_000050/910000001", None)


def test_openvid_is_recognised_by_its_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    manifest = write_csv(
        tmp_path / "OpenVid-1M.csv",
        header.split(","),
        ["celebv_-AbC_1_0.mp4", "A man talks.", "5.1", "3.2", "0.99", "static", "100", "24.0", "4.1"],
    )
    with caplog.at_level("INFO"):
        (row,) = read_clips(manifest, tmp_path)
    assert "columns of openvid, by its header" in caplog.text
    assert (row.clip_id, row.path, row.needs_ending) == ("celebv_-AbC_1_0", "celebv_-AbC_1_0.mp4", False)
    assert row.extra["seconds"] == "4.1"


def test_internvid_spans_are_read(tmp_path: Path) -> None:
    records = [
        {"YoutubeID": "Gx", "Start_timestamp": start, "End_timestamp": end, "Caption": "hello", "UMT_Score": 0.4}
        for start, end in [
            ("00:07:33.689", "00:07:51.085"),
            ("00:00:01.000", "00:00:01.000"),
            ("x", "00:00:02"),
            ("", ""),
        ]
    ]
    first, *others = read_rows(write_json_lines(tmp_path / "a.jsonl", *records), tmp_path)
    assert isinstance(first, ClipRow)
    assert (first.clip_id, first.path, first.needs_ending) == ("Gx_453.689_471.085", "Gx", True)
    assert (first.start_s, first.end_s, first.extra) == (453.689, 471.085, {"UMT_Score": "0.4"})
    assert [(row.clip_id, row.reason.value) for row in others if isinstance(row, BadRow)] == [("Gx", "bad_span")] * 3


def test_panda_lists_become_one_clip_per_span(tmp_path: Path) -> None:
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
    first, *others = read_rows(manifest, tmp_path)
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


def test_kinetics_columns_are_mapped_by_flags(shared_data: Path, tmp_path: Path) -> None:
    columns = {"videoid": "youtube_id", "caption": "label", "start": "time_start", "end": "time_end"}
    rows = read_clips(shared_data / "annotations" / "kinetics400" / "kinetics-400_val.csv", tmp_path, columns=columns)
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
def test_published_annotation_files_are_read(
    shared_data: Path, tmp_path: Path, file: str, columns: dict[str, str], number: int
) -> None:
    rows = read_rows(shared_data / "annotations" / file, tmp_path, columns=columns)
    assert len(rows) == number
    assert sum(isinstance(row, ClipRow) for row in rows) >= number - 2


def test_caption_lists_are_read_in_any_format(tmp_path: Path) -> None:
    text = "videoid,name\na1,\"['a man sings', 'someone sings']\"\na2,plain\na3,[music] plays\na4,\"[1, 2]\"\n"
    rows = only_clips(rows_of_text(tmp_path, text))
    assert [row.captions[0] for row in rows] == ["a man sings", "plain", "[music] plays", "[1, 2]"]
    assert read_captions(str(tmp_path / "clips.csv")) == [
        "a man sings",
        "someone sings",
        "plain",
        "[music] plays",
        "[1, 2]",
    ]
    lines = [{"videoid": "a1", "name": ["", None, "real"]}, {"videoid": "a2", "name": {"short": "a dog", "long": "b"}}]
    good, bad = rows_of_text(tmp_path, "\n".join(map(json.dumps, lines)), "clips.jsonl")
    assert isinstance(good, ClipRow)
    assert good.captions == ("real",)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == (
        "bad_caption",
        "an object with short, long, not a text; make one of them the column",
    )


def test_binary_columns_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"bytes": b"\0" * 1000, "path": "a.mp4"}]
    lists = [[b"1", b"2"]]
    table = pa.table({"videoid": ["a"], "name": ["one"], "clip": rows, "frames": lists, "raw": [b"x"]})
    pq.write_table(table, tmp_path / "clips.parquet")
    with caplog.at_level(logging.INFO):
        (row,) = only_clips(rows_of_text(tmp_path, name="clips.parquet"))
    assert row.extra == {}
    assert "clip, frames, raw: columns of bytes are not read" in caplog.text
    pq.write_table(pa.table({"video": rows, "caption": ["one"]}), tmp_path / "clips.parquet")
    with pytest.raises(ManifestError, match="has no column 'videoid'") as caught:
        rows_of_text(tmp_path, name="clips.parquet")
    assert len(str(caught.value)) < 400


def test_pair_in_a_cell_is_one_span(tmp_path: Path) -> None:
    text = (
        "videoID,url,timestamp,caption,clarity_score\n"
        "a1_0,https://x.org/watch?v=a1,\"['0:00:00.000', '0:00:00.500']\",\"A street, at night.\",0.9\n"
        'a2_7,https://x.org/watch?v=a2,"[0.25, 0.75]",Two hands.,0.9\n'
    )
    rows = only_clips(rows_of_text(tmp_path, text))
    assert [(row.clip_id, row.start_s, row.end_s, row.captions[0]) for row in rows] == [
        ("a1_0", 0.0, 0.5, "A street, at night."),
        ("a2_7", 0.25, 0.75, "Two hands."),
    ]
    for layout, ids in (("auto", ["v_0_1", "v_1_2.5"]), ("koala", ["v", "v"])):
        exploded = "videoID,timestamp,caption\nv,\"['0:00', '0:01']\",x\nv,\"['0:01', '0:02.5']\",y\n"
        rows = only_clips(rows_of_text(tmp_path, exploded, **{"columns.layout": layout}))
        assert [(row.clip_id, row.path) for row in rows] == [(name, "v") for name in ids]
    panda = "videoID,timestamp,caption\nb,\"[['0', '1'], ['2', '3']]\",\"['x', 'y']\"\n"
    assert [row.clip_id for row in only_clips(rows_of_text(tmp_path, panda))] == ["b_0", "b_1"]


def test_rows_with_a_pair_and_the_id_of_a_video_have_distinct_ids(tmp_path: Path) -> None:
    text = 'video_id,timestamp,caption\nv1,"[0, 5]",sits\nv1,"[3, 9.5]",stands\n'
    flags = {"columns.videoid": "video_id", "columns.caption": "caption", "columns.start": "timestamp"}
    rows = only_clips(rows_of_text(tmp_path, text, **flags))
    assert [(row.clip_id, row.path, row.end_s) for row in rows] == [("v1_0_5", "v1", 5), ("v1_3_9.5", "v1", 9.5)]


def test_lists_of_starts_and_ends_become_spans(tmp_path: Path) -> None:
    line = {"video": "a", "start": [0, 5.5], "end": [4, 9], "text": ["one", "two"]}
    columns = {"videoid": "video", "start": "start", "end": "end", "caption": "text"}
    flags = {f"columns.{name}": column for name, column in columns.items()}
    rows = only_clips(rows_of_text(tmp_path, json.dumps(line), "clips.jsonl", **flags))
    assert [(row.clip_id, row.start_s, row.end_s, row.captions[0]) for row in rows] == [
        ("a_0", 0, 4, "one"),
        ("a_1", 5.5, 9, "two"),
    ]
    (bad,) = rows_of_text(tmp_path, json.dumps(line | {"end": [4]}), "clips.jsonl", **flags)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("bad_span", "2 starts and 1 ends")


def test_cr_line_ends_are_read_and_missing_headers_rejected(tmp_path: Path) -> None:
    assert [row.clip_id for row in only_clips(rows_of_text(tmp_path, "videoid,name\ra,one\rb,two\r"))] == ["a", "b"]
    long = "videoid,name\r" + "".join(f"{n},{'word ' * 20}\r" for n in range(2000))
    assert len(rows_of_text(tmp_path, long)) == 2000
    for text in ("a1.mp4\ta man sings\n", "17\thttps://x.org/1.mp4\n", "k\tone dog runs\n"):
        with pytest.raises(ManifestError, match="its first line looks like a row: give it a header line"):
            rows_of_text(tmp_path, text, "clips.tsv")
    with pytest.raises(ManifestError, match=r"name it with --columns\.videoid"):
        rows_of_text(tmp_path, "clip,words\na,b\n")
