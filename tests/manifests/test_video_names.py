"""From a row to its video file: names with and without endings, clips cut already, links."""

from pathlib import Path
from typing import Any

import pytest

from evilm.config.data import FetchConfig
from evilm.errors import DecodeError
from evilm.ingest.source_videos import fetch_source
from evilm.manifests.rows import ClipRow
from evilm.video.fetch import Fetcher
from helpers.tables import only_clips, rows_of_text


def fetched(folder: Path, row: ClipRow, **config: Any) -> tuple[str, bool]:
    """Return the video fetched for a row, and whether it is a file of that clip only."""
    ((_, video),) = fetch_source(Fetcher(str(folder / "v"), FetchConfig(**config)), [row]).pairs
    if isinstance(video, DecodeError):
        raise video
    video.close()
    return video.uri, video.is_cut


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "v" / name).write_bytes(b"video")


def test_id_with_an_ending_names_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "a1.mp4", "a2.MP4", "a3.mp4.mp4", "a4.webm.mkv", "a4.webm")
    rows = only_clips(rows_of_text(tmp_path, "videoid,name\na1.mp4,x\na2.mp4,x\na3.mp4,x\na4.webm,x\n"))
    with pytest.raises(DecodeError):  # capitals differ, and it is no name without its ending
        fetched(tmp_path, rows[1])
    assert [fetched(tmp_path, rows[n])[0] for n in (0, 2, 3)] == ["a1.mp4", "a3.mp4.mp4", "a4.webm"]


def test_cut_clips_are_found_by_id_and_span(tmp_path: Path) -> None:
    touch(tmp_path, "m_33_46.avi", "long.mp4", "long_1_2.mp4")
    flags = {"columns.videoid": "VideoID", "columns.start": "Start", "columns.end": "End", "columns.caption": "Text"}
    rows = only_clips(rows_of_text(tmp_path, "VideoID,Start,End,Text\nm,33,46,x\nlong,1,2,y\nnone,1,2,z\n", **flags))
    assert fetched(tmp_path, rows[0]) == ("m_33_46.avi", True)
    assert fetched(tmp_path, rows[1]) == ("long.mp4", False)
    with pytest.raises(DecodeError, match=r"missing_file: no none \+ \.mp4, \.webm, \.\.\., nor none_1_2"):
        fetched(tmp_path, rows[2])


def test_links_out_of_the_root_need_follow_links(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "elsewhere.mp4").write_bytes(b"x")
    (tmp_path / "v" / "a.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (row,) = only_clips(rows_of_text(tmp_path, "videoid,name\na,x\n"))
    with pytest.raises(DecodeError, match="leaves the video root; --follow-links allows that"):
        fetched(tmp_path, row)
    assert fetched(tmp_path, row, follow_links=True) == ("a.mp4", False)


def test_folder_beside_a_video_is_not_taken_for_it(tmp_path: Path) -> None:
    touch(tmp_path, "a/frame.jpg", "a.mp4", "b.mp4/frame.jpg", "b.webm", "c/frame.jpg", "d.mp4/frame.jpg")
    table = "videoid,name,where\na,x,a\nb,x,b\nc,x,c\nd,x,d.mp4\n"
    rows = only_clips(rows_of_text(tmp_path, table, **{"columns.path": "where"}))
    assert [fetched(tmp_path, row)[0] for row in rows[:2]] == ["a.mp4", "b.webm"]
    with pytest.raises(DecodeError, match=r"missing_file: no c \+ \.mp4, \.webm"):
        fetched(tmp_path, rows[2])
    with pytest.raises(DecodeError, match="not_a_file: a folder"):
        fetched(tmp_path, rows[3])


def test_path_column_may_lack_endings(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.mp4", "a/two", "a/two.mp4", "a/three.part.webm")
    text = "key,file,name\n1,a/one,x\n2,a/two,y\n3,a/three.part,z\n4,a/four,z\n"
    *found, gone = only_clips(rows_of_text(tmp_path, text, **{"columns.videoid": "key", "columns.path": "file"}))
    assert [fetched(tmp_path, row)[0] for row in found] == ["a/one.mp4", "a/two", "a/three.part.webm"]
    with pytest.raises(DecodeError, match="missing_file"):
        fetched(tmp_path, gone)
