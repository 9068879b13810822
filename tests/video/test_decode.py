"""Decoded frames against a full sequential decode: the right picture at the right time, or a reason."""

import csv
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import assert_from_spans, assert_true_frames, sequential, write_video

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video.decode import DecodedClip, decode_clip
from evilm.video.reasons import Flag, Reason

CONFIG = FramesConfig()
OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=2:scenecut=0"}
LONG_GOP = {"x264-params": "keyint=250:bframes=3:scenecut=0"}
VARIABLE = [0, 1, 2, 3, 30, 31, 33, 60, 61, 62, 100, 103]


def outcome(path: Path) -> DecodedClip | str:
    """The clip, or the reason why it is none."""
    try:
        return decode_clip(str(path), path.stem, CONFIG)
    except DecodeError as error:
        return error.reason


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain.mp4", {}),
        ("plain.mkv", {"options": {"g": "6"}}),
        ("long.mp4", {"num_frames": 60, "options": LONG_GOP}),
        ("open.mp4", {"num_frames": 60, "options": OPEN_GOP}),
        ("open.mkv", {"num_frames": 60, "options": OPEN_GOP}),
        ("open.ts", {"num_frames": 60, "options": OPEN_GOP}),
        ("variable.mp4", {"num_frames": 12, "pts": VARIABLE, "options": {"g": "5"}}),
        ("offset.mkv", {"num_frames": 12, "pts": list(range(48, 60))}),
        ("packed.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "6"}}),
        ("odd.webm", {"codec": "libvpx", "num_frames": 12}),
        ("upright.mp4", {"rotation": 90}),
        ("over.mp4", {"rotation": 180}),
        ("left.mp4", {"rotation": -90}),
    ],
)
@pytest.mark.parametrize("num_frames", [1, 4, 11])
def test_exact_frames(tmp_path: Path, name: str, settings: dict, num_frames: int) -> None:
    path = write_video(tmp_path / name, **settings)
    for seed, sampling in enumerate(("centre", "random", "random")):
        config = CONFIG.override({"num_frames": num_frames, "seed": seed, "sampling": sampling})
        clip = decode_clip(str(path), "x", config)
        assert len(clip.frames) == num_frames
        assert clip.frame_pts_us == sorted(clip.frame_pts_us)
        assert_true_frames(path, clip)
        if sampling == "centre":
            assert_from_spans(path, clip)


def test_variable_rate_samples_by_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=12, pts=VARIABLE)
    clip = decode_clip(str(path), "x", CONFIG)
    # 103 + 1 ticks of 1/24 s: on screen at 13, 39, 65, 91 are the frames of ticks 3, 33, 62, 62
    assert [round(time * 24 / 1_000_000) for time in clip.frame_pts_us] in ([3, 33, 62, 62], [3, 33, 62, 100])
    assert clip.flags & Flag.VFR


