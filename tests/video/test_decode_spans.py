"""Spans of longer videos: the right frames, of the right part, for the price of that part."""

import math
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import pytest

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video import packets
from evilm.video import probe as probing
from evilm.video.container import Video
from evilm.video.decode import decode_clip
from evilm.video.reasons import ClipFlag, RejectReason
from helpers.video_files import KINDS, assert_from_spans, assert_true_frames, sequential, write_video

CONFIG = FramesConfig()


def refusal(path: Path, start_s: float | None, end_s: float | None) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), "x", CONFIG, None, start_s, end_s)
    return caught.value


@pytest.mark.parametrize("name", KINDS)
def test_frames_of_spans_equal_a_sequential_decode(kind: Callable[[str], Path], name: str) -> None:
    path = kind(name)
    whole = decode_clip(str(path), "x", CONFIG)
    for start_s, end_s in ((0.4, 1.1), (None, 0.5), (0.7, None), (0.45, 99.0)):
        for values in ({}, {"frames_stored": 8}, {"num_frames": 7, "sampling": "random"}):
            config = CONFIG.override(values)
            clip = decode_clip(str(path), "x", config, None, start_s, end_s)
            begin_s = start_s or 0.0
            assert_true_frames(path, clip, start_s=begin_s)
            expected_s = min(whole.duration_s, 99.0 if end_s is None else end_s) - begin_s
            assert clip.duration_s == pytest.approx(expected_s, abs=0.002)
            if config.sampling == "centre":
                assert_from_spans(path, clip, begin_s)
            assert clip == decode_clip(str(path), "x", config.override({"skip_nonref": False}), None, start_s, end_s)


def test_span_of_the_whole_equals_no_span(kind: Callable[[str], Path]) -> None:
    for name in ("open.mp4", "edited_b.mp4", "open.ts", "moving.gif"):
        whole = decode_clip(str(kind(name)), "x", CONFIG)
        assert decode_clip(str(kind(name)), "x", CONFIG, None, 0.0, 1000.0) == whole


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_cut_clip_is_used_whole(tmp_path: Path, backend: Literal["pyav", "decord"]) -> None:
    path = str(write_video(tmp_path / "cut.mp4", num_frames=144))  # 6 s
    whole = decode_clip(path, "x", CONFIG, backend)
    for span in ((3.0, 9.0), (20.0, 26.2), (0.3, 6.3), (100.0, 105.8)):
        assert decode_clip(path, "x", CONFIG, backend, *span, may_be_cut=True) == whole
    for span in ((0.0, 3.0), (3.0, 6.0), (0.2, 6.04), (2.0, None), (2.0, 12.0)):
        expected = decode_clip(path, "x", CONFIG, backend, *span)
        assert decode_clip(path, "x", CONFIG, backend, *span, may_be_cut=True) == expected != whole
    with pytest.raises(DecodeError, match="bad_span"):
        decode_clip(path, "x", CONFIG, backend, 20.0, 30.0, may_be_cut=True)


def test_decord_decodes_the_same_span(kind: Callable[[str], Path]) -> None:
    one, other = (decode_clip(str(kind("long.mp4")), "x", CONFIG, name, 0.4, 1.5) for name in ("pyav", "decord"))
    assert other.decoder == "decord"
    assert (one.frames, one.frame_pts_us, one.frame_index) == (other.frames, other.frame_pts_us, other.frame_index)


@pytest.mark.parametrize(
    ("start_s", "end_s"),
    [(5.0, 6.0), (1.0, None), (-1.0, 0.5), (0.5, 0.5), (0.8, 0.2), (math.nan, 1.0), (0.0, math.nan), (1e300, None)],
)
def test_empty_or_invalid_spans_are_rejected(kind: Callable[[str], Path], start_s: float, end_s: float | None) -> None:
    for name in ("plain.mp4", "packed.avi"):
        error = refusal(kind(name), start_s if name == "plain.mp4" or start_s != 1.0 else 1.1, end_s)
        assert error.reason == RejectReason.BAD_SPAN
        assert error.detail


def test_few_frames_of_a_span_are_repeated_and_one_is_rejected(kind: Callable[[str], Path]) -> None:
    clip = decode_clip(str(kind("plain.mp4")), "x", CONFIG, None, 0.5, 0.58)
    assert clip.frame_index == [0, 0, 1, 1]
    assert clip.flags & ClipFlag.REPEATED
    assert refusal(kind("plain.mp4"), 0.51, 0.53).reason == RejectReason.TOO_SHORT


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def hours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 hours of one picture a second: the packets of a minute, over and over."""
    folder = tmp_path_factory.mktemp("hours")
    minute = write_video(folder / "minute.mp4", num_frames=60, options={"g": "12", "bf": "2"})
    path = folder / f"hours.{request.param}"
    with av.open(str(minute)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        group = [packet for packet in source.demux(stream) if packet.size]
        times = [
            (round(packet.pts * stream.time_base * 24), round(packet.dts * stream.time_base * 24)) for packet in group
        ]  # type: ignore[operator]
        for number in range(1800):
            for packet, (pts, dts) in zip(group, times, strict=True):
                again = av.Packet(bytes(packet))
                again.stream, again.time_base, again.is_keyframe = copy, Fraction(1), packet.is_keyframe
                again.pts, again.dts, again.duration = pts + 60 * number, dts + 60 * number, 1
                target.mux(again)
    return path


def test_long_video_is_read_near_the_span_only(hours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    one_by_one = packets._packets

    def counted(video: Video) -> Iterator[packets.Packet]:
        for packet in one_by_one(video):
            read.append(packet.pts or 0)
            yield packet

    monkeypatch.setattr(packets, "_packets", counted)
    for start_s, end_s in ((70_000.0, 70_060.0), (107_950.0, None), (None, None), (10_000.0, 100_000.0)):
        read.clear()
        clip = decode_clip(str(hours), "x", CONFIG, None, start_s, end_s)
        begin, end = start_s or 0.0, 108_000.0 if end_s is None else end_s
        assert clip.duration_s == pytest.approx(end - begin, abs=2)
        first = clip.frame_pts_us[0] / 1_000_000 - begin - (end - begin) / 8
        assert abs(first) <= 4  # ticks of a second, and a start that may be a few late
        assert [(b - a) / 1_000_000 for a, b in zip(clip.frame_pts_us, clip.frame_pts_us[1:], strict=False)] == (
            pytest.approx([(end - begin) / 4] * 3, abs=2)
        )
        assert len(read) < 1000
        assert (clip.frame_index[0] == -1) == (end - begin > 20_000)


def test_failed_seek_falls_back_to_reading_everything(
    kind: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode_clip(str(kind("long.mp4")), "x", CONFIG, None, 0.4, 1.5)

    def nowhere(*_: object) -> None:
        raise packets.NotCovered

    monkeypatch.setattr(probing, "cover", nowhere)
    assert decode_clip(str(kind("long.mp4")), "x", CONFIG, None, 0.4, 1.5) == expected


def test_header_with_a_false_length_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    for box, at in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        struct.pack_into(">I", data, data.index(box) + at, 0xFFFFFFF0)
    path.write_bytes(data)
    clip = decode_clip(str(path), "x", CONFIG)
    assert clip.frame_pts_us == decode_clip(str(write_video(tmp_path / "b.mp4")), "x", CONFIG).frame_pts_us
    assert len(sequential(path)) == 24
