"""Decoded frames against a full sequential decode: the right picture at the right time, or a reason."""

import csv
import io
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video.container import opened
from evilm.video.decode import DecodedClip, decode_clip
from evilm.video.keyframes import _chain
from evilm.video.probe import probe, probe_whole
from evilm.video.reasons import ClipFlag, RejectReason
from helpers.video_files import KINDS, assert_from_spans, assert_true_frames, sequential, write_video

CONFIG = FramesConfig()
LONG_GOP = {"x264-params": "keyint=250:bframes=3:scenecut=0"}


def outcome(path: Path) -> DecodedClip | str:
    """The clip, or the reason why it is none."""
    try:
        return decode_clip(str(path), path.stem, CONFIG)
    except DecodeError as error:
        return error.reason


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_a_sequential_decode(kind: Callable[[str], Path], name: str) -> None:
    path = kind(name)
    for seed, (num_frames, stored, sampling) in enumerate(
        ((1, 0, "centre"), (4, 0, "centre"), (4, 8, "centre"), (4, 0, "random"), (1, 11, "random"), (64, 0, "centre"))
    ):
        values = {"num_frames": num_frames, "frames_stored": stored, "seed": seed, "sampling": sampling}
        clip = decode_clip(str(path), "x", CONFIG.override(values))
        assert len(clip.frames) == (stored or num_frames)
        assert clip.frame_pts_us == sorted(clip.frame_pts_us)
        assert_true_frames(path, clip)
        if sampling == "centre":
            assert_from_spans(path, clip)
        assert clip == decode_clip(str(path), "x", CONFIG.override(values | {"skip_nonref": False}))


def test_non_reference_frames_are_skipped(kind: Callable[[str], Path]) -> None:
    with opened(str(kind("long.mp4"))) as video:
        found = probe_whole(video)
        assert found.can_skip
        gave = []
        left = deque([found.pts[50]])
        for frame in _chain(video, None, left, skip=True):
            gave.append(frame.pts)
        assert gave == [found.pts[50]]
    for name in ("interlaced.mp4", "layered.mp4", "vp9.webm", "open.ts"):  # fields, layers, unmarked, times not trusted
        assert not probe(str(kind(name))).can_skip


def test_intra_refresh_key_frames_decode_wrongly(kind: Callable[[str], Path]) -> None:
    """Intra refresh: the container calls predicted frames key frames; decoding from them gives wrong pictures."""
    path = kind("refreshed.mkv")
    assert len(probe(str(path)).keys) > 1
    with opened(str(path)) as video:
        video.container.seek(probe(str(path)).keys[1], stream=video.stream)
        frame = next(frame for frame in video.container.decode(video.stream))
        wrong = frame.to_ndarray(format="rgb24")
    truth = dict(sequential(path))
    assert (wrong != truth[int(frame.time * 1_000_000)]).any()


def test_variable_rate_samples_by_time(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 3, 30, 31, 33, 60, 61, 62, 100, 103]
    path = write_video(tmp_path / "a.mp4", num_frames=12, pts=ticks)
    clip = decode_clip(str(path), "x", CONFIG)
    # 103 + 1 ticks of 1/24 s: on screen at 13, 39, 65, 91 are the frames of ticks 3, 33, 62, 62
    assert [round(time * 24 / 1_000_000) for time in clip.frame_pts_us] in ([3, 33, 62, 62], [3, 33, 62, 100])
    assert clip.flags & ClipFlag.VFR


@pytest.mark.parametrize(("name", "shown_s"), [("edited.mp4", 1.2), ("edited_b.mp4", 1.3)])
def test_edit_list_is_honoured(kind: Callable[[str], Path], name: str, shown_s: float) -> None:
    clip = decode_clip(str(kind(name)), "x", CONFIG)
    assert len(sequential(kind(name))) < KINDS[name]["num_frames"]
    assert clip.flags & ClipFlag.EDIT_LIST
    assert clip.duration_s == pytest.approx(shown_s, abs=0.1)


