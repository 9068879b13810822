"""What a caller may pass to the public model, and what the errors say about the rest."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from evilm.errors import ConfigError, DecodeError
from evilm.model.inference import EViLM
from helpers.public_models import CAPTIONS, noise, random_evilm

FRAMES = noise()
NAN = float("nan")


def _lazy_image() -> Image.Image:
    """An image that is read when its pixels are asked for, from half of a file."""
    whole = simplejpeg.encode_jpeg(FRAMES[0])
    return Image.open(io.BytesIO(whole[: len(whole) // 2]))


def _closed_image() -> Image.Image:
    image = Image.new("RGB", (64, 64))
    image.close()
    return image


@pytest.fixture(scope="module")
def model() -> EViLM:
    return random_evilm()


@pytest.mark.parametrize(
    "video",
    [
        [Image.fromarray(frame) for frame in FRAMES],
        list(FRAMES),
        tuple(torch.from_numpy(frame) for frame in FRAMES),
        FRAMES / 255,
        (FRAMES / 255).astype(np.float32),
        torch.from_numpy(FRAMES),
        torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
        torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255,
        (frame for frame in FRAMES),
    ],
    ids=["images", "arrays", "tensors", "float64", "float32", "tensor", "channels first", "float tensor", "generator"],
)
def test_all_forms_of_a_video_give_the_same_frames(model: EViLM, video) -> None:
    assert np.array_equal(model.preprocessor(video), FRAMES)


@pytest.mark.parametrize(
    "batch",
    [
        lambda videos: np.stack(videos),
        lambda videos: torch.from_numpy(np.stack(videos)),
        lambda videos: torch.from_numpy(np.stack(videos)).permute(0, 1, 4, 2, 3),
        lambda videos: iter(videos),
        tuple,
    ],
    ids=["array", "tensor", "channels first", "generator", "tuple"],
)
def test_all_forms_of_a_batch_give_the_same_scores(model: EViLM, batch: Callable) -> None:
    videos = [noise(seed=k) for k in range(3)]
    scores = model.match_pairs(videos, CAPTIONS)
    assert np.array_equal(model.match_pairs(batch(videos), iter(CAPTIONS)), scores)
    assert np.array_equal(model.match(batch(videos), np.array(CAPTIONS)), model.match(videos, CAPTIONS))


def test_images_of_other_modes_and_sizes_are_converted(model: EViLM) -> None:
    grey = [Image.new("L", (90, 60), 128)] * 3
    assert model.preprocessor(grey).shape == (3, 64, 64, 3)
    assert np.array_equal(model.preprocessor(grey), model.preprocessor([image.convert("RGBA") for image in grey]))


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (None, r"videos = None \(NoneType\); pass a list of videos"),
        (3, r"videos = 3 \(int\); pass a list"),
        (Path("clip.mp4"), "is one video; pass a list of videos"),
        ({"a": FRAMES}, r"\(dict\); pass a list of videos"),
        ({"a.mp4", "b.mp4"}, r"\(set\); pass a list of videos"),
        (FRAMES, r"videos of shape \(3, 64, 64, 3\); pass a list of videos, or an array \(video, frame, row, col, 3\)"),
        (torch.from_numpy(FRAMES), r"videos of shape \(3, 64, 64, 3\)"),
        (torch.zeros(2, 5, 48), r"videos of shape \(2, 5, 48\); embed_videos gives \(video, 12, 48\)"),
        ([FRAMES, None], r"videos\[1\] = None \(NoneType\); a video is a path or URI"),
        ([FRAMES, NAN], r"videos\[1\] = nan \(float\)"),
        ([FRAMES, b"\xff\xd8"], r"videos\[1\] is bytes; a video is"),
        ([""], r"videos\[0\] is an empty path"),
        (list(FRAMES), r"videos\[0\] is an array of shape \(64, 64, 3\)"),
        ([Image.fromarray(FRAMES[0])], r"videos\[0\] is a single image"),
        ([FRAMES, [FRAMES[0], None]], r"videos\[1\] has None \(NoneType\) as frame 1"),
        ([FRAMES, ["a.jpg", "b.jpg"]], r"videos\[1\] has 'a.jpg' \(str\) as frame 0"),
        ([FRAMES, FRAMES * 1.0], r"videos\[1\]: frames of float64 .* with values from 0 to 255; pass RGB pixels"),
        (
            [FRAMES, FRAMES / 127.5 - 1],
            r"videos\[1\]: frames of float64 .* with values from -1 to 1; .*float from 0 to 1",
        ),
        ([FRAMES, np.full_like(FRAMES, NAN, dtype=np.float32)], r"videos\[1\]: .* with values from nan to nan"),
        ([FRAMES, FRAMES.astype(np.int64)], r"videos\[1\]: frames of int64"),
        ([FRAMES, FRAMES[..., :1]], r"videos\[1\]: frames of uint8 \(64, 64, 1\); pass RGB pixels"),
        ([FRAMES, FRAMES[:2]], r"videos\[1\]: a video of 2 frames; pass at least the model's 3"),
        ([FRAMES, []], r"videos\[1\]: a video of 0 frames"),
        ([FRAMES, [simplejpeg.encode_jpeg(FRAMES[0])] * 2 + [b"no"]], r"videos\[1\]: a frame that is not a JPEG"),
        ([FRAMES, [_lazy_image()] * 3], r"videos\[1\]: a frame that can't be read \(.*[Tt]runcated"),
        ([FRAMES, [_closed_image()] * 3], r"videos\[1\]: a frame that can't be read"),
        ([FRAMES, [Image.new("I;16", (64, 64))] * 3], r"videos\[1\]: a frame of mode I;16, whose range is not known"),
        ([FRAMES, [Image.new("F", (64, 64))] * 3], r"videos\[1\]: a frame of mode F, whose range"),
    ],
)
def test_first_item_that_is_not_a_video_is_named(model: EViLM, videos, message: str) -> None:
    with pytest.raises((ConfigError, DecodeError), match=message) as caught:
        model.match(videos, CAPTIONS)
    assert "\n" not in str(caught.value)


def test_pairs_name_videos_by_their_own_index(model: EViLM) -> None:
    with pytest.raises(ConfigError, match=r"videos\[2\]: a video of 2 frames"):
        model.match_pairs([FRAMES, FRAMES, FRAMES[:2]], CAPTIONS)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (None, r"captions = None \(NoneType\); pass a list of captions"),
        ("a ball", "is one caption; pass a list of captions"),
        (b"a ball", "is one caption; pass a list of captions"),
        ({"a": 1}, r"\(dict\); pass a list of captions"),
        (np.array("a ball"), r"captions = .*; pass a list of captions"),
        (frozenset(["a ball"]), r"\(frozenset\); pass a list of captions"),
        (["a ball", None], r"captions\[1\] = None \(NoneType\) is not text; pass a str"),
        (["a ball", NAN], r"captions\[1\] = nan \(float\) is not text"),
        (["a ball", b"a star"], r"captions\[1\] = b'a star' \(bytes\) is not text"),
        (["a ball", 7], r"captions\[1\] = 7 \(int\) is not text"),
        ([["a ball"]], r"captions\[0\] = \['a ball'\] \(list\) is not text"),
    ],
)
def test_first_item_that_is_not_a_caption_is_named(model: EViLM, captions, message: str) -> None:
    for call in (model.embed_texts, lambda texts: model.match([FRAMES], texts)):
        with pytest.raises(ConfigError, match=message) as caught:
            call(captions)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red ball", r"caption = 'a red ball' has no \[MASK\]; put \[MASK\] where a word is to be predicted"),
        ("ball " * 30 + "[MASK]", r"1 of 1 \[MASK\] are beyond the 20 word pieces of a text"),
        (None, r"caption = None \(NoneType\) is not text"),
    ],
)
def test_captions_that_can_not_be_filled_are_explained(model: EViLM, caption, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.fill_words(None, caption)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"mask = None \(NoneType\); pass bool \(3, 2, 2\) \(frame, row, col of regions\)"),
        (np.zeros((2, 2), bool), r"mask = torch.bool \(2, 2\); pass bool \(3, 2, 2\)"),
        (np.ones((3, 2, 2)), r"mask = ndarray of shape \(3, 2, 2\); pass bool"),
        (np.zeros((3, 2, 2), bool), "mask is False everywhere"),
    ],
)
def test_masks_of_another_kind_are_rejected(model: EViLM, mask, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.fill_regions(FRAMES, "a ball", mask)


def test_masked_regions_are_black(model: EViLM) -> None:
    mask = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    mask[0, 1] = True
    black = FRAMES.copy()
    black[1] = 0
    assert torch.equal(model.embed_videos([FRAMES], mask), model.embed_videos([black]))
    assert model.fill_regions(FRAMES, "a ball", mask[0]) == model.fill_regions(FRAMES, "a ball", mask[0].numpy())


def test_number_of_predictions_is_checked(model: EViLM) -> None:
    with pytest.raises(ConfigError, match="top = 0; use a whole number of at least 1"):
        model.fill_words(None, "a [MASK]", top=0)


def test_repr_shows_the_sizes(model: EViLM) -> None:
    shown = repr(model)
    for part in (
        "M parameters, float32 on cpu",
        "3 frames of 64 x 64 px in 2 x 2 regions",
        "up to 20 word pieces of 53",
        "20 codes",
    ):
        assert part in shown
    assert "\n" not in shown
