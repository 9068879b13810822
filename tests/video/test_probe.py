"""What the packets of a file tell, on files made here."""

from pathlib import Path

import av
import pytest

from evilm.errors import DecodeError
from evilm.video.probe import probe
from evilm.video.reasons import ClipFlag, RejectReason
from helpers.video_files import write_video

REGULAR = {"x264-params": "keyint=12:min-keyint=12:scenecut=0"}


def reason_of(path: Path) -> str:
    with pytest.raises(DecodeError) as caught:
        probe(str(path))
    return caught.value.reason


def test_probe_reads_the_timeline(tmp_path: Path) -> None:
    found = probe(str(write_video(tmp_path / "a.mp4", num_frames=24, rate=24, options=REGULAR)))
    assert found.codec == "h264"
    assert len(found.pts) == 24
    assert found.duration_s == pytest.approx(1.0)
    assert found.fps == pytest.approx(24)
    assert [float(key * found.time_base) for key in found.keys] == [0.0, 0.5]
    assert found.plain
    assert found.flags == ClipFlag(0)


def test_variable_rate_is_flagged(tmp_path: Path) -> None:
    found = probe(str(write_video(tmp_path / "a.mp4", num_frames=4, pts=[0, 1, 2, 50])))
    assert [round(float(time * found.time_base) * 24) for time in found.pts] == [0, 1, 2, 50]
    assert found.flags & ClipFlag.VFR


def test_open_gop_is_flagged(tmp_path: Path) -> None:
    options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=2:scenecut=0"}
    found = probe(str(write_video(tmp_path / "a.mkv", num_frames=40, options=options)))
    assert found.flags & ClipFlag.OPEN_GOP
    assert not found.plain


def test_files_that_are_not_videos_get_reasons(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert reason_of(path) == RejectReason.MISSING_FILE
    assert reason_of(tmp_path) == RejectReason.NOT_A_FILE
    path.write_bytes(b"")
    assert reason_of(path) == RejectReason.EMPTY_FILE
    for content in (b"Good day\n" * 99, b"<html>403</html>", bytes(100_000), b"\x89PNG\r\n\x1a\n" + bytes(99)):
        path.write_bytes(content)
        assert reason_of(path) == RejectReason.NOT_A_VIDEO
    path.write_bytes(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")  # a playlist is never followed
    assert reason_of(path) == RejectReason.NOT_A_VIDEO


def test_audio_only_file_has_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert reason_of(path) == RejectReason.NO_VIDEO_STREAM


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("kept", [0.99, 0.6])
def test_truncated_files_are_noticed(tmp_path: Path, suffix: str, kept: float) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    whole = write_video(tmp_path / f"a{suffix}", num_frames=24, codec=codec).read_bytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert reason_of(path) == RejectReason.TRUNCATED


def test_truncated_index_is_noticed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", faststart=False)
    whole = path.read_bytes()
    for lost in (100, 400, 800):
        path.write_bytes(whole[:-lost])
        assert reason_of(path) in (RejectReason.TRUNCATED, RejectReason.UNREADABLE_CONTAINER)
    path.write_bytes(whole[: whole.index(b"moov") - 4])
    assert reason_of(path) == RejectReason.UNREADABLE_CONTAINER
