"""Sparse frames of one clip: which moments, decoded exactly, turned upright, made square, as JPEG.

PyAV with a seek plan is right on edit lists, open GOPs, variable rates and rotated files, and notices damaged frames.
What the packets say is checked against what the decoder gives: where the two differ, the whole clip is decoded once to
measure its timeline. decord gives the same pixels on plain files, no faster, and does not notice damage: it is the
second opinion where PyAV got stuck, or asked for by name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import av
import av.error
import numpy as np

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video.probe import Probe, is_variable, opened, probe
from evilm.video.reasons import Flag, Reason
from evilm.video.resize import fit, resize, to_jpeg
from evilm.video.sample import clip_rng, shown_at, span_times

Backend = Literal["auto", "pyav", "decord"]


@dataclass(frozen=True)
class DecodedClip:
    """The stored frames of a clip, and what is known of its source."""

    frames: list[bytes]
    """JPEGs, in time order."""
    frame_pts_us: list[int]
    """When each is shown, in the file's own time."""
    frame_index: list[int]
    """Its place among all frames shown."""
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    codec: str
    crop_box: list[int]
    decoder: str
    flags: int


@dataclass(frozen=True)
class _Shown:
    """A decoded frame: upright uint8 RGB."""

    pixels: np.ndarray
    turn: int
    is_mirrored: bool
    pixel_aspect: Fraction


_Decode = Callable[[Probe, Sequence[int]], Iterator[_Shown]]
"""Gives the frames at ascending places of a timeline."""


class _Mismatch(Exception):
    """The decoder's frames are not those that the packets promised."""


def decode_clip(path: str, clip_id: str, config: FramesConfig, backend: Backend | None = None) -> DecodedClip:
    """Decode the sparse frames of a video file.

    Args:
        path: absolute path of a local file.
        clip_id: seeds random sampling.
        config: how many frames, of which size, from where in their spans.
        backend: overrides the configured decoder; `auto` means PyAV here, and decord where PyAV got stuck.

    Raises:
        DecodeError: the file is no video, is damaged, or is too short or too small.
    """
    found = probe(path)
    try:
        if (backend or config.decoder) == "decord" and _is_plain(path, found):
            return _sample(clip_id, config, found, "decord", partial(_decord, path))
    except _Mismatch:
        pass  # decord counts otherwise, or can't read the file: PyAV tells whether anything is wrong with it
    try:
        if found.trusted:
            return _sample(clip_id, config, found, "pyav", partial(_pyav, path))
    except _Mismatch:
        pass  # frames promised by packets that no decoder gives, which alone is no damage
    return _sample(clip_id, config, _measured(path, found), "pyav", partial(_in_order, path))


def _sample(clip_id: str, config: FramesConfig, found: Probe, name: str, decode: "_Decode") -> DecodedClip:
    """The frames at the wanted moments of a known timeline."""
    if len(found.pts) < 2:
        raise DecodeError(Reason.TOO_SHORT, "one frame")
    rng = clip_rng(config.seed, clip_id) if config.sampling == "random" else None
    index = shown_at(found.pts, span_times(found.pts[0], found.end, config.num_frames, rng))
    wanted = sorted(set(index))
    jpegs: dict[int, bytes] = {}
    first: _Shown | None = None
    for place, shown in zip(wanted, decode(found, wanted), strict=True):
        first = first or shown
        jpegs[place] = _to_square(shown, first, config)
    assert first is not None
    height, width = first.pixels.shape[:2]
    flags = found.flags
    for holds, flag in (
        (len(wanted) < len(index), Flag.REPEATED),
        (first.turn or first.is_mirrored, Flag.ROTATED),
        (first.pixel_aspect != 1, Flag.ANAMORPHIC),
    ):
        flags |= flag if holds else Flag(0)
    return DecodedClip(
        frames=[jpegs[place] for place in index],
        frame_pts_us=[int(found.pts[place] * found.time_base * 1_000_000) for place in index],
        frame_index=index,
        duration_s=round(found.duration_s, 6),
        fps=round(found.fps, 6),
        width=width,
        height=height,
        rotation=first.turn,
        codec=found.codec,
        crop_box=list(fit(width, height, config.frame_px, config.resize, first.pixel_aspect).crop_box),
        decoder=name,
        flags=int(flags),
    )


def _to_square(shown: _Shown, first: _Shown, config: FramesConfig) -> bytes:
    """One stored frame, its size checked."""
    height, width = shown.pixels.shape[:2]
    if shown.pixels.shape != first.pixels.shape:
        was = first.pixels.shape
        raise DecodeError(Reason.RESOLUTION_CHANGE, f"{was[1]} x {was[0]}, later {width} x {height}")
    if min(height, width) < config.min_side_px:
        raise DecodeError(Reason.TOO_SMALL, f"{width} x {height}")
    how = fit(width, height, config.frame_px, config.resize, first.pixel_aspect)
    return to_jpeg(resize(shown.pixels, how, config.frame_px), config.jpeg_quality)


