"""Videos broken in every way that a web scrape, or somebody who means harm, may break them: frames, or a reason.

Each goes through a real decoding process. None may crash or hang it, so any `decoder_crash` or `decode_timeout` fails.
"""

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evilm.errors import DecodeError
from evilm.video import decode as decoding
from evilm.video.container import MOV, check_complete
from evilm.video.decode import DecodedClip, decode_clip
from evilm.video.reasons import RejectReason
from helpers.broken_videos import CONFIG, GOP, Decode, boxes, reason, remux, retimed
from helpers.video_files import assert_true_frames, write_video


@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4", "a.mkv", "a.webm", "a.avi", "a.flv", "a.gif", "a.ts"])
def test_file_cut_anywhere_is_rejected_or_right(
    files: dict[str, Path], decode: Decode, tmp_path: Path, name: str
) -> None:
    whole, path = files[name].read_bytes(), tmp_path / name
    places = set(range(1, len(whole), len(whole) // 20))
    if name.endswith("mp4"):
        places |= {place for _, start, end in boxes(whole) for place in (start, end)}
    seen = Counter[str]()
    for place in sorted(places - {0, len(whole)}):
        path.write_bytes(whole[:place])
        found = decode(path)
        seen[reason(found)] += 1
        if isinstance(found, DecodedClip):
            assert_true_frames(path, found)
    if name not in ("a.ts", "a.flv", "fragmented.mp4"):  # those can be cut between frames with nothing left to tell
        assert not seen["frames"]
        assert seen[RejectReason.TRUNCATED] > len(places) / 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "hevc.mp4", "a.webm", "a.ts", "a.avi", "a.gif", "fragmented.mp4"])
@pytest.mark.parametrize("how", ["bits", "zeros", "head"])
def test_random_damage_never_crashes_the_decoder(
    files: dict[str, Path], decode: Decode, tmp_path: Path, name: str, how: str
) -> None:
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
        seen[reason(decode(path))] += 1
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
def test_absurd_mp4_index_numbers_never_crash_the_decoder(
    files: dict[str, Path], decode: Decode, tmp_path: Path, kind: bytes
) -> None:
    whole, path = files["a.mp4"].read_bytes(), tmp_path / "a.mp4"
    start, end = next((start, end) for found, start, end in boxes(whole) if found == kind)
    words = range(start + 8, min(end, start + 100) - 3, 4)
    seen = Counter[str]()
    for place in list(words)[:14]:
        for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)[:: 1 if len(words) < 8 else 2]:
            data = bytearray(whole)
            struct.pack_into(">I", data, place, value)
            path.write_bytes(data)
            seen[reason(decode(path))] += 1
    assert seen.total() > 5


@pytest.mark.parametrize("ticks", [0, 0xFFFFFFFF])
def test_track_without_a_time_base_is_rejected(
    files: dict[str, Path], decode: Decode, tmp_path: Path, ticks: int
) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    struct.pack_into(">I", data, data.index(b"mdhd") + 16, ticks)
    (tmp_path / "a.mp4").write_bytes(data)
    error = decode(tmp_path / "a.mp4")
    assert isinstance(error, DecodeError)
    assert (error.reason, error.detail) == ("decode_error", "one frame at a time base of 1 s")


def test_index_of_four_billion_frames_is_rejected(files: dict[str, Path], decode: Decode, tmp_path: Path) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"stsz") + 4
    struct.pack_into(">III", data, at, 0, 1, 0xFFFFFFFF)  # all frames of one byte, so that no table is needed
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert isinstance(decode(path), DecodeError)


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
def test_negative_repeated_and_distant_times_are_handled(
    tmp_path: Path, decode: Decode, name: str, pts: Callable[[int], int], expected: str
) -> None:
    source = write_video(tmp_path / "a.mp4", num_frames=48, options={"x264-params": "bframes=0:keyint=12"})
    dts = pts if name != "all_at_once.mkv" else (lambda number: number - 48)
    path = remux(source, tmp_path / name, retimed(pts, dts))
    assert reason(decode(path)) == expected


