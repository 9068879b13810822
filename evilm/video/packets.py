"""Read the packets of a picture track: all of them, or those around a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import av.error

from evilm.errors import DecodeError
from evilm.video.container import Video
from evilm.video.reasons import RejectReason

_MOST = 1_000_000
"""Most packets (9 hours) of a file that can't be sought."""
_REORDERED = 16
"""Most frames decoded before one that is shown earlier; the limit of H.264 and HEVC."""


class Packet(NamedTuple):
    """A packet as the container describes it."""

    pts: int | None
    duration: int
    is_key: bool
    is_hidden: bool  # outside the edit list
    is_corrupt: bool
    is_layered: bool  # may need frames that other frames of its layer do not


class NotCovered(Exception):
    """Seeking does not reach the packets around a time."""


def cover(video: Video, low: int, high: int) -> tuple[list[Packet], bool]:
    """Read all packets from a key frame at or before `low` to those shown by `high`, and the next one.

    Returns:
        The packets, and True if the file continues after them.

    Raises:
        NotCovered: seeking does not find them.
    """
    for back_s in (0, 1, 10):  # some containers seek by decoding time, and go too far
        try:
            video.container.seek(low - int(back_s / video.stream.time_base), stream=video.stream, backward=True)
        except (av.error.FFmpegError, OSError, OverflowError):
            break
        run = collect(video, Past(high))
        if min(shown_of(run), default=low + 1) <= low:
            after = min((packet.pts for packet in run if packet.pts is not None and packet.pts > high), default=None)
            if after is None:
                return run, False
            return [packet for packet in run if packet.pts is None or packet.pts <= after], True
    raise NotCovered


class Past:
    """Detects when no later packet can be shown at or before a time."""

    def __init__(self, time: int | None) -> None:
        self.time = time
        self._late = 0

    def __call__(self, packet: Packet) -> bool:
        if self.time is None:
            return False
        self._late += packet.pts is not None and packet.pts > self.time
        return self._late > _REORDERED


def first_shown(video: Video) -> int | None:
    """Return the start of the first shown frame; reads from the start of the open file."""
    past, key = Past(None), None
    for packet in _packets(video):
        if packet.pts is None:
            continue
        if packet.is_key and key is None:
            key = packet.pts
        if key is not None and packet.pts >= key and not packet.is_hidden:
            past.time = packet.pts if past.time is None else min(past.time, packet.pts)
        if past(packet):
            break
    return past.time


def collect(video: Video, stop: Past) -> list[Packet]:
    """Read the track's packets from the current position of the file."""
    seen: list[Packet] = []
    for packet in _packets(video):
        seen.append(packet)
        if stop(packet):
            break
        if len(seen) > _MOST:
            raise DecodeError(RejectReason.TOO_LARGE, f"more than {_MOST} frames to read one after the other")
    return seen


def _packets(video: Video) -> Iterator[Packet]:
    """Yield the track's packets with a picture, in decoding order."""
    codec = video.context.name
    nal_bytes = _nal_bytes(video.context) if codec == "hevc" else 0
    for packet in demuxed(video):
        if codec == "vp8" and not memoryview(packet)[0] >> 4 & 1:
            continue  # an alternate reference: decoded, never shown
        yield Packet(
            packet.pts,
            packet.duration or 0,
            packet.is_keyframe,
            packet.is_discard,
            packet.is_corrupt,
            codec == "hevc" and _is_layered(memoryview(packet), nal_bytes),
        )


def demuxed(video: Video) -> Iterator[Any]:
    """Yield the track's packets with data from the current position of the file.

    Raises:
        DecodeError: the container is damaged or needs too much memory.
    """
    packets = video.container.demux(video.stream)
    while True:
        try:
            packet = next(packets, None)
        except MemoryError:
            raise DecodeError(RejectReason.TOO_LARGE, "a frame of more bytes than a decoder may use") from None
        except (av.error.FFmpegError, OSError) as error:
            raise DecodeError(RejectReason.UNREADABLE_CONTAINER, f"packets: {type(error).__name__}") from None
        except IndexError:
            return  # raised by PyAV at the end of a file with tracks that its header does not name
        if packet is None:
            return
        if packet.size:  # an empty packet would end the decoding
            yield packet


def _nal_bytes(context: Any) -> int:
    """Return the number of bytes of the length before each unit of HEVC data; 0 if there is none."""
    head = context.extradata or b""
    return (head[21] & 3) + 1 if len(head) > 22 and head[0] == 1 else 0


def _is_layered(data: memoryview, nal_bytes: int) -> bool:
    """Check if HEVC data belong to a higher temporal layer, whose frames the lower one never uses."""
    if not nal_bytes:
        return True  # unknown
    offset = 0
    while offset + nal_bytes + 2 <= len(data):
        start = offset + nal_bytes
        if data[start] >> 1 & 63 < 32 and data[start + 1] & 7 != 1:
            return True
        offset = start + int.from_bytes(data[offset:start], "big")
    return False


def shown_of(run: list[Packet]) -> dict[int, Packet]:
    """Select the packets with frames that are shown and can be decoded from the run, by time."""
    key = min((packet.pts for packet in run if packet.is_key and packet.pts is not None), default=None)
    if key is None:
        return {}
    return {
        packet.pts: packet for packet in run if packet.pts is not None and packet.pts >= key and not packet.is_hidden
    }
