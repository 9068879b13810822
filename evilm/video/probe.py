"""What a video file holds, from its packets alone: when each frame is shown, where decoding can start, what is missing.

No frame is decoded, so this costs a few milliseconds and never hangs on damaged pictures.
"""

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import Any, BinaryIO

import av
import av.error
import av.logging

from evilm.errors import DecodeError
from evilm.video.reasons import Flag, Reason

MOV, MATROSKA, AVI, GIF = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif"
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf"
_TRUSTED = (MOV, MATROSKA, GIF)
"""Containers whose packets tell when a frame is shown; AVI has only an order, MPEG-TS may start anywhere."""
_MAGIC = {
    4: (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"),
    0: (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba"),
}
av.logging.set_level(None)  # ffmpeg writes its complaints to stderr otherwise, kilobytes per damaged file


@dataclass(frozen=True)
class Probe:
    """The packets of a file's picture track."""

    container: str
    codec: str
    time_base: Fraction
    """Seconds per tick; all times below are in ticks."""
    pts: list[int]
    """When each shown frame starts, ascending."""
    end: int
    """When the last frame stops being shown."""
    keys: list[int]
    """Times of key frames, ascending."""
    trusted: bool
    """Whether `pts` are those of the frames a decoder gives."""
    num_tracks: int
    """Picture tracks."""
    plain: bool
    """No edit list, no open GOP, no repeated times, a key frame first, as many packets as the header says."""
    flags: Flag

    @property
    def duration_s(self) -> float:
        """From the start of the first frame to the end of the last one."""
        return float((self.end - self.pts[0]) * self.time_base)

    @property
    def fps(self) -> float:
        """Frames shown per second, measured."""
        return len(self.pts) / self.duration_s

    def key_before(self, time: int) -> int:
        """Position in `keys` of the last one at or before `time`; -1 where there is none."""
        return bisect_right(self.keys, time) - 1


def probe(path: str) -> Probe:
    """Read the packets of a video file.

    Raises:
        DecodeError: no file, no video, or one that is cut off.
    """
    _check_file(path)
    with opened(path) as (container, stream):
        seen = list(_packets(container, stream))
        facts: dict[str, Any] = {
            "container": container.format.name,
            "codec": stream.codec_context.name,
            "time_base": stream.time_base,
            "num_tracks": len(container.streams.video),
        }
        promised, rate = stream.frames, stream.average_rate or Fraction(25)
    _check_complete(path, facts["container"])
    if not seen:
        raise DecodeError(Reason.DECODE_ERROR, "the picture track has no data")
    return Probe(**facts, **_timeline(seen, facts, promised, rate))


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The file's container and first picture track, decoding on one thread.

    Raises:
        DecodeError: no video container, or one without pictures.
    """
    try:
        # Only kinds that hold everything themselves: a playlist named .mp4 must not make us open what it points at.
        container = av.open(path, options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        known = _looks_like_video(path)
        raise DecodeError(Reason.UNREADABLE_CONTAINER if known else Reason.NOT_A_VIDEO, type(error).__name__) from None
    with container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            _check_complete(path, container.format.name)
            raise DecodeError(Reason.NO_VIDEO_STREAM, f"streams: {len(container.streams)}")
        if streams[0].codec_context is None:
            raise DecodeError(Reason.DECODE_ERROR, "no decoder for this codec")
        streams[0].codec_context.thread_count = 1
        yield container, streams[0]


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    duration: int
    is_key: bool
    is_hidden: bool  # outside the edit list
    is_corrupt: bool


def _packets(container: Any, stream: Any) -> Iterator[_Packet]:
    """The track's packets that give a picture, in decoding order."""
    is_vp8 = stream.codec_context.name == "vp8"
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if is_vp8 and not bytes(packet)[0] >> 4 & 1:
                continue  # an alternate reference: decoded, never shown
            yield _Packet(packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard, packet.is_corrupt)
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(Reason.UNREADABLE_CONTAINER, f"packets: {type(error).__name__}") from None


def _timeline(seen: list[_Packet], facts: dict[str, Any], promised: int, rate: Fraction) -> dict[str, Any]:
    """`Probe`'s times and judgements."""
    timed = [(packet.pts, packet) for packet in seen if packet.pts is not None]
    first_key = min((pts for pts, packet in timed if packet.is_key), default=None)
    shown = {
        pts: packet for pts, packet in timed if not packet.is_hidden and first_key is not None and pts >= first_key
    }
    pts = sorted(shown)
    trusted = facts["container"] in _TRUSTED and len(timed) == len(seen) and bool(pts)
    pts = pts or [0]
    gaps = [after - before for before, after in pairwise(pts)]
    usual = median(gaps) if gaps else 1 / (rate * facts["time_base"])
    last = shown[pts[-1]].duration if pts[-1] in shown else 0
    hidden = any(packet.is_hidden for packet in seen)
    open_gop = _has_leading(seen)
    flags = Flag(0)
    for holds, flag in (
        (is_variable(gaps), Flag.VFR),
        (hidden, Flag.EDIT_LIST),
        (open_gop, Flag.OPEN_GOP),
    ):
        flags |= flag if holds else Flag(0)
    plain = (
        trusted
        and facts["container"] in (MOV, MATROSKA)
        and seen[0].is_key
        and not (hidden or open_gop or any(packet.is_corrupt for packet in seen))
        and len(shown) == len(seen)
        and promised in (0, len(seen))
    )
    return {
        "pts": pts,
        "end": pts[-1] + max(1, int(last or usual)),
        "keys": sorted(pts for pts, packet in timed if packet.is_key),
        "trusted": trusted,
        "plain": plain,
        "flags": flags,
    }


def is_variable(gaps: list[int]) -> bool:
    """Whether gaps between frames differ by more than a quarter, beyond a tick of rounding."""
    return bool(gaps) and max(gaps) - min(gaps) > max(2, max(gaps) / 4)


def _has_leading(seen: list[_Packet]) -> bool:
    """Whether a frame is shown before the key frame that it is decoded after."""
    key: int | None = None
    for packet in seen:
        if packet.pts is None:
            continue
        if packet.is_key:
            key = packet.pts
        elif key is not None and packet.pts < key:
            return True
    return False


def _check_file(path: str) -> None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise DecodeError(Reason.MISSING_FILE) from None
    except OSError as error:
        raise DecodeError(Reason.FETCH_ERROR, error.strerror or "") from None
    if not stat.S_ISREG(info.st_mode):
        raise DecodeError(Reason.NOT_A_FILE)
    if info.st_size == 0:
        raise DecodeError(Reason.EMPTY_FILE)


def _looks_like_video(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(189)
    except OSError as error:
        raise DecodeError(Reason.FETCH_ERROR, error.strerror or "") from None
    if head[:1] + head[188:] == b"GG":  # MPEG-TS: a sync byte every 188 bytes
        return True
    return any(head[offset:].startswith(magic) for offset, magics in _MAGIC.items() for magic in magics)


def _check_complete(path: str, container: str) -> None:
    """Compare the sizes that the container's outermost boxes state with the file's."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if container == MOV:
            end = _mov_end(file, size)
        elif container == MATROSKA:
            end = _matroska_end(file)
        elif container == AVI:
            head = file.read(8)
            end = int.from_bytes(head[4:8], "little") + 8 if head[:4] == b"RIFF" else 0
        else:
            end = 0
    if end > size:
        raise DecodeError(Reason.TRUNCATED, f"{size} of {end} bytes are there ({100 * size // end} %)")


def _mov_end(file: BinaryIO, size: int) -> int:
    """Where the last box with media in it ends, walking the outermost boxes."""
    offset = end = 0
    while offset + 8 <= size:
        file.seek(offset)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file; other small values: not a box
            break
        offset += length
        if kind in (b"mdat", b"moof", b"moov"):
            end = offset
    return end


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 where its size is not stated (live recordings)."""
    offset = 0
    for _ in range(4):  # the EBML header, perhaps a void, then the segment
        file.seek(offset)
        head = file.read(12)
        if len(head) < 12:
            return 0
        id_length = 9 - head[0].bit_length()
        if id_length > 4:
            return 0
        first = head[id_length]
        size_length = 9 - first.bit_length()
        if size_length > 8:
            return 0
        bits = 7 * size_length
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & (1 << bits) - 1
        begin = offset + id_length + size_length
        if head[:4] == b"\x18S\x80g":
            return 0 if length == (1 << bits) - 1 else begin + length
        offset = begin + length
    return 0
