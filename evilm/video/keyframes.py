"""Decode frames at given positions of a timeline, each from the key frame before it, with as few others as possible."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from av.video.frame import PictureType

from evilm.errors import DecodeError
from evilm.video.container import GIF, Video
from evilm.video.frames import DecodedFrame, Mismatch, decoded, seek, upright
from evilm.video.packets import demuxed
from evilm.video.probe import Probe
from evilm.video.reasons import RejectReason

_PREDICTED = (PictureType.P, PictureType.B)


class _CorruptChain(Exception):
    """The wanted frame or one it may depend on is damaged, or decoding began too late for it."""


def from_keys(video: Video, skip_nonref: bool, found: Probe, wanted: Sequence[int]) -> Iterator[DecodedFrame]:
    """Decode the frames at these positions of the timeline, each from the key frame before it or an earlier one.

    `skip_nonref` skips frames that no other frame depends on, if these can be recognised.

    Raises:
        Mismatch: a frame announced by packets is missing.
        DecodeError: a frame is damaged.
    """
    skip = skip_nonref and found.can_skip
    times, may_seek = [found.pts[place] for place in wanted], found.container != GIF  # GIF has no index
    while times:
        key = _key_before(found, times[0]) if may_seek else None
        left = deque(time for time in times if not may_seek or _key_before(found, time) == key)
        times = times[len(left) :]
        # A seek may lead too far, and a frame marked as key may need others: then start at an earlier key frame.
        attempts = [(key, skip), (key and _key_before(found, key - 1), False), (None, False)]
        trouble: Exception = Mismatch()
        for start, skips in dict.fromkeys(attempts):
            if start is None and key is not None:
                may_seek = False  # if only the start works, use it for all later frames
            try:
                for frame in _chain(video, start, left, skips):
                    yield upright(frame, video)
            except _CorruptChain:
                trouble = DecodeError(RejectReason.DECODE_CORRUPT, f"at {float(left[0] * found.time_base):.2f} s")
            if not left:
                break
        else:
            raise trouble


def _key_before(found: Probe, time: int) -> int | None:
    """Return the time where decoding of a frame starts; None for the file's start."""
    place = bisect_right(found.keys, time)
    key = found.keys[place - 1] if place else found.first
    return None if key <= found.first else key


def _chain(video: Video, start: int | None, left: deque[int], skip: bool) -> Iterator[Any]:
    """Yield the frames at the times `left`, decoded from the key frame before `start`; remove each time from `left`.

    Ends early if a frame is missing.

    Args:
        start: None starts at the beginning of the file.
        skip: decode only frames that the wanted ones may depend on.

    Raises:
        _CorruptChain: the next frame is damaged.
        DecodeError: the decoder failed.
    """
    seek(video, start)
    taint = _Taint()
    for frame in _decoded_for(video, left, skip, taint):
        if frame.pts is None:
            continue
        taint.came(frame)
        if not left:
            continue
        if frame.pts > left[0]:
            return
        if frame.pts == left[0]:
            if taint.reaches(frame.pts):
                raise _CorruptChain
            yield frame
            left.popleft()
            taint.given.append(frame.pts)
        if not left and not skip:
            break
    taint.check_given()


def _decoded_for(video: Video, times: Iterable[int], skip: bool, taint: "_Taint") -> Iterator[Any]:
    """Yield decoded frames; with `skip`, leave out frames that those at `times` do not need."""
    missing = set(times)
    for packet in demuxed(video):
        taint.sent(packet)
        if skip:
            video.context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        missing.discard(packet.pts)
        yield from decoded(video, packet)
        if skip and not missing:
            break
    yield from decoded(video, None)


class _Taint:
    """Tracks the damaged frames of a chain and the frames that depend on them.

    Frames marked as key by a container may be predicted from earlier ones (H.264 with intra refresh): decoding can't
    start there, and damage continues after them.
    """

    def __init__(self) -> None:
        self.given: list[int] = []
        self._order: dict[int, int] = {}  # time -> place in decoding order
        self._marked: set[int] = set()
        self._keys: list[int] = []
        self._bad: list[int] = []

    def sent(self, packet: Any) -> None:
        """Record a packet sent to the decoder."""
        if packet.pts is None:
            return
        self._order.setdefault(packet.pts, len(self._order))
        if packet.is_keyframe:
            self._marked.add(packet.pts)
            if packet.is_discard:  # its frame never comes
                self._keys.append(packet.pts)

    def came(self, frame: Any) -> None:
        """Record a frame output by the decoder."""
        if frame.pts in self._marked and frame.pict_type not in _PREDICTED:
            self._keys.append(frame.pts)
        if frame.is_corrupt:
            self._bad.append(frame.pts)

    def reaches(self, time: int) -> bool:
        """Check if a frame is damaged between the key frame before `time` and the frame at that time."""
        key = max((key for key in self._keys if key <= time), default=None)
        if key is None:
            return True
        last = self._order[time]
        return any(bad >= key and self._order.get(bad, last) <= last for bad in self._bad)

    def check_given(self) -> None:
        """Check that no frame already returned depends on a damaged one that was output after it.

        Raises:
            DecodeError: a returned frame may be damaged.
        """
        for time in self.given:
            if self.reaches(time):
                raise DecodeError(RejectReason.DECODE_CORRUPT, "depends on a damaged frame that is shown later")