def test_edit_list_is_honoured(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=48, options={"x264-params": "keyint=250:bframes=0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after version, flags and the number of entries
    duration, media_time = struct.unpack(">Ii", data[at : at + 8])
    tick = media_time + 12288 // 2  # half a second of the track's 12,288 ticks a second, hidden at the head
    struct.pack_into(">Ii", data, at, duration // 2, tick)
    path.write_bytes(data)
    clip = decode_clip(str(path), "x", CONFIG)
    truth = sequential(path)
    assert len(truth) < 48
    assert clip.flags & Flag.EDIT_LIST
    assert clip.duration_s == pytest.approx(len(truth) / 24, abs=0.05)
    assert_true_frames(path, clip)


@pytest.mark.parametrize(("rotation", "turn", "corner"), [(-90, 90, (0, 1)), (180, 180, (1, 1)), (90, 270, (1, 0))])
def test_turned_as_the_container_says(tmp_path: Path, rotation: int, turn: int, corner: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", size=(96, 64), rotation=rotation)
    clip = decode_clip(str(path), "x", CONFIG.override({"resize": "squash"}))
    assert clip.rotation == turn
    assert (clip.width, clip.height) == ((64, 96) if turn % 180 else (96, 64))
    assert clip.flags & Flag.ROTATED
    pixels = np.asarray(Image.open(io.BytesIO(clip.frames[0]))).astype(int)
    y, x = (20 if place == 0 else 235 for place in corner)
    red, green, blue = pixels[y, x]  # the picture's red corner, wherever it is when upright
    assert red > 180
    assert green < 90
    assert blue < 90


def test_few_frames_are_repeated(tmp_path: Path) -> None:
    clip = decode_clip(str(write_video(tmp_path / "a.mp4", num_frames=2)), "x", CONFIG)
    assert clip.frame_index == [0, 0, 1, 1]
    assert clip.frames[0] == clip.frames[1]
    assert clip.flags & Flag.REPEATED


def test_too_short_and_too_small(tmp_path: Path) -> None:
    for settings, reason in (({"num_frames": 1}, Reason.TOO_SHORT), ({"size": (64, 16)}, Reason.TOO_SMALL)):
        with pytest.raises(DecodeError) as caught:
            decode_clip(str(write_video(tmp_path / "a.mp4", **settings)), "x", CONFIG)
        assert caught.value.reason == reason


def test_damaged_bits_never_give_a_wrong_picture_unseen(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", num_frames=48, size=(160, 96), options=LONG_GOP)
    good = decode_clip(str(whole), "x", CONFIG)
    rng, refused = np.random.default_rng(0), 0
    for trial in range(20):
        data = np.frombuffer(whole.read_bytes(), np.uint8).copy()
        start = bytes(data).index(b"mdat") + 800  # behind the encoder's note and the first slice header
        places = rng.integers(start, len(data), 10)
        data[places] ^= (1 << rng.integers(0, 8, 10)).astype(np.uint8)
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data.tobytes())
        clip = outcome(path)
        if isinstance(clip, DecodedClip):
            assert len(clip.frames) == len(good.frames)
        else:
            assert clip in (Reason.DECODE_CORRUPT, Reason.DECODE_ERROR)
            refused += 1
    assert refused >= 15


def test_decord_gives_the_same_bytes_on_plain_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=48, options=LONG_GOP)
    one, other = (decode_clip(str(path), "x", CONFIG, backend) for backend in ("pyav", "decord"))
    assert other.decoder == "decord"
    assert one.frames == other.frames
    assert one.frame_pts_us == other.frame_pts_us


def test_decord_is_not_asked_where_it_is_wrong(tmp_path: Path) -> None:
    for name, settings in (("a.mkv", {"options": OPEN_GOP}), ("b.mp4", {"rotation": 90})):
        path = write_video(tmp_path / name, num_frames=40, **settings)
        clip = decode_clip(str(path), "x", CONFIG, "decord")
        assert clip.decoder == "pyav"
        assert_true_frames(path, clip)


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_resize_modes(tmp_path: Path, mode: str) -> None:
    path = write_video(tmp_path / "a.mp4", size=(96, 48))
    clip = decode_clip(str(path), "x", CONFIG.override({"resize": mode, "frame_px": 128}))
    pixels = np.asarray(Image.open(io.BytesIO(clip.frames[0])))
    assert pixels.shape == (128, 128, 3)
    assert clip.crop_box == ([24, 0, 48, 48] if mode == "crop" else [0, 0, 96, 48])
    assert (pixels[:24].max() < 16) == (mode == "pad")


@pytest.mark.slow
def test_real_clips_are_upright_in_order_and_on_time(shared_data: Path) -> None:
    paths = sorted((shared_data / "clips").glob("*/*"))
    assert len(paths) == 92
    provenance = {row["videoid"]: row for row in table(shared_data / "clips_provenance.csv")}
    for path in paths:
        clip, known = decode_clip(str(path), path.stem, CONFIG), provenance[path.stem]
        assert clip.frame_pts_us == sorted(clip.frame_pts_us)
        assert len(set(clip.frame_index)) == 4
        assert (clip.width, clip.height) == (int(known["width"]), int(known["height"]))
        assert clip.duration_s == pytest.approx(float(known["seconds"]), abs=0.11)
        assert clip.codec == known["codec"]
        assert_true_frames(path, clip)


def test_bad_files_as_expected(shared_data: Path) -> None:
    cases = [row for row in table(shared_data / "bad" / "EXPECT.csv") if row["csv"] == "files.csv"]
    assert len(cases) == 30
    for case in cases:
        path = shared_data / "bad" / case["file"]
        clip = outcome(path)
        if isinstance(clip, DecodedClip):
            assert case["expect"] == "accept", case["case"]
            assert_true_frames(path, clip)
        else:
            assert (case["expect"], case["reason_class"]) == ("quarantine", clip), case["case"]
