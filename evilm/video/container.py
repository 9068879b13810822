"""Open a video file: detect its format, check that it is complete, and prepare its picture track for decoding."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.error
import av.logging

from evilm.errors import DecodeError
from evilm.video.reasons import RejectReason

MOV, MATROSKA, AVI, GIF = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif"
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf"
_VIDEOS = {
    0: (b"\x1aE\xdf\xa3", b"GIF8", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba"),
    4: (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"),
    8: (b"AVI ",),
}
"""First bytes of videos, by their offset."""
_OTHERS = {
    "a picture": (b"\x89PNG", b"\xff\xd8\xff", b"RIFF"),
    "a playlist": (b"#EXTM3U", b"ffconcat", b"v=0"),
    "an archive": (b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf"),
    "a PDF document": (b"%PDF",),
    "a bare stream of pictures without times": (b"\x00\x00\x00\x01", b"\x00\x00\x01", b"DKIF", b"YUV4MPEG2"),
    "HTML or XML": (b"<",),
    "JSON": (b"{", b"["),
    "zeros": (bytes(16),),
}
"""First bytes of other files that are found under a video's name."""
av.logging.set_level(None)  # otherwise ffmpeg writes kilobytes to stderr per damaged file


@dataclass(frozen=True)
class Video:
    """An open video file."""

    path: str
    container: Any
    stream: Any
    """Its picture track, decoded on one thread."""
    max_pixels: int
    """Most pixels of a picture; 0 for no limit."""

    @property
    def kind(self) -> str:
        """Return the name of the container's format."""
        return self.container.format.name

    @property
    def context(self) -> Any:
        """Return the track's decoder."""
        return self.stream.codec_context

    def check_pixels(self, width: int, height: int) -> None:
        """Check that a picture is not too large.

        Raises:
            DecodeError: too_large.
        """
        if self.max_pixels and width * height > self.max_pixels:
            raise DecodeError(
                RejectReason.TOO_LARGE, f"{width} x {height} pixels; sampling.max_pixels = {self.max_pixels}"
            )

    def failure(self, error: Exception) -> DecodeError:
        """Convert a decoder's exception to an error about the file."""
        if isinstance(error, MemoryError):
            return DecodeError(RejectReason.TOO_LARGE, "more memory than a decoder may use")
        # Pictures larger than the container says raise a bad-argument error; the decoder's size is then unset or large.
        if self.max_pixels and isinstance(error, av.error.ArgumentError):
            if not self.context.width:
                return DecodeError(
                    RejectReason.TOO_LARGE, f"pictures of more pixels; sampling.max_pixels = {self.max_pixels}"
                )
            self.check_pixels(self.context.width, self.context.height)
        return DecodeError(RejectReason.DECODE_ERROR, type(error).__name__)


