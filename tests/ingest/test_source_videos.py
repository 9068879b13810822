"""Videos that several clips share are fetched once."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from evilm.errors import DecodeError
from evilm.ingest.source_videos import fetch_sources
from evilm.video.fetch import Fetcher
from helpers.tables import read_clips, write_csv
from helpers.web_site import HERE, VIDEO, Site, answer


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server with one video."""
    site = Site()
    site.pages = {"/long.mp4": answer(200, VIDEO)}
    yield site
    site.server.shutdown()
    site.server.server_close()


def fetched(folder: Path, url: Callable[[int], str]) -> list[bool]:
    """Whether the video of each of 30 spans could be fetched."""
    rows = [["v", f"word {n}", str(n), str(n + 1), url(n)] for n in range(30)]
    write_csv(folder / "clips.csv", ["videoid", "name", "start", "end", "contentUrl"], *rows)
    flags = {"columns.start": "start", "columns.end": "end", "fetch.urls": True}
    clips, found = read_clips(folder / "clips.csv", **flags), list[bool]()
    assert [clip.path for clip in clips] == [url(n) for n in range(30)]
    for source in fetch_sources(clips, Fetcher("", HERE), ahead=4):
        found += [not isinstance(video, DecodeError) for _, video in source.pairs]
        source.close()
    return found


@pytest.mark.parametrize(
    "query", ["", "?X-Amz-Date=2024T{0}&X-Amz-Signature=s{0}", "?sv=1&se={0}&sig=s{0}", "#t={0}", "?hdnts=s{0}&v=7"]
)
def test_spans_of_one_url_are_fetched_by_one_request(site: Site, tmp_path: Path, query: str) -> None:
    assert all(fetched(tmp_path, lambda n: f"{site.url}/long.mp4{query.format(n)}"))
    assert site.asked == {"/long.mp4": 1}


def test_urls_of_different_videos_are_fetched_each(site: Site, tmp_path: Path) -> None:
    assert all(fetched(tmp_path, lambda n: f"{site.url}/long.mp4?key={n // 10}"))
    assert site.asked == {"/long.mp4": 3}


def test_video_is_fetched_by_another_signature_if_one_has_expired(site: Site, tmp_path: Path) -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        answer(*((403,) if request.path.endswith("=s0") else (200, VIDEO)))(request)

    site.pages = {"/long.mp4": page}
    assert all(fetched(tmp_path, lambda n: f"{site.url}/long.mp4?X-Amz-Signature=s{n}"))
    assert site.asked == {"/long.mp4": 2}


def test_cut_clips_are_found_by_id_or_by_times_of_six_digits(tmp_path: Path) -> None:
    rows = [["a", "x", "33", "43"], ["b", "x", "1.5", "4"], ["c", "x", "7", "9"], ["d", "x", "2", ""]]
    write_csv(tmp_path / "clips.csv", ["videoid", "name", "start", "end"], *rows)
    for name in ("a_000033_000043", "b_1.5_4", "b_000002_000004", "c_7_9", "c_000007_000009"):
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    clips = read_clips(tmp_path / "clips.csv", tmp_path, **{"columns.start": "start", "columns.end": "end"})
    pairs = [pair for source in fetch_sources(clips, Fetcher(str(tmp_path), HERE), 1) for pair in source.pairs]
    found = [str(video) if isinstance(video, DecodeError) else video.uri for _, video in pairs]
    assert found[:3] == ["a_000033_000043.mp4", "b_1.5_4.mp4", "c_7_9.mp4"]
    assert found[3].endswith("nor d_2_end")
