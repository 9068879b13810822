"""Decode frames at given positions of a timeline, with PyAV from the start or with decord, and rotate them upright."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av.error
import numpy as np
from av.video.frame import PictureType

from evilm.errors import DecodeError
from evilm.video.container import Video, opened
from evilm.video.packets import demuxed
from evilm.video.probe import Probe, is_variable
from evilm.video.reasons import ClipFlag, RejectReason


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame: upright uint8 RGB."""

    pixels: np.ndarray
    turn: int
    is_mirrored: bool
    pixel_aspect: Fraction
    is_hdr: bool = False


_HDR = (16, 18)  # transfer characteristics PQ and HLG, by ITU-T H.273


class Mismatch(Exception):
    """The decoder's frames differ from those announced by the packets."""


def seek(video: Video, start: int | None) -> None:
    """Seek to the key frame before a time, or to the start."""
    video.context.skip_frame = "DEFAULT"
    if start is None:
        start = 0 if video.stream.start_time is None else min(0, video.stream.start_time)
    try:
        video.container.seek(start, stream=video.stream, backward=True)
    except (av.error.FFmpegError, OSError, OverflowError):
        raise Mismatch from None  # decoding from the start needs no seek


def decoded(video: Video, packet: Any) -> list[Any]:
    """Send a packet to the decoder and return the frames it outputs; None for a packet flushes the decoder.

    Raises:
        DecodeError: the decoder failed.
    """
    try:
        return video.context.decode(packet)
    except (av.error.FFmpegError, OSError, MemoryError) as error:
        raise video.failure(error) from None


def _all(video: Video) -> Iterator[Any]:
    """Decode all frames in order."""
    for packet in demuxed(video):
        yield from decoded(video, packet)
    yield from decoded(video, None)


def measured(path: str, max_pixels: int, found: Probe, stop_s: float | None) -> Probe:
    """Measure the timeline by decoding the clip up to `stop_s`, for containers whose packets lack it.

    Raises:
        DecodeError: there is nothing to decode, or the decoder failed.
    """
    pts: list[int | None] = []
    duration = 0
    with opened(path, max_pixels) as video:
        rate = video.stream.average_rate
        step = 1 / ((rate if rate and rate > 0 else Fraction(25)) * video.stream.time_base)
        stop = None if stop_s is None else (stop_s + 1) / video.stream.time_base  # one second more, if out of order
        for frame in _all(video):
            pts.append(frame.pts)
            duration = frame.duration or 0
            if stop is not None and None not in (pts[0], frame.pts) and frame.pts - pts[0] > stop:
                break
    if not pts:
        raise DecodeError(RejectReason.DECODE_ERROR, "no frame can be decoded")
    # Decoders output frames in presentation order; AVI files with B-frames only have wrong times.
    times = sorted(time for time in pts if time is not None)
    if len(set(times)) < len(pts):
        times = [int(place * step) for place in range(len(pts))]
    gaps = [after - before for before, after in pairwise(times)]
    flags = (found.flags & ~ClipFlag.VFR) | ClipFlag.MEASURED | (ClipFlag.VFR if is_variable(gaps) else ClipFlag(0))
    end = times[-1] + max(1, duration or int(step))
    return replace(
        found, pts=times, first=times[0], keys=[], end=end, flags=flags, plain=False, is_whole=True, has_gaps=False
    )


def in_order(path: str, max_pixels: int, found: Probe, wanted: Sequence[int]) -> Iterator[DecodedFrame]:
    """Decode the frames at these positions, counted from the start as in the measured timeline."""
    with opened(path, max_pixels) as video:
        tainted, left = False, deque(wanted)
        for place, frame in enumerate(_all(video)):
            tainted = bool(frame.is_corrupt) or (tainted and not frame.key_frame)
            if place == left[0]:
                if tainted:
                    raise DecodeError(RejectReason.DECODE_CORRUPT, f"frame {place}")
                yield upright(frame, video)
                left.popleft()
            if not left:
                return


def upright(frame: Any, video: Video) -> DecodedFrame:
    """Convert a frame to pixels, rotated and mirrored by the container's display matrix."""
    video.check_pixels(frame.width, frame.height)
    try:
        pixels = frame.to_ndarray(format="rgb24", threads=1)  # starting threads would take longer
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise video.failure(error) from None
    aspect, is_hdr = _pixel_aspect(video), int(getattr(frame, "color_trc", 0) or 0) in _HDR
    matrix = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) != 36:
        return DecodedFrame(pixels, 0, False, aspect, is_hdr)
    # x' = a x + c y, y' = b x + d y; only quarter turns and mirrors are supported.
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(int).tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, right, down, aspect = pixels.transpose(1, 0, 2), c, b, 1 / aspect
    else:
        right, down = a, d
    pixels = pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    is_mirrored = a * d - b * c < 0
    turn = 90 * round(np.degrees(np.arctan2(b, a)) / 90) % 360
    return DecodedFrame(np.ascontiguousarray(pixels), int(turn), is_mirrored, aspect, is_hdr)


def _pixel_aspect(video: Video) -> Fraction:
    """Return a pixel's width over its height; 1 if the header has no or no valid value."""
    aspect = video.stream.sample_aspect_ratio or Fraction(1)
    return aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def is_plain(video: Video, found: Probe) -> bool:
    """Check if decord decodes the right frames of this kind of file; on others it may be wrong or hang."""
    if not (found.plain and found.codec == "h264" and found.num_tracks == 1):
        return False
    if video.context.pix_fmt != "yuv420p":
        return False
    for key in found.keys[:2]:  # with intra refresh, the second one is not output or is predicted
        seek(video, key)
        frame = next(_all(video), None)
        if frame is None or frame.pts != key or frame.pict_type != PictureType.I:
            return False
        if any(side.type.name == "DISPLAYMATRIX" for side in frame.side_data):
            return False
    return True


def by_decord(video: Video, found: Probe, wanted: Sequence[int]) -> Iterator[DecodedFrame]:
    """Decode the frames at these positions with decord, which counts frames in presentation order.

    Raises:
        Mismatch: decord counts other frames or can't read the file.
    """
    import decord  # only if it is configured

    decord.logging.set_level(decord.logging.QUIET)
    aspect = _pixel_aspect(video)
    try:
        reader = decord.VideoReader(video.path, num_threads=1)
        if len(reader) != len(found.pts):
            raise Mismatch
        for place in wanted:
            yield DecodedFrame(reader[place].asnumpy(), 0, False, aspect)
    except (RuntimeError, decord.DECORDError):
        raise Mismatch from None
