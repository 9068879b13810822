"""Decode sparse frames of a clip exactly, rotate them upright, make them square, and encode them as JPEG.

PyAV with a seek plan is right on edit lists, open GOPs, variable rates and rotated files, and detects damaged frames.
Packet times are checked against the decoded frames; if they differ, the whole clip is decoded once to measure its
timeline. decord gives the same pixels on plain files, is no faster, and does not detect damage; it is used only if
configured.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.seeds import sampling_rng
from evilm.video import frames
from evilm.video.container import Video, opened
from evilm.video.frame_times import Time, check_span, shown_at, span_ticks, span_times
from evilm.video.frames import DecodedFrame, Mismatch
from evilm.video.keyframes import from_keys
from evilm.video.probe import Probe, SampleRequest, is_cut_clip, is_long, is_part, probe_part, probe_whole
from evilm.video.reasons import ClipFlag, RejectReason
from evilm.video.resize import fit, resize, to_jpeg

Backend = Literal["auto", "pyav", "decord"]
_LATEST_US = 1 << 53
"""285 years; later times are damage and would not fit the tables."""


@dataclass(frozen=True)
class DecodedClip:
    """The stored frames of a clip, and facts about its source."""

    frames: list[bytes]
    """JPEGs, in time order."""
    frame_pts_us: list[int]
    """Presentation times in the file's own time, even of a span; the first frame may start before the span."""
    frame_index: list[int]
    """Positions among the frames shown in the clip or span; -1 if it is too long to count them."""
    duration_s: float
    """Length of the clip, or of the span as far as the video reaches."""
    fps: float
    """Frames shown per second, measured; from the header if they were not counted."""
    width: int
    height: int
    rotation: int
    codec: str
    crop_box: list[int]
    decoder: str
    flags: int


_Decode = Callable[[Probe, Sequence[int]], Iterator[DecodedFrame]]
"""Function that yields the frames at ascending positions of a timeline."""


def decode_clip(
    path: str,
    clip_id: str,
    config: FramesConfig,
    backend: Backend | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    may_be_cut: bool = False,
) -> DecodedClip:
    """Decode sparse frames of a video file or of a span of it.

    Args:
        path: absolute path of a local file.
        clip_id: seed of random sampling.
        backend: overrides the configured decoder; `auto` means PyAV.
        start_s: start of the span in seconds from the first shown frame; None for the video's start.
        end_s: end of the span; None, or a time after the video's end, for its end.
        may_be_cut: use all of a file that is the cut clip of the span itself, as `is_cut_clip` finds out.

    Raises:
        DecodeError: the file is not a video, is damaged, too short, too small or too large, or has nothing in the span.
    """
    check_span(start_s, end_s)
    may_be_decord = (backend or config.decoder) == "decord"  # decord counts frames from the video's start
    found = None
    for reads in (_probed, lambda video, *_: probe_whole(video)):
        with opened(path, config.max_pixels) as video:
            if may_be_cut and is_cut_clip(video, start_s, end_s):
                start_s = end_s = None
            sampler = _Sampler(clip_id, config, start_s, end_s)
            found = reads(video, sampler.wish, may_be_decord)
            if found is None:
                continue
            try:
                if may_be_decord and frames.is_plain(video, found):
                    return sampler.clip(found, "decord", partial(frames.by_decord, video))
            except Mismatch:
                pass  # decord counts differently or can't read the file: let PyAV check it
            try:
                if found.trusted:
                    plan = partial(from_keys, video, config.skip_nonref)
                    return sampler.clip(found, "pyav", plan)
            except Mismatch:
                pass  # packets without frames, which alone is not damage
        if found.is_whole:
            break
    assert found is not None
    found = frames.measured(path, config.max_pixels, found, end_s)
    return sampler.clip(found, "pyav", partial(frames.in_order, path, config.max_pixels))


def _probed(video: Video, wish: SampleRequest, may_be_decord: bool) -> Probe | None:
    """Probe the needed packets; None if a part of them would suffice but can't be found."""
    if is_part(video, wish) and not (may_be_decord and not is_long(video, wish)):
        return probe_part(video, wish)
    return probe_whole(video)


