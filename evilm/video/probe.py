"""Probe a video file by its packets only: when each frame is shown, where decoding can start, what is missing.

No frame is decoded, so this takes a few milliseconds and never hangs on damaged pictures. For a span, only its packets
are read; for a very long video, only those around the wanted times.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from statistics import median

from evilm.errors import DecodeError
from evilm.video.container import GIF, MATROSKA, MOV, Video, check_complete, opened
from evilm.video.frame_times import Time, span_ticks
from evilm.video.packets import NotCovered, Packet, Past, collect, cover, first_shown, shown_of
from evilm.video.reasons import ClipFlag, RejectReason

_TRUSTED = (MOV, MATROSKA, GIF)
"""Containers with presentation times in packets; AVI has only an order, MPEG-TS may start anywhere."""
_SKIPPING = ("h264", "hevc")
"""Codecs that mark frames on which no other depends, with decoders that can skip them."""
_MANY = 20_000
"""Number of packets (11 minutes) beyond which only those around the wanted times are read."""

_CUT_SLACK_S, _CUT_SLACK = 0.5, 0.05
"""Largest difference between the lengths of a cut clip and of its span, in seconds or as a share of the span."""


@dataclass(frozen=True)
class Probe:
    """The timeline of a file's picture track, or of the needed part of it."""

    container: str
    codec: str
    time_base: Fraction
    """Seconds per tick; all times below are in ticks."""
    num_tracks: int
    """Number of picture tracks."""
    pts: list[int]
    """Start of each shown frame, ascending."""
    first: int
    """Start of the video's first shown frame."""
    end: int
    """End of the last frame."""
    keys: list[int]
    """Times of key frames, ascending."""
    trusted: bool
    """True if `pts` are the times of the decoder's frames."""
    plain: bool
    """True without edit list, open GOP or repeated times, with a key frame first and the header's number of packets."""
    can_skip: bool
    """True if frames on which no other depends can be recognised and skipped."""
    rate: float
    """Frames per second by the header."""
    flags: ClipFlag
    is_whole: bool = True
    """True if `pts` covers all frames of the video."""
    has_gaps: bool = False
    """True if `pts` covers only the frames around the wanted times."""

    @property
    def duration_s(self) -> float:
        """Return the time from the start of the first frame to the end of the last one."""
        return float((self.end - self.first) * self.time_base)

    @property
    def fps(self) -> float:
        """Return the measured number of frames per second."""
        return len(self.pts) / self.duration_s


@dataclass(frozen=True)
class SampleRequest:
    """The wanted part of a video."""

    start_s: float | None
    """Start of the span in seconds from the first shown frame."""
    end_s: float | None
    times: Callable[[Time, Time], list[int]]
    """Function from start and end to the times to sample, in ticks."""

    @property
    def is_span(self) -> bool:
        return bool(self.start_s) or self.end_s is not None


def probe(path: str) -> Probe:
    """Read the packets of a video file.

    Raises:
        DecodeError: there is no file, it is not a video, or it is truncated.
    """
    with opened(path) as video:
        return probe_whole(video)


def probe_whole(video: Video) -> Probe:
    """Read all packets of an open file.

    Raises:
        DecodeError: the file is truncated or has no packets.
    """
    _check_complete(video)
    seen = collect(video, Past(None))
    if not seen:
        raise DecodeError(RejectReason.DECODE_ERROR, "the picture track has no data")
    return _timeline(video, [seen])


def is_cut_clip(video: Video, start_s: float | None, end_s: float | None) -> bool:
    """Check if a file is the cut clip of a span, not its source: it ends before the span, and is as long as it."""
    if end_s is None:
        return False
    span_s, length_s = end_s - (start_s or 0.0), _length_s(video)
    difference_s = abs(length_s - span_s)
    return difference_s <= max(_CUT_SLACK_S, _CUT_SLACK * span_s) and difference_s < end_s - length_s


def is_part(video: Video, wish: SampleRequest) -> bool:
    """Check if reading a part of the packets is enough: for a span, or for a long video that can be sought."""
    if video.kind not in (MOV, MATROSKA) or math.isinf(_stop_s(video, wish)):
        return False
    return wish.is_span or is_long(video, wish)


def is_long(video: Video, wish: SampleRequest) -> bool:
    """Check if the wanted part has too many packets to read more than those around the wanted times."""
    return (_stop_s(video, wish) - (wish.start_s or 0)) * _rate(video) > _MANY


def probe_part(video: Video, wish: SampleRequest) -> Probe | None:
    """Read the packets of a span, or those around the wanted times of a long one; None if seeking fails.

    Raises:
        DecodeError: the file is truncated or ends before the span begins.
    """
    _check_complete(video)
    first = first_shown(video)
    if first is None:
        return None
    ticks, open_end, length_s = video.stream.time_base, 1 << 62, _length_s(video)
    has_gaps = math.isfinite(length_s) and is_long(video, wish)
    end: int | None = None
    try:
        if has_gaps:
            runs = [cover(video, first + int(length_s / ticks), open_end)[0]]
            end = _timeline(video, runs).end
            times = wish.times(*span_ticks(first, end, ticks, wish.start_s, wish.end_s))
            runs += [cover(video, time, time)[0] for time in times]
        else:
            start, stop = span_ticks(first, open_end, ticks, wish.start_s, wish.end_s)
            run, goes_on = cover(video, math.floor(start), math.ceil(stop))
            runs, end = [run], math.ceil(stop) if goes_on else None
    except NotCovered:
        return None
    found = _timeline(video, runs)
    end = found.end if end is None else end
    return replace(found, first=first, end=end, is_whole=False, has_gaps=has_gaps, plain=False)