def _pyav(path: str, found: Probe, wanted: Sequence[int]) -> Iterator[_Shown]:
    """The frames at these places of the timeline, each decoded from the key frame before it, or one further back."""
    with opened(path) as (container, stream):
        frames: Iterator[Any] = iter(())
        place_of_seek, now = -2, None  # key frame that decoding started at, time of the frame reached
        tainted = False
        for place in wanted:
            target = found.pts[place]
            key = found.key_before(target) if found.keys else -1
            if now is None or (key > place_of_seek and found.keys[key] > now):
                frames, place_of_seek = _start(container, stream, found, key)
                tainted = False
            while True:
                frame, tainted = _advance(frames, target, tainted)
                if frame is not None and frame.pts == target:
                    break
                if place_of_seek < 0:
                    raise _Mismatch
                # The seek landed after the target, or the target needs more than the last key frame: one further back.
                frames, place_of_seek = _start(container, stream, found, place_of_seek - 1)
                tainted = False
            now = target
            if tainted:
                raise DecodeError(Reason.DECODE_CORRUPT, f"at {float(target * found.time_base):.2f} s")
            yield _upright(frame, stream)


def _start(container: Any, stream: Any, found: Probe, key: int) -> tuple[Iterator[Any], int]:
    """Frames from the `key`-th key frame on, or from the very start (-1), where seeking fails too."""
    can_seek = found.container != "gif"  # no index: the demuxer can only start over
    try:
        if key > 0 and can_seek:
            container.seek(found.keys[key], stream=stream, backward=True)
        else:
            container.seek(0 if stream.start_time is None else min(0, stream.start_time), stream=stream, backward=True)
            key = -1
    except (av.error.FFmpegError, OSError):
        raise _Mismatch from None  # decoding from the start needs no seek
    return _decoded(container, stream), key


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; ffmpeg's complaints become a `DecodeError`."""
    try:
        yield from container.decode(stream)
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(Reason.DECODE_ERROR, type(error).__name__) from None


def _advance(frames: Iterator[Any], target: int, tainted: bool) -> tuple[Any, bool]:
    """The first frame shown at or after `target`, and whether it or one it may depend on is damaged."""
    for frame in frames:
        if frame.pts is None:
            continue
        tainted = bool(frame.is_corrupt) or (tainted and not frame.key_frame)
        if frame.pts >= target:
            return frame, tainted
    return None, tainted


def _measured(path: str, found: Probe) -> Probe:
    """The timeline by decoding the whole clip; for containers whose packets don't tell."""
    pts: list[int | None] = []
    duration = 0
    with opened(path) as (container, stream):
        step = 1 / ((stream.average_rate or Fraction(25)) * stream.time_base)
        for frame in _decoded(container, stream):
            pts.append(frame.pts)
            duration = frame.duration or 0
    if not pts:
        raise DecodeError(Reason.DECODE_ERROR, "no frame can be decoded")
    # Frames come in the order they are shown; AVI files with B-frames only label them wrongly.
    times = sorted(time for time in pts if time is not None)
    if len(set(times)) < len(pts):
        times = [int(place * step) for place in range(len(pts))]
    gaps = [after - before for before, after in pairwise(times)]
    flags = (found.flags & ~Flag.VFR) | Flag.MEASURED | (Flag.VFR if is_variable(gaps) else Flag(0))
    end = times[-1] + max(1, duration or int(step))
    return replace(found, pts=times, keys=[], end=end, flags=flags, plain=False)


def _in_order(path: str, found: Probe, wanted: Sequence[int]) -> Iterator[_Shown]:
    """The frames at these places, counted from the start, exactly as they were measured."""
    with opened(path) as (container, stream):
        tainted, left = False, list(wanted)
        for place, frame in enumerate(_decoded(container, stream)):
            tainted = bool(frame.is_corrupt) or (tainted and not frame.key_frame)
            if place == left[0]:
                if tainted:
                    raise DecodeError(Reason.DECODE_CORRUPT, f"frame {place}")
                yield _upright(frame, stream)
                left.pop(0)
            if not left:
                return


def _upright(frame: Any, stream: Any) -> _Shown:
    """A frame's pixels, turned and mirrored as the container's display matrix says."""
    pixels = frame.to_ndarray(format="rgb24")
    aspect = _pixel_aspect(stream)
    matrix = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) != 36:
        return _Shown(pixels, 0, False, aspect)
    # x' = a x + c y, y' = b x + d y; only quarter turns and mirrors are of use for pixels.
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(int).tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, right, down, aspect = pixels.transpose(1, 0, 2), c, b, 1 / aspect
    else:
        right, down = a, d
    pixels = pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    is_mirrored = a * d - b * c < 0
    turn = 90 * round(np.degrees(np.arctan2(b, a)) / 90) % 360
    return _Shown(np.ascontiguousarray(pixels), int(turn), is_mirrored, aspect)


def _pixel_aspect(stream: Any) -> Fraction:
    """Width of a pixel over its height; square where the header says nothing or nonsense."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def _is_plain(path: str, found: Probe) -> bool:
    """Whether decord gives the right frames of this kind of file; on others it may be silently wrong, or hang."""
    if not (found.plain and found.codec == "h264" and found.num_tracks == 1):
        return False
    with opened(path) as (container, stream):
        if stream.codec_context.pix_fmt != "yuv420p":
            return False
        frame = next(_decoded(container, stream), None)
        return frame is not None and not any(side.type.name == "DISPLAYMATRIX" for side in frame.side_data)


def _decord(path: str, found: Probe, wanted: Sequence[int]) -> Iterator[_Shown]:
    """The frames at these places by decord, which counts frames in the order they are shown."""
    import decord  # only where it is asked for

    decord.logging.set_level(decord.logging.QUIET)
    with opened(path) as (_, stream):
        aspect = _pixel_aspect(stream)
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(found.pts):
            raise _Mismatch
        for place in wanted:
            yield _Shown(reader[place].asnumpy(), 0, False, aspect)
    except (RuntimeError, decord.DECORDError):
        raise _Mismatch from None