class _Sampler:
    """Samples the wanted frames of a timeline with any decoder."""

    def __init__(self, clip_id: str, config: FramesConfig, start_s: float | None, end_s: float | None) -> None:
        self._clip_id, self._config = clip_id, config
        self.wish = SampleRequest(start_s, end_s, self._times)

    def _times(self, start: Time, end: Time) -> list[int]:
        rng = sampling_rng(self._config.seed, self._clip_id) if self._config.sampling == "random" else None
        return span_times(start, end, self._config.stored, rng)

    def clip(self, found: Probe, name: str, decode: "_Decode") -> DecodedClip:
        """Decode the frames at the wanted times.

        Raises:
            Mismatch: the decoder's frames differ from the timeline.
            DecodeError: see `decode_clip`.
        """
        start, end = span_ticks(found.first, found.end, found.time_base, self.wish.start_s, self.wish.end_s)
        index = shown_at(found.pts, self._times(start, end))
        begin = shown_at(found.pts, [start])[0]
        count = bisect_left(found.pts, end) - begin
        if count < 2:
            if found.time_base >= 1 and not self.wish.is_span:  # no or broken clock: all frames in one tick
                raise DecodeError(RejectReason.DECODE_ERROR, f"one frame at a time base of {found.time_base} s")
            raise DecodeError(RejectReason.TOO_SHORT, "one frame")
        pts_us = [int(found.pts[place] * found.time_base * 1_000_000) for place in index]
        if max(map(abs, pts_us)) > _LATEST_US:
            raise DecodeError(RejectReason.DECODE_ERROR, f"a frame shown at {pts_us[-1] / 1_000_000:g} s")
        wanted = sorted(set(index))
        jpegs: dict[int, bytes] = {}
        first: DecodedFrame | None = None
        for place, shown in zip(wanted, decode(found, wanted), strict=True):
            first = first or shown
            jpegs[place] = _to_square(shown, first, self._config)
        assert first is not None
        height, width = first.pixels.shape[:2]
        duration_s = float((end - start) * found.time_base)
        config = self._config
        return DecodedClip(
            frames=[jpegs[place] for place in index],
            frame_pts_us=pts_us,
            frame_index=[-1 if found.has_gaps else place - begin for place in index],
            duration_s=round(duration_s, 6),
            fps=round(found.rate if found.has_gaps else count / duration_s, 6),
            width=width,
            height=height,
            rotation=first.turn,
            codec=found.codec,
            crop_box=list(fit(width, height, config.frame_px, config.resize, first.pixel_aspect).crop_box),
            decoder=name,
            flags=int(_flags(found, first, len(wanted) < len(index))),
        )


def _flags(found: Probe, first: DecodedFrame, is_repeated: bool) -> ClipFlag:
    flags = found.flags
    for holds, flag in (
        (is_repeated, ClipFlag.REPEATED),
        (first.turn or first.is_mirrored, ClipFlag.ROTATED),
        (first.pixel_aspect != 1, ClipFlag.ANAMORPHIC),
        (first.is_hdr, ClipFlag.HDR),
    ):
        flags |= flag if holds else ClipFlag(0)
    return flags


def _to_square(shown: DecodedFrame, first: DecodedFrame, config: FramesConfig) -> bytes:
    """Check the size of a frame and encode it as a stored one."""
    height, width = shown.pixels.shape[:2]
    if shown.pixels.shape != first.pixels.shape:
        was = first.pixels.shape
        raise DecodeError(RejectReason.RESOLUTION_CHANGE, f"{was[1]} x {was[0]}, later {width} x {height}")
    if min(height, width) < config.min_side_px:
        raise DecodeError(RejectReason.TOO_SMALL, f"{width} x {height}")
    how = fit(width, height, config.frame_px, config.resize, first.pixel_aspect)
    return to_jpeg(resize(shown.pixels, how, config.frame_px), config.jpeg_quality)