def test_backward_times_do_not_crash_the_decoder(files: dict[str, Path], decode: Decode, tmp_path: Path) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"ctts") + 12
    for entry in range(4):
        struct.pack_into(">i", data, at + 8 * entry + 4, -100_000 * (entry + 1))
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    decode(path)


@pytest.mark.parametrize("kept", [slice(1, None), slice(13, None), slice(20, 24), slice(0, 1)])
def test_missing_packets_never_give_wrong_frames(tmp_path: Path, decode: Decode, kept: slice) -> None:
    source = write_video(tmp_path / "a.mp4", num_frames=25, options={"g": "24", "bf": "2"})
    path = remux(source, tmp_path / "b.mkv", lambda old: old[kept])
    found = decode(path)
    if isinstance(found, DecodedClip):
        assert_true_frames(path, found)


def test_missing_fragments_never_give_wrong_frames(files: dict[str, Path], decode: Decode, tmp_path: Path) -> None:
    data = files["fragmented.mp4"].read_bytes()
    top = [(kind, start, end) for kind, start, end in boxes(data) if kind in (b"moof", b"mdat")]
    path = tmp_path / "a.mp4"
    for (_, first, _), (_, _, last) in zip(top[::2], top[1::2], strict=True):
        path.write_bytes(data[:first] + data[last:])
        found = decode(path)
        if isinstance(found, DecodedClip):
            assert_true_frames(path, found)


def test_file_that_shrinks_while_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=200, size=(320, 192), options=GOP)
    assert path.stat().st_size > 200_000  # more than is read ahead
    go_on = decoding.from_keys

    def shrunk(*arguments: Any) -> Iterator[Any]:
        os.truncate(path, 20_000)
        return go_on(*arguments)

    monkeypatch.setattr(decoding, "from_keys", shrunk)
    with pytest.raises(DecodeError):
        decode_clip(str(path), "x", CONFIG)


def test_empty_frame_is_not_taken_for_the_end(files: dict[str, Path], decode: Decode, tmp_path: Path) -> None:
    """A frame of no bytes must not be taken for the end."""
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"stsz") + 16
    sizes = struct.unpack_from(">48I", data, at)
    smallest = sorted(range(2, 24), key=lambda number: sizes[number])[0]  # one that no other depends on
    struct.pack_into(">I", data, at + 4 * smallest, 0)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    found = decode(path)
    if isinstance(found, DecodedClip):
        assert found.frame_index[-1] > 30


def test_unknown_codec_is_rejected_and_missing_size_accepted(
    files: dict[str, Path], decode: Decode, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    data = files["a.mp4"].read_bytes()
    path.write_bytes(data.replace(b"avc1", b"what"))
    assert reason(decode(path)) == RejectReason.DECODE_ERROR
    at = data.index(b"avc1") + 28  # width and height in the description of the codec
    bare = bytearray(data)
    struct.pack_into(">HH", bare, at, 0, 0)
    path.write_bytes(bare)
    assert reason(decode(path)) == "frames"  # the pictures know their size


@pytest.mark.parametrize("matrix", [bytes(36), b"\x80\0\0\0" * 9, b"\x7f\xff\xff\xff" * 9, b"\xff" * 36])
def test_absurd_rotation_matrix_is_ignored(
    files: dict[str, Path], decode: Decode, tmp_path: Path, matrix: bytes
) -> None:
    data = bytearray(files["a.mp4"].read_bytes())
    at = data.index(b"tkhd") + 44
    assert data[at : at + 4] == b"\0\1\0\0"
    data[at : at + 36] = matrix
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert reason(decode(path)) == "frames"


def test_frames_beyond_the_end_are_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    """Cut between the boxes, so that no box says that anything is missing; only the index does."""
    data = files["a.mp4"].read_bytes()
    start = next(start for kind, start, _ in boxes(data) if kind == b"mdat")
    path = tmp_path / "a.mp4"
    path.write_bytes(data[:start])
    check_complete(str(path), MOV)
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), "x", CONFIG)
    assert caught.value.reason == RejectReason.TRUNCATED