@pytest.mark.parametrize(("rotation", "turn", "corner"), [(-90, 90, (0, 1)), (180, 180, (1, 1)), (90, 270, (1, 0))])
def test_frames_are_rotated_as_the_container_says(
    tmp_path: Path, rotation: int, turn: int, corner: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", size=(96, 64), rotation=rotation)
    clip = decode_clip(str(path), "x", CONFIG.override({"resize": "squash"}))
    assert clip.rotation == turn
    assert (clip.width, clip.height) == ((64, 96) if turn % 180 else (96, 64))
    assert clip.flags & ClipFlag.ROTATED
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
    assert clip.flags & ClipFlag.REPEATED


def test_too_short_or_small_clips_are_rejected(tmp_path: Path) -> None:
    for settings, reason in (({"num_frames": 1}, RejectReason.TOO_SHORT), ({"size": (64, 16)}, RejectReason.TOO_SMALL)):
        with pytest.raises(DecodeError) as caught:
            decode_clip(str(write_video(tmp_path / "a.mp4", **settings)), "x", CONFIG)
        assert caught.value.reason == reason


def test_bit_errors_are_noticed(tmp_path: Path) -> None:
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
            assert clip in (RejectReason.DECODE_CORRUPT, RejectReason.DECODE_ERROR)
            refused += 1
    assert refused >= 15


def test_decord_gives_the_same_bytes_on_plain_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=48, options=LONG_GOP)
    one, other = (decode_clip(str(path), "x", CONFIG, backend) for backend in ("pyav", "decord"))
    assert other.decoder == "decord"
    assert one.frames == other.frames
    assert one.frame_pts_us == other.frame_pts_us


@pytest.mark.parametrize("name", ["open.mkv", "edited_b.mp4", "left.mp4", "refreshed.mkv", "variable.mp4"])
def test_pyav_decodes_files_that_decord_gets_wrong(kind: Callable[[str], Path], name: str) -> None:
    """edited_b.mp4: a long GOP whose tail an edit list hides, on which decord may deadlock."""
    path = kind(name)
    clip = decode_clip(str(path), "x", CONFIG, "decord")
    assert clip.decoder == ("decord" if name == "variable.mp4" else "pyav")
    assert_true_frames(path, clip)


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_resize_modes_crop_squash_and_pad(tmp_path: Path, mode: str) -> None:
    path = write_video(tmp_path / "a.mp4", size=(96, 48))
    clip = decode_clip(str(path), "x", CONFIG.override({"resize": mode, "frame_px": 128}))
    pixels = np.asarray(Image.open(io.BytesIO(clip.frames[0])))
    assert pixels.shape == (128, 128, 3)
    assert clip.crop_box == ([24, 0, 48, 48] if mode == "crop" else [0, 0, 96, 48])
    assert (pixels[:24].max() < 16) == (mode == "pad")


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.long)])
def test_real_clips_are_upright_in_order_and_on_time(shared_data: Path, every: int) -> None:
    paths = sorted((shared_data / "clips").glob("*/*"))
    assert len(paths) == 92
    provenance = {row["videoid"]: row for row in table(shared_data / "clips_provenance.csv")}
    for path in paths[::every]:
        clip, known = decode_clip(str(path), path.stem, CONFIG), provenance[path.stem]
        assert clip.frame_pts_us == sorted(clip.frame_pts_us)
        assert len(set(clip.frame_index)) == 4
        assert (clip.width, clip.height) == (int(known["width"]), int(known["height"]))
        assert clip.duration_s == pytest.approx(float(known["seconds"]), abs=0.11)
        assert clip.codec == known["codec"]
        assert_true_frames(path, clip)
        assert clip == decode_clip(str(path), path.stem, CONFIG.override({"skip_nonref": False}))
        part = decode_clip(str(path), path.stem, CONFIG.override({"frames_stored": 8}), None, 0.3 * clip.duration_s, 99)
        assert_true_frames(path, part, start_s=round(0.3 * clip.duration_s, 6))


def test_bad_files_of_a_real_set_decode_or_get_their_reason(shared_data: Path) -> None:
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


@pytest.mark.parametrize(("transfer", "is_hdr"), [(1, False), (16, True), (18, True)])
def test_hdr_is_flagged(tmp_path: Path, transfer: int, is_hdr: bool) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=12)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.color_trc = "yuv420p", transfer
        for number in range(6):
            pixels = np.full((64, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert ("hdr" in ClipFlag.names(decode_clip(str(path), "x", CONFIG).flags)) == is_hdr
