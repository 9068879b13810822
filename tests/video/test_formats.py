"""Containers, codecs and tracks of every sort: decoded exactly, or rejected."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from evilm.errors import DecodeError
from evilm.video.decode import DecodedClip
from evilm.video.reasons import RejectReason
from helpers.broken_videos import Decode, reason, write_pillow_gif, write_tracks
from helpers.video_files import assert_true_frames, write_video


@pytest.mark.parametrize(
    ("name", "kinds", "expected"),
    [
        ("a.mp4", ("cover", "video"), "frames"),
        ("b.mkv", ("video", "small"), "frames"),
        ("c.mp4", ("sound", "video"), "frames"),
        ("d.mkv", ("text", "video"), "frames"),
        ("e.mkv", ("text",), RejectReason.NO_VIDEO_STREAM),
        ("f.mp4", ("cover", "sound"), RejectReason.NO_VIDEO_STREAM),
    ],
)
def test_first_moving_picture_track_is_decoded(
    tmp_path: Path, decode: Decode, name: str, kinds: Sequence[str], expected: str
) -> None:
    found = decode(write_tracks(tmp_path / name, *kinds))
    assert reason(found) == expected
    if isinstance(found, DecodedClip):
        assert (found.width, found.height) == (64, 48)
        assert found.duration_s == pytest.approx(1.0, abs=0.01)  # of the pictures, however long the sound


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a.h264", {}, RejectReason.NOT_A_VIDEO),
        ("a.ivf", {"codec": "libvpx"}, RejectReason.NOT_A_VIDEO),
        ("a.webp", {"codec": "libwebp_anim", "pix_fmt": "bgra"}, RejectReason.NOT_A_VIDEO),
        ("a.apng", {"codec": "apng", "pix_fmt": "rgb24"}, RejectReason.NOT_A_VIDEO),
        ("a.y4m", {"codec": "wrapped_avframe"}, RejectReason.NOT_A_VIDEO),
        ("one.gif", {"codec": "gif", "pix_fmt": "rgb8", "num_frames": 1}, RejectReason.TOO_SHORT),
        ("a.avif", {"codec": "libsvtav1", "options": {"preset": "12"}}, "frames"),
        ("a.webm", {"codec": "libsvtav1", "options": {"preset": "12"}}, "frames"),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "options": {"profile": "4444"}}, "frames"),
        ("b.mov", {"codec": "qtrle", "pix_fmt": "argb"}, "frames"),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "frames"),
        ("b.mkv", {"codec": "ffv1", "pix_fmt": "gray"}, "frames"),
        ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}, "frames"),
        ("a.wmv", {"codec": "wmv2"}, "frames"),
        ("a.flv", {"codec": "flv"}, "frames"),
        ("a.3gp", {"codec": "h263", "size": (176, 144)}, "frames"),
        ("a.mp4", {"pix_fmt": "yuv444p"}, "frames"),
        ("b.mp4", {"pix_fmt": "yuvj420p"}, "frames"),
        ("c.mp4", {"pix_fmt": "gray"}, "frames"),
        ("d.mp4", {"codec": "libx265", "pix_fmt": "yuv422p10le"}, "frames"),
        ("e.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}, "frames"),
        ("c.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, "frames"),
    ],
)
def test_formats_decode_exactly_or_are_rejected(
    tmp_path: Path, decode: Decode, name: str, settings: dict[str, Any], expected: str
) -> None:
    scheduling = os.sched_getscheduler(0)
    path = write_video(tmp_path / name, **settings)
    assert os.sched_getscheduler(0) == scheduling, "an encoder must not outrank whatever runs beside the tests"
    found = decode(path)
    assert reason(found) == expected
    if isinstance(found, DecodeError):
        assert found.detail
    elif name != "a.avif":  # whose first track is a single picture
        assert_true_frames(path, found)


def test_partial_gif_frames_are_shown_in_time(tmp_path: Path, decode: Decode) -> None:
    """Parts of pictures over the ones before, each shown as long as it says."""
    frames = [np.full((48, 64, 3), 40 * number, np.uint8) for number in range(6)]
    for number, frame in enumerate(frames):
        frame[:, 8 * number : 8 * number + 8] = 255
    path = tmp_path / "a.gif"
    write_pillow_gif(path, frames, [50, 50, 400, 50, 50, 400])
    found = decode(path)
    assert isinstance(found, DecodedClip)
    assert found.duration_s == pytest.approx(1.0, abs=0.01)
    assert found.frame_index == [2, 2, 5, 5]  # on screen at 125, 375, 625 and 875 ms
    assert_true_frames(path, found)


def test_tracks_appearing_late_are_ignored(tmp_path: Path, decode: Decode) -> None:
    """Joined recordings of which one in the middle has sound, as broadcasters make them."""
    one = write_video(tmp_path / "one.ts", 60, (320, 240), options={"qp": "1", "preset": "ultrafast"}).read_bytes()
    two = write_tracks(tmp_path / "two.ts", "video", "sound").read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(one * (6_000_000 // len(one) + 1) + two + one)  # beyond what is looked at to find tracks
    with av.open(str(path)) as container:
        assert len(container.streams) == 1
    assert reason(decode(path)) == "frames"
