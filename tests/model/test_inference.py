"""The public model: saved, loaded again, used on files and frames."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

import evilm
from evilm.config.data import FramesConfig
from evilm.errors import CheckpointError, ConfigError, DecodeError
from evilm.model.evilm_model import EViLMModel
from evilm.model.inference import EViLM
from evilm.model.preprocess import Preprocessor
from evilm.shards import decode_frames
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from evilm.video.decode import decode_clip
from evilm.video.decoder_process import Decoder
from helpers.public_models import CAPTIONS, FRAMES, noise, random_evilm
from helpers.video_files import write_video


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model. Read it, don't write into it."""
    folder = tmp_path_factory.mktemp("saved")
    random_evilm().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real small video."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_config_follows_transformers_conventions(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["dtype"]) == ("evilm", ["EViLM"], "float32")
    assert config["versions"]["evilm"] == evilm.__version__
    assert (config["num_frames"], config["dim"]) == (3, 48)
    rules = json.loads((saved / "preprocessor_config.json").read_text())
    assert rules["size"] == {"height": 64, "width": 64}
    assert rules["image_mean"] == [0.485, 0.456, 0.406]
    assert rules["frames"]["resize"] == "squash"


def test_transformers_tokenizes_captions_like_the_saved_vocabulary(saved: Path):
    from transformers import BertTokenizer

    theirs, ours = BertTokenizer.from_pretrained(saved / "vocab"), Vocab.load(saved / "vocab")
    for caption in [*CAPTIONS, "Déjà-vu, 3½ balls!", "two " * 30]:
        assert theirs(caption, truncation=True)["input_ids"] == ours.encode(caption, 20)


def test_scores_are_equal_before_and_after_saving(saved: Path, clip: Path, tmp_path: Path):
    before, after = random_evilm(), evilm.EViLM.from_pretrained(saved)
    videos = [str(clip), noise(), noise(seed=1)]
    assert np.array_equal(before.match(videos, CAPTIONS), after.match(videos, CAPTIONS))
    assert np.array_equal(before.match_pairs(videos, CAPTIONS), after.match_pairs(videos, CAPTIONS))
    after.save_pretrained(tmp_path)
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    assert [(tmp_path / name).read_bytes() for name in files] == [(saved / name).read_bytes() for name in files]


def test_file_jpegs_and_pixels_give_the_same_scores(saved: Path, clip: Path):
    model = EViLM.from_pretrained(saved)
    jpegs = decode_clip(str(clip), "any", FRAMES).frames
    scores = [model.match([video], CAPTIONS) for video in (str(clip), clip, jpegs, decode_frames(jpegs))]
    assert all(np.array_equal(scores[0], other) for other in scores)


def test_embeddings_score_like_their_inputs(saved: Path):
    model = EViLM.from_pretrained(saved)
    videos = [noise(seed=k) for k in range(2)]
    regions, texts = model.embed_videos(videos), model.embed_texts(CAPTIONS)
    assert regions.shape == (2, 3 * 2 * 2, 48)
    assert texts.words.shape == (3, int((~texts.padding).sum(1).max()), 48)
    assert np.array_equal(model.match(regions, texts), model.match(videos, CAPTIONS))
    assert model.match(videos, CAPTIONS) == pytest.approx(
        np.array([[model.match_pairs([v], [c])[0] for c in CAPTIONS] for v in videos]), abs=1e-5
    )
    assert model.match([], CAPTIONS).shape == (0, 3)
    assert model.match(videos, []).shape == (2, 0)
    assert model.match_pairs([], []).shape == (0,)


def test_masked_words_and_regions_are_predicted(saved: Path, clip: Path):
    model = EViLM.from_pretrained(saved)
    first, second = model.fill_words(clip, "a [MASK] ball [MASK]", top=4)
    assert len(first) == len(second) == 4
    assert first[0].value in model.vocab.pieces
    assert 1 >= first[0].probability >= first[3].probability > 0
    assert model.fill_words(None, "a [MASK]") != model.fill_words(clip, "a [MASK]")
    mask = np.zeros((3, 2, 2), dtype=bool)
    mask[0, 1, 0] = mask[2, 0, 0] = True
    guesses = model.fill_regions(clip, "a ball", mask, top=100)
    assert [len(codes) for codes in guesses] == [20, 20]
    assert sum(guess.probability for guess in guesses[0]) == pytest.approx(1, abs=1e-4)


