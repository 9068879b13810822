"""Small real video files for tests, and what is in them by a full sequential decode."""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from evilm.video.decode import DecodedClip
from evilm.video.resize import fit, resize, to_jpeg

_X264 = "keyint=250:min-keyint=8:scenecut=0:bframes=3:b-pyramid=normal"
VARIABLE = [0, 1, 2, 3, 20, 21, 23, 30, 31, 32, 40, 43, 44, 45, 46, 60, 61, 62, 63, 64, 65, 66, 67, 68]
KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"options": {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3"}},
    "long.mp4": {"num_frames": 60, "options": {"x264-params": _X264}},
    "long.mkv": {"num_frames": 60, "options": {"x264-params": _X264}},
    "open.mp4": {"num_frames": 60, "options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=2:scenecut=0"}},
    "open.mkv": {"num_frames": 60, "options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=2:scenecut=0"}},
    "open.ts": {"num_frames": 60, "options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=2:scenecut=0"}},
    "variable.mp4": {"pts": VARIABLE, "options": {"g": "5"}},
    "offset.mkv": {"pts": range(48, 72)},
    "fragmented.mp4": {"num_frames": 60, "muxing": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "12"}},
    "refreshed.mkv": {"num_frames": 60, "options": {"x264-params": "intra-refresh=1:keyint=16:bframes=0:scenecut=0"}},
    "interlaced.mp4": {"options": {"x264-params": "tff=1:keyint=12:bframes=2"}},
    "weighted.mp4": {"options": {"x264-params": f"{_X264}:weightp=2:ref=5:8x8dct=1:slices=3"}},
    "edited.mp4": {"num_frames": 48, "options": {"x264-params": "keyint=250:bframes=0"}, "cut": (0.5, 0.3)},
    "edited_b.mp4": {"num_frames": 60, "options": {"x264-params": _X264}, "cut": (0.7, 0.5)},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"num_frames": 48, "codec": "libx265", "options": {"x265-params": "keyint=16:bframes=3:open-gop=1"}},
    "layered.mp4": {"num_frames": 48, "codec": "libx265", "options": {"x265-params": "bframes=3:temporal-layers=3"}},
    "packed.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "6"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "g": "9"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "g": "9"}},
    "av1.mp4": {"num_frames": 40, "codec": "libsvtav1", "size": (128, 96), "options": {"preset": "12", "g": "10"}},
    "av1.webm": {"num_frames": 40, "codec": "libsvtav1", "size": (128, 96), "options": {"preset": "12"}},
    "moving.gif": {"num_frames": 12, "codec": "gif", "pix_fmt": "rgb8", "rate": 10},
    "upright.mp4": {"rotation": 90},
    "over.mp4": {"rotation": 180},
    "left.mp4": {"rotation": -90},
}
"""Legal files of every sort that some decoder gets wrong."""


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture that tells its number: a bright column that moves on, over a texture that changes."""
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 120, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pixels = pixels[:height, :width]
    pixels[:, (number * 4) % width : (number * 4) % width + 4] = 255
    pixels[: height // 4, : width // 4] = (255, 0, 0)  # red at the top left: which way is up
    return pixels


def write_video(
    path: Path,
    num_frames: int = 24,
    size: tuple[int, int] = (64, 48),
    pts: Sequence[int] | None = None,
    rate: int = 24,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rotation: int | None = None,
    faststart: bool = True,
    first_picture: int = 0,
    pix_fmt: str = "yuv420p",
    muxing: dict[str, str] | None = None,
    cut: tuple[float, float] | None = None,
) -> Path:
    """Encode numbered pictures.

    Args:
        pts: in ticks of 1/rate.
        muxing: options of the container.
        cut: seconds at the head and at the tail that an edit list leaves out.
    """
    if muxing is None:
        muxing = {"movflags": "+faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with _same_priority(), av.open(str(path), "w", options=muxing) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream.options = {
            name: f"{quiet[name]}:{value}" if name in quiet else value for name, value in (options or {}).items()
        }
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number + first_picture, *size), format="rgb24")
            frame.pts, frame.time_base = pts[number] if pts else number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if cut is not None:
        hide(path, *cut)
    return path


@contextmanager
def _same_priority() -> Iterator[None]:
    """Give this thread its scheduling back: SVT-AV1 makes it real-time for root, and what it starts inherits that."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    os.sched_setscheduler(0, policy, param)


def write_kind(folder: Path, name: str) -> Path:
    """The file of `KINDS` with this name."""
    return write_video(folder / name, **KINDS[name])


def hide(path: Path, head_s: float, tail_s: float) -> None:
    """Make the edit list of an MP4 with one entry leave out its head and tail."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after version, flags and the number of entries
    duration, media_time = struct.unpack(">Ii", data[at : at + 8])
    at_scale = data.index(b"mdhd") + 16  # after version, flags and two dates
    (ticks,) = struct.unpack(">I", data[at_scale : at_scale + 4])
    # Durations count in the movie's ticks of a millisecond, times in the track's.
    struct.pack_into(">Ii", data, at, duration - round(1000 * (head_s + tail_s)), media_time + round(head_s * ticks))
    path.write_bytes(data)


def sequential(path: Path) -> list[tuple[int, np.ndarray]]:
    """Every frame shown and when, in microseconds of the file's own time, upright, by decoding from start to end."""
    info = path.stat()
    return _sequential(path, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=2)  # all frames of a real clip are large
def _sequential(path: Path, *_: int) -> list[tuple[int, np.ndarray]]:
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            pixels = np.rot90(frame.to_ndarray(format="rgb24", threads=1), frame.rotation // 90)
            pts = frame.pts if frame.pts is not None else len(frames)
            assert stream.time_base is not None
            frames.append((int(pts * stream.time_base * 1_000_000), np.ascontiguousarray(pixels)))
    return frames


def assert_true_frames(
    path: Path, clip: DecodedClip, frame_px: int = 256, quality: int = 90, start_s: float = 0.0
) -> None:
    """Each stored frame is, byte for byte, the one that a full decode shows at its place and time."""
    truth = sequential(path)
    times = sorted(time for time, _ in truth)  # B-frames in AVI are labelled out of order; they come in order
    begin = bisect_right(times, times[0] + 1_000_000 * start_s + 1) - 1
    with av.open(str(path)) as container:
        aspect = container.streams.video[0].sample_aspect_ratio or Fraction(1)
    if clip.rotation in (90, 270):
        aspect = 1 / aspect
    for jpeg, time, index in zip(clip.frames, clip.frame_pts_us, clip.frame_index, strict=True):
        assert times[begin + index] == time
        pixels = truth[begin + index][1]
        height, width = pixels.shape[:2]
        how = fit(width, height, frame_px, "crop", aspect)
        assert jpeg == to_jpeg(resize(pixels, how, frame_px), quality), f"{path.name}: frame {index}"


def assert_from_spans(path: Path, clip: DecodedClip, start_s: float = 0.0) -> None:
    """Frame k is the one on screen at the centre of span k of T."""
    times = sorted(time for time, _ in sequential(path))
    spans, begin = len(clip.frames), bisect_right(times, times[0] + 1_000_000 * start_s + 1) - 1
    for k, (time, index) in enumerate(zip(clip.frame_pts_us, clip.frame_index, strict=True)):
        centre = times[0] + (start_s + (k + 0.5) * clip.duration_s / spans) * 1_000_000
        following = [*times, times[0] + 1_000_000 * (start_s + clip.duration_s)][begin + index + 1]
        assert time - 1000 <= centre <= following + 1000
