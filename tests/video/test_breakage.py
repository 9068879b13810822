"""Videos broken in every way that a web scrape, or somebody who means harm, may break them: frames, or a reason.

Each goes through a real decoding process. None may crash or hang it, so any `decoder_crash` or `decode_timeout` fails.
"""

import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video import decode as decoding
from evilm.video import packets
from evilm.video.container import MOV, check_complete
from evilm.video.decode import DecodedClip, decode_clip
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from helpers.video_files import assert_true_frames, picture, write_video

CONFIG = FramesConfig(decode_timeout_s=60)
GOP = {"x264-params": "keyint=24:bframes=3:scenecut=0"}
Outcome = DecodedClip | DecodeError
Look = Callable[[Path], Outcome]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(CONFIG) as decoder:
        yield decoder


@pytest.fixture
def look(decoder: Decoder) -> Look:
    """Gives what becomes of a file: its frames, or why there are none."""
    return lambda path: outcome(decoder, path)


def outcome(decoder: Decoder, path: Path, start_s: float | None = None) -> Outcome:
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
    return found.reason if isinstance(found, DecodeError) else "frames"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files of every container."""
    folder = tmp_path_factory.mktemp("files")
    settings: dict[str, dict[str, Any]] = {
        "a.mp4": {"num_frames": 48, "options": GOP},
        "fragmented.mp4": {"num_frames": 48, "muxing": {"movflags": "frag_keyframe+empty_moov"}, "options": GOP},
        "a.mkv": {"num_frames": 48, "options": GOP},
        "a.webm": {"codec": "libvpx-vp9"},
        "a.ts": {"num_frames": 48, "options": GOP},
        "a.avi": {"codec": "mpeg4"},
        "a.flv": {"options": GOP},
        "a.gif": {"codec": "gif", "pix_fmt": "rgb8", "num_frames": 12, "rate": 10},
        "hevc.mp4": {"num_frames": 48, "codec": "libx265", "options": {"x265-params": "keyint=24"}},
    }
    return {name: write_video(folder / name, **values) for name, values in settings.items()}


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each box of an MP4, and of those within."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        yield kind, start, start + length
        if kind in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"dinf", b"moof", b"traf", b"mvex"):
            yield from boxes(data, start + 8, start + length)
        start += max(8, length)


@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4", "a.mkv", "a.webm", "a.avi", "a.flv", "a.gif", "a.ts"])
def test_cut_off_anywhere(files: dict[str, Path], look: Look, tmp_path: Path, name: str) -> None:
    whole, path = files[name].read_bytes(), tmp_path / name
    places = set(range(1, len(whole), len(whole) // 20))
    if name.endswith("mp4"):
        places |= {place for _, start, end in boxes(whole) for place in (start, end)}
    seen = Counter[str]()
    for place in sorted(places - {0, len(whole)}):
        path.write_bytes(whole[:place])
        found = look(path)
        seen[reason(found)] += 1
        if isinstance(found, DecodedClip):
            assert_true_frames(path, found)
    if name not in ("a.ts", "a.flv", "fragmented.mp4"):  # those can be cut between frames with nothing left to tell
        assert not seen["frames"]
        assert seen[RejectReason.TRUNCATED] > len(places) / 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "hevc.mp4", "a.webm", "a.ts", "a.avi", "a.gif", "fragmented.mp4"])
@pytest.mark.parametrize("how", ["bits", "zeros", "head"])
def test_damaged_anywhere(files: dict[str, Path], look: Look, tmp_path: Path, name: str, how: str) -> None:
    """Bits are flipped, runs are zeroed, headers get random bytes."""
    whole, path = files[name].read_bytes(), tmp_path / name
    rng = np.random.default_rng(0)
    seen = Counter[str]()
    for _ in range(12):
        data = np.frombuffer(whole, np.uint8).copy()
        if how == "bits":
            data[rng.integers(0, len(data), 5)] ^= (1 << rng.integers(0, 8, 5)).astype(np.uint8)
        elif how == "zeros":
            start = rng.integers(0, len(data))
            data[start : start + rng.integers(1, 2000)] = 0
        else:
            data[rng.integers(0, min(len(data), 1200), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(data.tobytes())
        seen[reason(look(path))] += 1
    if how == "bits" and name in ("a.mp4", "a.mkv"):  # VP9 and HEVC have too little redundancy to notice most flips
        assert seen["frames"] <= 6


BOXES = (
    b"mvhd",
    b"tkhd",
    b"mdhd",
    b"stts",
    b"ctts",
    b"stsz",
    b"stsc",
    b"stco",
    b"stss",
    b"elst",
    b"stsd",
    b"hdlr",
    b"dref",
)


@pytest.mark.parametrize("kind", BOXES)
def test_absurd_numbers_in_an_index(files: dict[str, Path], look: Look, tmp_path: Path, kind: bytes) -> None:
    whole, path = files["a.mp4"].read_bytes(), tmp_path / "a.mp4"
    start, end = next((start, end) for found, start, end in boxes(whole) if found == kind)
    words = range(start + 8, min(end, start + 100) - 3, 4)
    seen = Counter[str]()
    for place in list(words)[:14]:
        for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)[:: 1 if len(words) < 8 else 2]:
            data = bytearray(whole)
            struct.pack_into(">I", data, place, value)
            path.write_bytes(data)
            seen[reason(look(path))] += 1
    assert seen.total() > 5


@pytest.mark.parametrize("ticks", [0, 0xFFFFFFFF])
def test_a_clock_that_does_not_tick(files: dict[str, Path], look: Look, tmp_path: Path, ticks: int) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    struct.pack_into(">I", data, data.index(b"mdhd") + 16, ticks)
    (tmp_path / "a.mp4").write_bytes(data)
    error = look(tmp_path / "a.mp4")
    assert isinstance(error, DecodeError)
    assert (error.reason, error.detail) == ("decode_error", "one frame, by a clock that ticks every 1 s")


def test_an_index_of_four_thousand_million_frames(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"stsz") + 4
    struct.pack_into(">III", data, at, 0, 1, 0xFFFFFFFF)  # all frames of one byte, so that no table is needed
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert isinstance(look(path), DecodeError)


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
    def change(old: list[Any]) -> list[Any]:
        for number, packet in enumerate(old):
            packet.pts, packet.dts, packet.time_base = pts(number), dts(number), Fraction(1, 1000)
        return old

    return change


@pytest.mark.parametrize(
    ("name", "pts", "expected"),
    [
        ("negative.mkv", lambda number: 40 * number - 400, "frames"),
        ("twice.mkv", lambda number: 40 * (number // 2), "frames"),
        ("all_at_once.mkv", lambda number: 7, RejectReason.TOO_SHORT),
        ("a_day.mkv", lambda number: 40 * number + 86_400_000 * (number > 24), "frames"),
        ("two_years.mp4", lambda number: 2_000_000_000 * number, "frames"),
    ],
)
def test_odd_times(tmp_path: Path, look: Look, name: str, pts: Callable[[int], int], expected: str) -> None:
    source = write_video(tmp_path / "a.mp4", num_frames=48, options={"x264-params": "bframes=0:keyint=12"})
    dts = pts if name != "all_at_once.mkv" else (lambda number: number - 48)
    path = remux(source, tmp_path / name, retimed(pts, dts))
    assert reason(look(path)) == expected


def test_times_that_go_backwards(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"ctts") + 12
    for entry in range(4):
        struct.pack_into(">i", data, at + 8 * entry + 4, -100_000 * (entry + 1))
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    look(path)


@pytest.mark.parametrize("kept", [slice(1, None), slice(13, None), slice(20, 24), slice(0, 1)])
def test_packets_are_missing(tmp_path: Path, look: Look, kept: slice) -> None:
    source = write_video(tmp_path / "a.mp4", num_frames=25, options={"g": "24", "bf": "2"})
    path = remux(source, tmp_path / "b.mkv", lambda old: old[kept])
    found = look(path)
    if isinstance(found, DecodedClip):
        assert_true_frames(path, found)


def test_fragments_are_missing(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    data = files["fragmented.mp4"].read_bytes()
    top = [(kind, start, end) for kind, start, end in boxes(data) if kind in (b"moof", b"mdat")]
    path = tmp_path / "a.mp4"
    for (_, first, _), (_, _, last) in zip(top[::2], top[1::2], strict=True):
        path.write_bytes(data[:first] + data[last:])
        found = look(path)
        if isinstance(found, DecodedClip):
            assert_true_frames(path, found)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{folder}/good.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile good.ts\nfile http://127.0.0.1:{port}/x.ts\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="0" mimeType="video/mp4"><BaseURL>http://127.0.0.1:{port}/x.mp4</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n",
        "RTSPtext\nrtsp://127.0.0.1:{port}/x\n",
        "[Reference]\nRef1=http://127.0.0.1:{port}/x.asf\n",
    ],
)
def test_what_points_elsewhere_is_not_followed(tmp_path: Path, look: Look, text: str) -> None:
    write_video(tmp_path / "good.ts")
    path = tmp_path / "%03d.mp4"
    with socket.create_server(("127.0.0.1", 0)) as server:
        path.write_text(text.format(port=server.getsockname()[1], folder=tmp_path))
        found = look(path)
        assert reason(found) == RejectReason.NOT_A_VIDEO
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_data_in_another_file_is_not_read(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    """A QuickTime file may keep its media elsewhere: an entry of the data reference box names the place."""
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"dref") + 12
    assert data[at + 4 : at + 8] == b"url "
    struct.pack_into(">I", data, at + 8, 0)  # no longer: in this file
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    look(path)


def test_files_that_are_none(tmp_path: Path, look: Look) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "file").write_text("")
    for name, expected in {
        "pipe.mp4": RejectReason.NOT_A_FILE,
        "socket.mp4": RejectReason.NOT_A_FILE,
        "zero.mp4": RejectReason.NOT_A_FILE,
        "loop.mp4": RejectReason.FETCH_ERROR,
        "dangling.mp4": RejectReason.MISSING_FILE,
        "file/a.mp4": RejectReason.MISSING_FILE,
        "x" * 300: RejectReason.MISSING_FILE,
        "nul\0.mp4": RejectReason.MISSING_FILE,
    }.items():
        assert reason(look(tmp_path / name)) == expected, name


def test_odd_names_and_titles(tmp_path: Path, look: Look) -> None:
    good = write_video(tmp_path / "a.mp4")
    data = good.read_bytes()
    for name in (b"not \xff utf-8.mp4", b"http:--x.mp4", b"concat:a|b.mp4", b"-i.mp4", b"a\nb.mp4", b"%03d.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(data)
        assert reason(look(path)) == "frames", name
    at = data.index(b"Lavf")
    good.write_bytes(data[:at] + b"\xff\xfe\xe9\xe8" + data[at + 4 :])  # the name of the program, in no encoding
    assert reason(look(good)) == "frames"


def test_no_right_to_read(tmp_path: Path, look: Look) -> None:
    path = write_video(tmp_path / "a.mp4")
    path.chmod(0)
    assert reason(look(path)) == ("frames" if os.access(path, os.R_OK) else RejectReason.FETCH_ERROR)


def test_the_file_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=200, size=(320, 192), options=GOP)
    assert path.stat().st_size > 200_000  # more than is read ahead
    go_on = decoding.from_keys

    def shrunk(*arguments: Any) -> Iterator[Any]:
        os.truncate(path, 20_000)
        return go_on(*arguments)

    monkeypatch.setattr(decoding, "from_keys", shrunk)
    with pytest.raises(DecodeError):
        decode_clip(str(path), "x", CONFIG)


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


@pytest.mark.parametrize(
    ("name", "kinds", "expected"),
    [
        ("a.mp4", ("cover", "video"), "frames"),
        ("b.mkv", ("video", "small"), "frames"),
        ("c.mp4", ("sound", "video"), "frames"),
        ("d.mkv", ("text", "video"), "frames"),
        ("e.mkv", ("text",), RejectReason.NO_VIDEO_STREAM),
        ("f.mp4", ("cover", "sound"), RejectReason.NO_VIDEO_STREAM),
    ],
)
def test_tracks(tmp_path: Path, look: Look, name: str, kinds: Sequence[str], expected: str) -> None:
    found = look(write_tracks(tmp_path / name, *kinds))
    assert reason(found) == expected
    if isinstance(found, DecodedClip):
        assert (found.width, found.height) == (64, 48)
        assert found.duration_s == pytest.approx(1.0, abs=0.01)  # of the pictures, however long the sound


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a.h264", {}, RejectReason.NOT_A_VIDEO),
        ("a.ivf", {"codec": "libvpx"}, RejectReason.NOT_A_VIDEO),
        ("a.webp", {"codec": "libwebp_anim", "pix_fmt": "bgra"}, RejectReason.NOT_A_VIDEO),
        ("a.apng", {"codec": "apng", "pix_fmt": "rgb24"}, RejectReason.NOT_A_VIDEO),
        ("a.y4m", {"codec": "wrapped_avframe"}, RejectReason.NOT_A_VIDEO),
        ("one.gif", {"codec": "gif", "pix_fmt": "rgb8", "num_frames": 1}, RejectReason.TOO_SHORT),
        ("a.avif", {"codec": "libsvtav1", "options": {"preset": "12"}}, "frames"),
        ("a.webm", {"codec": "libsvtav1", "options": {"preset": "12"}}, "frames"),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "options": {"profile": "4444"}}, "frames"),
        ("b.mov", {"codec": "qtrle", "pix_fmt": "argb"}, "frames"),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "frames"),
        ("b.mkv", {"codec": "ffv1", "pix_fmt": "gray"}, "frames"),
        ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}, "frames"),
        ("a.wmv", {"codec": "wmv2"}, "frames"),
        ("a.flv", {"codec": "flv"}, "frames"),
        ("a.3gp", {"codec": "h263", "size": (176, 144)}, "frames"),
        ("a.mp4", {"pix_fmt": "yuv444p"}, "frames"),
        ("b.mp4", {"pix_fmt": "yuvj420p"}, "frames"),
        ("c.mp4", {"pix_fmt": "gray"}, "frames"),
        ("d.mp4", {"codec": "libx265", "pix_fmt": "yuv422p10le"}, "frames"),
        ("e.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}, "frames"),
        ("c.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, "frames"),
    ],
)
def test_kinds(tmp_path: Path, look: Look, name: str, settings: dict[str, Any], expected: str) -> None:
    path = write_video(tmp_path / name, **settings)
    found = look(path)
    assert reason(found) == expected
    if isinstance(found, DecodeError):
        assert found.detail
    elif name != "a.avif":  # whose first track is a single picture
        assert_true_frames(path, found)


def test_gifs_of_browsers(tmp_path: Path, look: Look) -> None:
    """Parts of pictures over the ones before, each shown as long as it says."""
    frames = [np.full((48, 64, 3), 40 * number, np.uint8) for number in range(6)]
    for number, frame in enumerate(frames):
        frame[:, 8 * number : 8 * number + 8] = 255
    path = tmp_path / "a.gif"
    write_pillow_gif(path, frames, [50, 50, 400, 50, 50, 400])
    found = look(path)
    assert isinstance(found, DecodedClip)
    assert found.duration_s == pytest.approx(1.0, abs=0.01)
    assert found.frame_index == [2, 2, 5, 5]  # on screen at 125, 375, 625 and 875 ms
    assert_true_frames(path, found)


def write_pillow_gif(path: Path, frames: list[np.ndarray], milliseconds: list[int]) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(frame).quantize() for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, transparency=0, disposal=2)


def gif(width: int, height: int) -> bytes:
    """Two pictures of one pixel on a screen of this size."""
    dot = b"!\xf9\x04\0\x0a\0\0\0" + b",\0\0\0\0\1\0\1\0\0" + b"\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + 2 * dot + b";"


def test_too_many_pixels(tmp_path: Path, look: Look, decoder: Decoder) -> None:
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif(60_000, 60_000))
    found = look(path)
    assert isinstance(found, DecodeError)
    assert (found.reason, found.detail) == (
        RejectReason.TOO_LARGE,
        "60000 x 60000 pixels; sampling.max_pixels = 33177600",
    )
    path = tmp_path / "liar.webm"  # the container says 64 x 48, the key frame 16383 x 16383
    data = write_video(path, codec="libvpx").read_bytes()
    path.write_bytes(data.replace(b"\x9d\x01\x2a" + struct.pack("<HH", 64, 48), b"\x9d\x01\x2a\xff\x3f\xff\x3f"))
    assert path.read_bytes() != data
    assert reason(look(path)) == RejectReason.TOO_LARGE
    path = write_growing(tmp_path / "growing.mkv")
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), "x", CONFIG.override({"max_pixels": 64 * 64}))
    assert caught.value.reason == RejectReason.TOO_LARGE
    assert reason(look(path)) == RejectReason.RESOLUTION_CHANGE


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


def test_memory_has_a_limit(tmp_path: Path) -> None:
    """A file of a few bytes whose pictures take 400 MB each, and again for every conversion."""
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(gif(10_000, 10_000))
    code = "import evilm.video.decoder_process as child; child._MAX_BYTES = 2**30; child.main()"
    with Decoder(CONFIG.override({"max_pixels": 10**9}), [sys.executable, "-c", code]) as decoder:
        assert reason(outcome(decoder, bomb)) == RejectReason.TOO_LARGE
        assert reason(outcome(decoder, write_video(tmp_path / "a.mp4"))) == "frames"


def test_pictures_of_4k(tmp_path: Path, look: Look) -> None:
    path = write_video(tmp_path / "4k.mp4", 3, (3840, 2160), options={"preset": "ultrafast"})
    assert reason(look(path)) == "frames"
    held = [
        child.memory_info().rss
        for child in psutil.Process().children()
        if "evilm.video.decoder_process" in child.cmdline()
    ]
    assert 0 < max(held) < 2**30


def test_too_many_packets(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "_MOST", 30)
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(files["a.ts"]), "x", CONFIG)
    assert caught.value.reason == RejectReason.TOO_LARGE


def test_encrypted(tmp_path: Path, look: Look) -> None:
    key = "00112233445566778899aabbccddeeff"
    secret = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    path = write_video(tmp_path / "a.mp4", size=(160, 96), muxing=secret)
    assert b"encv" in path.read_bytes()
    assert isinstance(look(path), DecodeError)


def test_tracks_that_turn_up_late(tmp_path: Path, look: Look) -> None:
    """Joined recordings of which one in the middle has sound, as broadcasters make them."""
    one = write_video(tmp_path / "one.ts", 60, (320, 240), options={"qp": "1", "preset": "ultrafast"}).read_bytes()
    two = write_tracks(tmp_path / "two.ts", "video", "sound").read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(one * (6_000_000 // len(one) + 1) + two + one)  # beyond what is looked at to find tracks
    with av.open(str(path)) as container:
        assert len(container.streams) == 1
    assert reason(look(path)) == "frames"


def test_empty_frames_in_between(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    """A frame of no bytes must not be taken for the end."""
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"stsz") + 16
    sizes = struct.unpack_from(">48I", data, at)
    smallest = sorted(range(2, 24), key=lambda number: sizes[number])[0]  # one that no other depends on
    struct.pack_into(">I", data, at + 4 * smallest, 0)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    found = look(path)
    if isinstance(found, DecodedClip):
        assert found.frame_index[-1] > 30


def test_unknown_codec_and_no_size(files: dict[str, Path], look: Look, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    data = files["a.mp4"].read_bytes()
    path.write_bytes(data.replace(b"avc1", b"what"))
    assert reason(look(path)) == RejectReason.DECODE_ERROR
    at = data.index(b"avc1") + 28  # width and height in the description of the codec
    bare = bytearray(data)
    struct.pack_into(">HH", bare, at, 0, 0)
    path.write_bytes(bare)
    assert reason(look(path)) == "frames"  # the pictures know their size


@pytest.mark.parametrize("matrix", [bytes(36), b"\x80\0\0\0" * 9, b"\x7f\xff\xff\xff" * 9, b"\xff" * 36])
def test_absurd_rotation(files: dict[str, Path], look: Look, tmp_path: Path, matrix: bytes) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"tkhd") + 44
    assert data[at : at + 4] == b"\0\1\0\0"
    data[at : at + 36] = matrix
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert reason(look(path)) == "frames"


def test_frames_beyond_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    """Cut between the boxes, so that no box says that anything is missing; only the index does."""
    data = files["a.mp4"].read_bytes()
    start = next(start for kind, start, _ in boxes(data) if kind == b"mdat")
    path = tmp_path / "a.mp4"
    path.write_bytes(data[:start])
    check_complete(str(path), MOV)
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), "x", CONFIG)
    assert caught.value.reason == RejectReason.TRUNCATED


def test_nothing_takes_long(files: dict[str, Path], decoder: Decoder, tmp_path: Path) -> None:
    """Nesting, repetition and length without content; each is over long before the deadline."""
    head = files["a.mp4"].read_bytes()[:32]
    deep = b""
    for _ in range(500):
        deep = struct.pack(">I4s", len(deep) + 8, b"moov") + deep
    for name, data in {
        "deep.mp4": head + deep,
        "many.mp4": head + struct.pack(">I4s", 8, b"free") * 200_000,
        "empty.mkv": bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282846d6b7600") + bytes(10**6),
        "sync.ts": (b"G" + b"\x1f\xff\x10" + b"\xff" * 184) * 20_000,
        "riff.avi": b"RIFF" + struct.pack("<I", 10**6) + b"AVI " + b"LIST\0\0\0\0" * 100_000,
        "dots.gif": gif(64, 48)[:-1] + b"!\xfe\1x\0" * 200_000 + b";",
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        began = time.monotonic()
        outcome(decoder, path)
        outcome(decoder, path, start_s=0.1)
        assert time.monotonic() - began < CONFIG.decode_timeout_s, name