def test_frames_are_resized_and_picked(saved: Path):
    model = EViLM.from_pretrained(saved)
    many = noise(9)
    assert np.array_equal(model.preprocessor(many), many[[1, 4, 7]])
    assert model.preprocessor(np.zeros((3, 30, 50, 3), np.uint8)).shape == (3, 64, 64, 3)
    with pytest.raises(ConfigError, match="a video of 2 frames; pass at least the model's 3"):
        model.match([many[:2]], CAPTIONS)
    with pytest.raises(ConfigError, match="float64"):
        model.match([many.astype(float)], CAPTIONS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_scores_are_close_and_the_dtype_is_kept(dtype: str, saved: Path, tmp_path: Path):
    full, half = EViLM.from_pretrained(saved), EViLM.from_pretrained(saved, dtype=dtype)
    assert half.student.dtype == getattr(torch, dtype)
    assert torch.equal(half.student.pixels.mean, full.student.pixels.mean), "pixels are normalised in float32"
    assert half.match([noise()], CAPTIONS) == pytest.approx(full.match([noise()], CAPTIONS), abs=0.05)
    half.save_pretrained(tmp_path)
    again = EViLM.from_pretrained(tmp_path)
    assert again.student.dtype == half.student.dtype
    assert np.array_equal(again.match([noise()], CAPTIONS), half.match([noise()], CAPTIONS))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m: m.match(["/none/clip.mp4"], CAPTIONS), "missing_file: /none/clip.mp4"),
        (lambda m: m.match([[b"no"] * 3], CAPTIONS), "a frame that is not a JPEG"),
        (lambda m: m.match("clip.mp4", CAPTIONS), "pass a list of videos"),
        (lambda m: m.match([noise()], "a ball"), "pass a list of captions"),
        (lambda m: m.match_pairs([noise()], CAPTIONS), "1 videos and 3 captions"),
    ],
)
def test_unscorable_inputs_are_rejected_in_one_line(wrong, message: str, saved: Path):
    with pytest.raises((ConfigError, DecodeError), match=message) as caught:
        wrong(EViLM.from_pretrained(saved))
    assert "\n" not in str(caught.value)


def test_file_that_hangs_the_decoder_times_out(saved: Path, clip: Path):
    model = EViLM.from_pretrained(saved)
    hangs = "import sys, time; sys.stdout.buffer.write((5).to_bytes(8, 'little') + b'ready'); sys.stdout.flush(); "
    config = FRAMES.override({"decode_timeout_s": 0.2})
    model.preprocessor._decoder = Decoder(config, [sys.executable, "-c", hangs + "time.sleep(600)"])
    with pytest.raises(DecodeError, match=r"decode_timeout: .*clip.mp4 longer than 0.2"):
        model.match([clip], CAPTIONS)
    again = pickle.loads(pickle.dumps(model.preprocessor))
    assert again(clip).shape == (3, 64, 64, 3)


def copy_without(saved: Path, to: Path, *names: str) -> Path:
    """A copy of a model that lacks some files."""
    for path in saved.rglob("*"):
        if path.is_file() and (name := str(path.relative_to(saved))) not in names:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(path.read_bytes())
    return to


def test_incomplete_model_is_rejected_in_one_line(saved: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json; save the model with"):
        EViLM.from_pretrained(copy_without(saved, tmp_path / "a", "preprocessor_config.json"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        EViLM.from_pretrained(copy_without(saved, tmp_path / "b", "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        EViLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="dtype = 'int8': use float32"):
        EViLM.from_pretrained(saved, dtype="int8")
    with pytest.raises(ConfigError, match="device = 'nowhere' can't be used here") as caught:
        EViLM.from_pretrained(saved, device="nowhere")
    assert "\n" not in str(caught.value)


def test_unknown_or_unsupported_settings_are_rejected(saved: Path, tmp_path: Path):
    folder = copy_without(saved, tmp_path)
    for file, changes, message in (
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"image_mean = \[0.5, 0.5, 0.5\]"),
        ("config.json", {"new_setting": 3}, "no setting named 'new_setting'"),
        ("config.json", {"dim": 96}, "does not fit the model"),
        ("config.json", {"model_type": "bert"}, "holds a model of type 'bert', not an E-ViLM model"),
    ):
        content = json.loads((saved / file).read_text())
        (folder / file).write_text(json.dumps(content | changes))
        with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
            EViLM.from_pretrained(folder)
        assert "\n" not in str(caught.value)
        (folder / file).write_text(json.dumps(content))


def test_vocabulary_of_another_size_is_rejected(saved: Path):
    other = Vocab(train_wordpiece(["x y z"], 40))
    with pytest.raises(ConfigError, match=r"has \d+ word pieces, the model \d+; use the one it was trained with"):
        EViLM(EViLMModel.from_pretrained(str(saved)), other, Preprocessor(FRAMES, 3))


def test_preprocessor_reads_frames_like_sharding(saved: Path, clip: Path):
    stored = FramesConfig(num_frames=3, frames_stored=6, frame_px=64, sampling="random")
    jpegs = decode_clip(str(clip), "x", stored.override({"sampling": "centre"})).frames
    rules = Preprocessor(stored, 3)
    assert np.array_equal(rules(clip), decode_frames(jpegs)[[0, 2, 4]]), "as training picks them in an evaluation"
    assert simplejpeg.is_jpeg(jpegs[0])


def test_importing_evilm_loads_no_heavy_library():
    code = "import evilm, sys; print([m for m in ('torch', 'transformers', 'ray', 'mlflow') if m in sys.modules])"
    code += "; print(evilm.EViLM.__name__, evilm.VideoTokenizer.__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[:2] == ["[]", "EViLM VideoTokenizer"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evilm.nothing  # noqa: B018


def test_model_is_saved_to_and_loaded_from_s3(saved: Path, s3_bucket: str):
    random_evilm().save_pretrained(f"{s3_bucket}/model")
    again = EViLM.from_pretrained(f"{s3_bucket}/model")
    assert np.array_equal(again.match([noise()], CAPTIONS), EViLM.from_pretrained(saved).match([noise()], CAPTIONS))