@contextmanager
def opened(path: str, max_pixels: int = 0) -> Iterator[Video]:
    """Open a file's first picture track.

    `max_pixels` is the limit of a picture, 0 for none; the decoder rejects more before it allocates memory.

    Raises:
        DecodeError: there is no file, it is not a video, or its pictures are missing or too large.
    """
    _check_file(path)
    # Only self-contained formats: a playlist named .mp4 must not make us open the files it names.
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"} | _at_most(max_pixels)
    try:
        # Metadata such as titles may have any encoding. An absolute path can't be mistaken for a protocol.
        container = av.open(os.path.abspath(path), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unopened(path, error) from None
    with container:
        stream = _picture_track(container)
        if stream is None:
            check_complete(path, container.format.name)
            raise DecodeError(RejectReason.NO_VIDEO_STREAM, f"streams: {len(container.streams)}")
        context = stream.codec_context
        if context is None:
            raise DecodeError(RejectReason.DECODE_ERROR, "no decoder for this codec")
        if stream.time_base is None or stream.time_base <= 0:
            raise DecodeError(RejectReason.DECODE_ERROR, f"invalid time base {stream.time_base}")
        video = Video(path, container, stream, max_pixels)
        video.check_pixels(*(_gif_size(path) if video.kind == GIF else (context.width, context.height)))
        context.thread_count = 1
        # H.264 marks damaged pictures; HEVC does not, but can stop at the damage.
        context.options = _at_most(max_pixels) | ({"err_detect": "explode"} if context.name == "hevc" else {})
        yield video


def check_complete(path: str, container: str) -> None:
    """Compare the sizes stated by the container's outermost boxes with the size of the file.

    Raises:
        DecodeError: the file is truncated.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if container == MOV:
            end = _mov_end(file, size)
        elif container == MATROSKA:
            end = _matroska_end(file)
        elif container == GIF:
            end = _gif_end(file, size)
        elif container == AVI:
            head = file.read(8)
            end = int.from_bytes(head[4:8], "little") + 8 if head[:4] == b"RIFF" else 0
        else:
            end = 0
    if end > size:
        raise DecodeError(RejectReason.TRUNCATED, f"file has {size} of {end} bytes ({100 * size // end} %)")


def _at_most(max_pixels: int) -> dict[str, str]:
    return {"max_pixels": str(max_pixels)} if max_pixels else {}


def _picture_track(container: Any) -> Any:
    """Find the first picture track except covers, thumbnails and stills; prefer one with a decoder."""
    streams = [stream for stream in container.streams.video if not _is_still(stream)]
    streams.sort(key=lambda stream: (stream.codec_context is None, stream.frames == 1))
    return streams[0] if streams else None


def _is_still(stream: Any) -> bool:
    kinds = type(stream.disposition)
    return bool(stream.disposition & (kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image))


def _check_file(path: str) -> None:
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError(RejectReason.MISSING_FILE) from None
    except ValueError:  # a NUL in the name
        raise DecodeError(RejectReason.MISSING_FILE, "no file can have this name") from None
    except OSError as error:
        reason = RejectReason.MISSING_FILE if error.errno == errno.ENAMETOOLONG else RejectReason.FETCH_ERROR
        raise DecodeError(reason, error.strerror or "") from None
    if not stat.S_ISREG(info.st_mode):  # reading a pipe or device could block
        raise DecodeError(RejectReason.NOT_A_FILE)
    if info.st_size == 0:
        raise DecodeError(RejectReason.EMPTY_FILE)


def _unopened(path: str, error: Exception) -> DecodeError:
    """Determine from its first bytes why a file can't be opened as a video."""
    try:
        with open(path, "rb") as file:
            head = file.read(189)
    except OSError as unreadable:
        return DecodeError(RejectReason.FETCH_ERROR, unreadable.strerror or "")
    if isinstance(error, MemoryError):
        return DecodeError(RejectReason.TOO_LARGE, "more memory than a decoder may use")
    is_ts = head[:1] + head[188:] == b"GG"  # MPEG-TS: a sync byte every 188 bytes
    if is_ts or any(head[at:].startswith(magics) for at, magics in _VIDEOS.items()):
        return DecodeError(RejectReason.UNREADABLE_CONTAINER, type(error).__name__)
    kinds = (kind for kind, magics in _OTHERS.items() if head.lstrip().startswith(magics))
    return DecodeError(RejectReason.NOT_A_VIDEO, next(kinds, type(error).__name__))


def _mov_end(file: BinaryIO, size: int) -> int:
    """Return the end of the last box with media, walking the outermost boxes."""
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
    """Return the end of the segment; 0 if its size is not stated (live recordings)."""
    offset = 0
    for _ in range(4):  # the EBML header, an optional void, then the segment
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


def _gif_end(file: BinaryIO, size: int) -> int:
    """Return the end of the last block, walking the blocks, which have no index."""
    data = file.read()
    offset = 13 + _colours(data[10:11])
    while offset < size:
        kind, offset = data[offset], offset + 1
        if kind == 0x2C:  # a picture: position and colours, then a code size
            offset += 9 + _colours(data[offset + 8 : offset + 9]) + 1
        elif kind == 0x21:  # an extension and its label
            offset += 1
        else:  # the trailer, or junk that browsers ignore too
            return 0
        while offset < size and data[offset]:
            offset += 1 + data[offset]
        offset += 1
    return offset


def _gif_size(path: str) -> tuple[int, int]:
    """Read width and height from the file; the decoder drops a size that it rejects."""
    with open(path, "rb") as file:
        head = file.read(10)
    return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")


def _colours(packed: bytes) -> int:
    """Return the size in bytes of the colour table that a GIF descriptor announces."""
    return 3 * 2 ** ((packed[0] & 7) + 1) if packed and packed[0] & 0x80 else 0
