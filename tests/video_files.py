"""Small real video files for tests, and what is in them by a full sequential decode."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from evilm.video.decode import DecodedClip
from evilm.video.resize import fit, resize, to_jpeg


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture that tells its number: a bright column that moves on, over a texture that changes."""
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 120, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
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
) -> Path:
    """Encode numbered pictures; `pts` in ticks of 1/rate."""
    container_options = {"movflags": "+faststart"} if faststart and path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        stream.options = options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number + first_picture, *size), format="rgb24")
            frame.pts, frame.time_base = pts[number] if pts else number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sequential(path: Path) -> list[tuple[int, np.ndarray]]:
    """Every frame shown and when, in microseconds of the file's own time, upright, by decoding from start to end."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            pts = frame.pts if frame.pts is not None else len(frames)
            assert stream.time_base is not None
            frames.append((int(pts * stream.time_base * 1_000_000), np.ascontiguousarray(pixels)))
    return frames


def assert_true_frames(path: Path, clip: DecodedClip, frame_px: int = 256, quality: int = 90) -> None:
    """Each stored frame is, byte for byte, the one that a full decode shows at its place and time."""
    truth = sequential(path)
    times = sorted(time for time, _ in truth)  # B-frames in AVI are labelled out of order; they come in order
    with av.open(str(path)) as container:
        aspect = container.streams.video[0].sample_aspect_ratio or Fraction(1)
    if clip.rotation in (90, 270):
        aspect = 1 / aspect
    for jpeg, time, index in zip(clip.frames, clip.frame_pts_us, clip.frame_index, strict=True):
        assert times[index] == time
        pixels = truth[index][1]
        height, width = pixels.shape[:2]
        how = fit(width, height, frame_px, "crop", aspect)
        assert jpeg == to_jpeg(resize(pixels, how, frame_px), quality), f"{path.name}: frame {index}"


def assert_from_spans(path: Path, clip: DecodedClip) -> None:
    """Frame k is the one on screen at the centre of span k of T."""
    times = sorted(time for time, _ in sequential(path))
    spans = len(clip.frames)
    for k, (time, index) in enumerate(zip(clip.frame_pts_us, clip.frame_index, strict=True)):
        centre = times[0] + (k + 0.5) * clip.duration_s / spans * 1_000_000
        following = [*times, times[0] + 1_000_000 * clip.duration_s][index + 1]
        assert time - 1000 <= centre <= following + 1000
