"""Files that point elsewhere, lie about their size or are no files: no crash, no hang, no request."""

import os
import socket
import struct
import sys
import time
from pathlib import Path

import psutil
import pytest

from evilm.errors import DecodeError
from evilm.video import packets
from evilm.video.decode import decode_clip
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from helpers.broken_videos import (
    CONFIG,
    Decode,
    gif,
    outcome,
    reason,
    write_growing,
)
from helpers.video_files import write_video


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
def test_playlists_and_references_are_not_followed(tmp_path: Path, decode: Decode, text: str) -> None:
    write_video(tmp_path / "good.ts")
    path = tmp_path / "%03d.mp4"
    with socket.create_server(("127.0.0.1", 0)) as server:
        path.write_text(text.format(port=server.getsockname()[1], folder=tmp_path))
        found = decode(path)
        assert reason(found) == RejectReason.NOT_A_VIDEO
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_external_media_reference_is_not_read(files: dict[str, Path], decode: Decode, tmp_path: Path) -> None:
    """A QuickTime file may keep its media elsewhere: an entry of the data reference box names the place."""
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"dref") + 12
    assert data[at + 4 : at + 8] == b"url "
    struct.pack_into(">I", data, at + 8, 0)  # no longer: in this file
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    decode(path)


def test_pipes_sockets_and_dangling_links_are_rejected(tmp_path: Path, decode: Decode) -> None:
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
        assert reason(decode(tmp_path / name)) == expected, name


def test_odd_file_names_and_titles_decode(tmp_path: Path, decode: Decode) -> None:
    good = write_video(tmp_path / "a.mp4")
    data = good.read_bytes()
    for name in (b"not \xff utf-8.mp4", b"http:--x.mp4", b"concat:a|b.mp4", b"-i.mp4", b"a\nb.mp4", b"%03d.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(data)
        assert reason(decode(path)) == "frames", name
    at = data.index(b"Lavf")
    good.write_bytes(data[:at] + b"\xff\xfe\xe9\xe8" + data[at + 4 :])  # the name of the program, in no encoding
    assert reason(decode(good)) == "frames"


def test_unreadable_file_is_a_fetch_error(tmp_path: Path, decode: Decode) -> None:
    path = write_video(tmp_path / "a.mp4")
    path.chmod(0)
    assert reason(decode(path)) == ("frames" if os.access(path, os.R_OK) else RejectReason.FETCH_ERROR)


def test_too_many_pixels_are_rejected(tmp_path: Path, decode: Decode, decoder: Decoder) -> None:
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif(60_000, 60_000))
    found = decode(path)
    assert isinstance(found, DecodeError)
    assert (found.reason, found.detail) == (
        RejectReason.TOO_LARGE,
        "60000 x 60000 pixels; sampling.max_pixels = 33177600",
    )
    path = tmp_path / "liar.webm"  # the container says 64 x 48, the key frame 16383 x 16383
    data = write_video(path, codec="libvpx").read_bytes()
    path.write_bytes(data.replace(b"\x9d\x01\x2a" + struct.pack("<HH", 64, 48), b"\x9d\x01\x2a\xff\x3f\xff\x3f"))
    assert path.read_bytes() != data
    assert reason(decode(path)) == RejectReason.TOO_LARGE
    path = write_growing(tmp_path / "growing.mkv")
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), "x", CONFIG.override({"max_pixels": 64 * 64}))
    assert caught.value.reason == RejectReason.TOO_LARGE
    assert reason(decode(path)) == RejectReason.RESOLUTION_CHANGE


def test_memory_of_the_decoder_is_limited(tmp_path: Path) -> None:
    """A file of a few bytes whose pictures take 400 MB each, and again for every conversion."""
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(gif(10_000, 10_000))
    code = "import evilm.video.decoder_process as child; child._MAX_BYTES = 2**30; child.main()"
    with Decoder(CONFIG.override({"max_pixels": 10**9}), [sys.executable, "-c", code]) as decoder:
        assert reason(outcome(decoder, bomb)) == RejectReason.TOO_LARGE
        assert reason(outcome(decoder, write_video(tmp_path / "a.mp4"))) == "frames"


def test_4k_decodes_within_a_gibibyte(tmp_path: Path, decode: Decode) -> None:
    path = write_video(tmp_path / "4k.mp4", 3, (3840, 2160), options={"preset": "ultrafast"})
    assert reason(decode(path)) == "frames"
    held = [
        child.memory_info().rss
        for child in psutil.Process().children()
        if "evilm.video.decoder_process" in child.cmdline()
    ]
    assert 0 < max(held) < 2**30


def test_too_many_packets_are_rejected(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "_MOST", 30)
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(files["a.ts"]), "x", CONFIG)
    assert caught.value.reason == RejectReason.TOO_LARGE


def test_encrypted_file_is_rejected(tmp_path: Path, decode: Decode) -> None:
    key = "00112233445566778899aabbccddeeff"
    secret = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    path = write_video(tmp_path / "a.mp4", size=(160, 96), muxing=secret)
    assert b"encv" in path.read_bytes()
    assert isinstance(decode(path), DecodeError)


def test_nested_and_repeated_boxes_end_before_the_deadline(
    files: dict[str, Path], decoder: Decoder, tmp_path: Path
) -> None:
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
