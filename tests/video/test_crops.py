"""Views: pixels replayed from numbers, mirrored only where the caption allows it, the same on every machine."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evilm.config.training import AugmentConfig, CropConfig
from evilm.errors import ConfigError
from evilm.video.crops import View, draw_view, names_side, nearest_cells, pick_frames, replay, resampler, whole

PX = 48


def frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, PX, PX, 3), dtype=np.uint8)


def test_replay_crops_resizes_and_mirrors() -> None:
    stored = frames()
    shown = replay(stored, View(5, 9, 20, 30, False))
    part = Image.fromarray(stored[1, 9:39, 5:25])
    assert np.array_equal(shown[1], np.asarray(part.resize((PX, PX), Image.Resampling.BICUBIC)))
    assert np.array_equal(replay(stored, View(5, 9, 20, 30, True)), shown[:, :, ::-1])
    assert np.array_equal(replay(stored, whole(PX)), stored)
    assert np.array_equal(replay(stored, whole(PX)._replace(flip=True)), stored[:, :, ::-1])


@pytest.mark.parametrize("view", [whole(PX), View(0, 0, PX, PX, True), View(5, 9, 20, 30, True)])
def test_replay_works_in_place(view: View) -> None:
    stored = frames()
    wanted = replay(stored.copy(), view)
    assert replay(stored, view, stored) is stored
    assert np.array_equal(stored, wanted)


def test_pixels_outside_the_crop_do_not_bleed_in() -> None:
    stored = np.zeros((1, PX, PX, 3), np.uint8)
    stored[:, 10:20, 10:30] = 200
    assert (replay(stored, View(10, 10, 20, 10, False)) == 200).all()


def test_view_beyond_the_frame_is_rejected() -> None:
    with pytest.raises(ConfigError, match="exceeds a frame of 48 x 48 pixels"):
        replay(frames(), View(20, 0, 30, 30, False))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 300), st.floats(0.05, 1), st.floats(1, 3), st.floats(0, 1), st.integers(0, 2**32), st.booleans()
)  # fmt: skip
def test_drawn_views_lie_within_the_frame(
    px: int, min_scale: float, max_ratio: float, flip: float, seed: int, sided: bool
) -> None:
    crop = CropConfig(min_scale=min_scale, max_ratio=max_ratio, flip_ratio=flip)
    caption = "it moves LEFT." if sided else "it moves"
    view = draw_view(px, crop, caption, np.random.default_rng(seed))
    assert 0 <= view.x <= view.x + view.width <= px
    assert 0 <= view.y <= view.y + view.height <= px
    slack = (view.width + 1) * (view.height + 1)  # sides are rounded to whole pixels
    assert slack >= min_scale * px**2
    assert (view.width - 1) / (view.height + 1) <= max_ratio
    assert (view.height - 1) / (view.width + 1) <= max_ratio
    other = draw_view(px, crop, "it moves", np.random.default_rng(seed))
    assert view == other._replace(flip=other.flip and not sided), "the caption decides on the flip alone"


def test_flip_ratio_is_met() -> None:
    def share(ratio: float) -> float:
        crop = CropConfig(flip_ratio=ratio)
        return float(np.mean([draw_view(PX, crop, "", np.random.default_rng(k)).flip for k in range(400)]))

    assert (share(0), share(1)) == (0, 1)
    assert 0.2 < share(0.3) < 0.4


@pytest.mark.parametrize(
    ("caption", "sided"),
    [
        ("A man turns left", True), ("on the RIGHT-hand side", True), ("spins counter-clockwise", True),
        ("bright lights", False), ("leftovers on a plate", False), ("", False), ("Left, then up", True),
    ],
)  # fmt: skip
def test_names_side_finds_left_and_right(caption: str, sided: bool) -> None:
    assert names_side(caption, CropConfig().flip_words) is sided
    assert not names_side(caption, ())


def test_resampler_is_the_same_in_another_process() -> None:
    code = "from evilm.video.crops import resampler; print(resampler())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == resampler() == "pillow-bicubic-9851d215"


def test_nearest_cells_follow_crop_and_flip() -> None:
    everywhere = np.arange(16)
    assert np.array_equal(nearest_cells(whole(PX), PX, 4), everywhere)
    mirrored = nearest_cells(View(0, 0, PX, PX, True), PX, 4).reshape(4, 4)
    assert np.array_equal(mirrored, everywhere.reshape(4, 4)[:, ::-1])
    corner = nearest_cells(View(24, 0, 24, 24, False), PX, 4).reshape(4, 4)  # the upper right quarter
    assert np.array_equal(corner, np.kron([[2, 3], [6, 7]], np.ones((2, 2), int)))


def test_pick_frames_takes_one_of_each_group() -> None:
    assert pick_frames(4, 4).tolist() == [0, 1, 2, 3]
    assert pick_frames(8, 4).tolist() == [0, 2, 4, 6]
    assert pick_frames(12, 4).tolist() == [1, 4, 7, 10]
    drawn = np.array([pick_frames(12, 4, np.random.default_rng(seed)) for seed in range(100)])
    assert np.array_equal(drawn // 3, np.tile(np.arange(4), (100, 1)))
    assert all(set(column) == {0, 1, 2} for column in (drawn % 3).T)


def test_crops_need_approximate_codes() -> None:
    with pytest.raises(ValueError, match=r"crop is only for augment\.approximate"):
        AugmentConfig(crop=CropConfig(min_scale=0.3))
    assert AugmentConfig(approximate=True, crop=CropConfig(min_scale=0.3)).crop.min_scale == 0.3