def _length_s(video: Video) -> float:
    """Return the video's length in seconds by the header; infinite if unknown."""
    known = []
    if video.stream.duration and video.stream.duration > 0:
        known.append(float(video.stream.duration * video.stream.time_base))
    if video.container.duration and video.container.duration > 0:
        known.append(video.container.duration / 1_000_000)
    if video.stream.frames:
        known.append(float(video.stream.frames / _rate(video)))
    return min(known, default=math.inf)


def _stop_s(video: Video, wish: SampleRequest) -> float:
    return min(_length_s(video), math.inf if wish.end_s is None else wish.end_s)


def _rate(video: Video) -> Fraction:
    """Return the frames per second by the header; 25 if it has no valid value."""
    rate = video.stream.average_rate
    return rate if rate and 0 < rate < 10_000 else Fraction(25)


def _check_complete(video: Video) -> None:
    """Reject a file that lacks bytes listed by its boxes or index."""
    check_complete(video.path, video.kind)
    if video.kind == MOV:
        size, count = os.path.getsize(video.path), len(video.stream.index_entries)
        lost = sum(entry.pos + entry.size > size for entry in video.stream.index_entries[max(0, count - 64) :])
        if lost:
            raise DecodeError(RejectReason.TRUNCATED, f"frames lie beyond the {size} bytes that are there")


def _timeline(video: Video, runs: list[list[Packet]]) -> Probe:
    """Combine runs of packets, each in decoding order, to one timeline."""
    seen = [packet for run in runs for packet in run]
    shown: dict[int, Packet] = {}
    gaps: list[int] = []
    for run in runs:
        part = shown_of(run)
        shown |= part
        gaps += [after - before for before, after in pairwise(sorted(part))]
    name, codec = video.kind, video.context.codec.canonical_name
    trusted = name in _TRUSTED and bool(shown) and all(packet.pts is not None for packet in seen)
    pts = sorted(shown) or [0]
    usual = median(gaps) if gaps else 1 / (_rate(video) * video.stream.time_base)
    last = shown[pts[-1]].duration if shown else 0
    hidden = any(packet.is_hidden for packet in seen)
    open_gop = any(_has_leading(run) for run in runs)
    flags = ClipFlag(0)
    for holds, flag in ((is_variable(gaps), ClipFlag.VFR), (hidden, ClipFlag.EDIT_LIST), (open_gop, ClipFlag.OPEN_GOP)):
        flags |= flag if holds else ClipFlag(0)
    plain = (
        trusted
        and name in (MOV, MATROSKA)
        and seen[0].is_key
        and not (hidden or open_gop or any(packet.is_corrupt for packet in seen))
        and len(shown) == len(seen)
        and video.stream.frames in (0, len(seen))
    )
    is_interlaced = int(video.context.field_order) > 1
    is_layered = any(packet.is_layered for packet in seen)
    # If damage gave a frame another one's time, the order of frames shows it, except in very short runs.
    is_sure = all(_is_in_order(run) or (not is_variable(gaps) and not _has_repeats(run)) for run in runs)
    can_skip = trusted and is_sure and codec in _SKIPPING and not (is_interlaced or is_layered)
    return Probe(
        container=name,
        codec=codec,
        time_base=video.stream.time_base,
        num_tracks=len(video.container.streams.video),
        pts=pts,
        first=pts[0],
        end=pts[-1] + max(1, int(last or usual)),
        keys=sorted({packet.pts for packet in seen if packet.is_key and packet.pts is not None}),
        trusted=trusted,
        plain=plain,
        can_skip=can_skip,
        rate=float(_rate(video)),
        flags=flags,
    )


def is_variable(gaps: list[int]) -> bool:
    """Check if gaps between frames differ by more than a quarter, beyond a tick of rounding."""
    return bool(gaps) and max(gaps) - min(gaps) > max(2, max(gaps) / 4)


def _has_repeats(run: list[Packet]) -> bool:
    """Check if two frames have the same time."""
    return len({packet.pts for packet in run}) < len(run)


def _is_in_order(run: list[Packet]) -> bool:
    """Check if frames are shown in decoding order."""
    return all(one.pts < other.pts for one, other in pairwise(run) if one.pts is not None and other.pts is not None)


def _has_leading(run: list[Packet]) -> bool:
    """Check if a frame is shown before the key frame after which it is decoded."""
    key: int | None = None
    for packet in run:
        if packet.pts is None:
            continue
        if packet.is_key:
            key = packet.pts
        elif key is not None and packet.pts < key:
            return True
    return False
