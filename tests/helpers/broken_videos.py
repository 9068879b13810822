"""Videos with tracks, boxes and sizes of one's choice, and what a decoding process makes of them."""

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video.decode import DecodedClip
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from helpers.video_files import picture, write_video

CONFIG = FramesConfig(decode_timeout_s=60)
GOP = {"x264-params": "keyint=24:bframes=3:scenecut=0"}
Outcome = DecodedClip | DecodeError
Decode = Callable[[Path], Outcome]


def outcome(decoder: Decoder, path: Path, start_s: float | None = None) -> Outcome:
    """Return the frames of a file, or why there are none, which must not be a crash or a timeout of the process."""
    refusal = None
    try:
        clip = decoder.decode(str(path), "x", start_s)
    except DecodeError as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason not in (RejectReason.DECODER_CRASH, RejectReason.DECODE_TIMEOUT), path.name
        assert refusal.reason in list(RejectReason)
        assert not refusal.detail or refusal.detail.isprintable()
        return refusal
    assert len(clip.frames) == CONFIG.num_frames
    assert clip.frame_pts_us == sorted(clip.frame_pts_us)
    return clip


def reason(found: Outcome) -> str:
    """Return the reason why there are no frames, or `frames`."""
    return found.reason if isinstance(found, DecodeError) else "frames"


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each box of an MP4, and of those within."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        yield kind, start, start + length
        if kind in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"dinf", b"moof", b"traf", b"mvex"):
            yield from boxes(data, start + 8, start + length)
        start += max(8, length)


def remux(source: Path, path: Path, change: Callable[[list[Any]], list[Any]], **muxing: str) -> Path:
    """The packets of a file's picture track, changed, in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=muxing) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in change([packet for packet in old.demux(stream) if packet.size]):
            packet.stream = copy
            new.mux(packet)
    return path


def retimed(pts: Callable[[int], int], dts: Callable[[int], int]) -> Callable[[list[Any]], list[Any]]:
    """Return a change for `remux`: times in milliseconds by the number of the packet."""

    def change(old: list[Any]) -> list[Any]:
        for number, packet in enumerate(old):
            packet.pts, packet.dts, packet.time_base = pts(number), dts(number), Fraction(1, 1000)
        return old

    return change


def write_tracks(path: Path, *kinds: str) -> Path:
    """A file with several tracks: video, small (a second video), cover, sound, text."""
    codecs = {"video": "libx264", "small": "libx264", "cover": "png", "sound": "aac"}
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for kind in kinds:
            if kind == "text":
                streams.append(container.add_mux_stream("subrip"))
                continue
            stream: Any = container.add_stream(codecs[kind], rate=8000 if kind == "sound" else 24)
            if kind in ("video", "small", "cover"):
                stream.width, stream.height = (64, 48) if kind != "small" else (32, 32)
                stream.pix_fmt = "rgb24" if kind == "cover" else "yuv420p"
            if kind == "cover":
                stream.disposition = type(stream.disposition).attached_pic
            streams.append(stream)
        for kind, stream in zip(kinds, streams, strict=True):
            for number in range({"cover": 1, "sound": 40, "text": 1}.get(kind, 24)):
                if kind == "text":
                    packet = av.Packet(b"Good day")
                    packet.stream, packet.time_base = stream, Fraction(1, 1000)
                    packet.pts, packet.dts, packet.duration = 0, 0, 1000
                    container.mux(packet)
                    continue
                if kind == "sound":
                    frame: Any = av.AudioFrame(format="fltp", layout="mono", samples=1024)
                    frame.sample_rate = 8000
                    for plane in frame.planes:
                        plane.update(bytes(plane.buffer_size))
                else:
                    frame = av.VideoFrame.from_ndarray(picture(number, stream.width, stream.height), format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 24)
                container.mux(stream.encode(frame))
            if kind != "text":
                container.mux(stream.encode())
    return path


def write_pillow_gif(path: Path, frames: list[np.ndarray], milliseconds: list[int]) -> None:
    """Write a GIF whose pictures cover only what changed, each shown as long as it says."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame).quantize() for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, transparency=0, disposal=2)


def gif(width: int, height: int) -> bytes:
    """Two pictures of one pixel on a screen of this size."""
    dot = b"!\xf9\x04\0\x0a\0\0\0" + b",\0\0\0\0\1\0\1\0\0" + b"\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + 2 * dot + b";"


def write_growing(path: Path) -> Path:
    """JPEG pictures of two sizes on one track."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        packets_of = []
        for size in ((64, 48), (128, 96)):
            one = write_video(path.with_name(f"{size[0]}.avi"), 12, size, codec="mjpeg", pix_fmt="yuvj420p")
            with av.open(str(one)) as source:
                packets_of += [bytes(packet) for packet in source.demux(video=0) if packet.size]
        for number, data in enumerate(packets_of):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 24)
            packet.is_keyframe = True
            container.mux(packet)
    return path
