"""Loaders of pre-training: each batch has the codes of its own augmented frames, for any number of workers."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evilm.config.presets import defaults
from evilm.config.stages import PrecomputeCodes, Pretrain
from evilm.encode.encode_job import precompute_codes
from evilm.errors import CheckpointError, CollapseError, ConfigError, EvilmError, ShardError
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.shards import SCHEMA_VERSION, CodesManifest, FrameManifest
from evilm.tasks.inputs import Inputs
from evilm.tasks.pretrain import PretrainTask, open_pairs, pretrain
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from helpers.paths import SMALL
from helpers.small_corpus import in_this_process
from helpers.stored_frames import CAPTIONS, GRID, NUM_CODES, make_tokenizer, store_frames

EPOCHS = 6


@pytest.fixture(scope="module")
def inputs(ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Frames, eight stored per clip, and codes of four views of them, made three clips at a time."""
    root = tmp_path_factory.mktemp("views")
    frames = store_frames(root / "frames", num_frames=8)
    make_tokenizer(root / "tokenizer", frames)
    Vocab(train_wordpiece(CAPTIONS, 80, 1)).save(str(root / "vocab"))
    coding = PrecomputeCodes(frames=frames.uri, tokenizer=str(root / "tokenizer"), out=str(root / "codes"))
    codes = precompute_codes(
        coding.override({"views": 4, "batch_clips": 3, "cluster.num_workers": 1}), in_this_process
    )["codes"]
    return Inputs(frames.uri, codes, str(root / "vocab"), str(root / "tokenizer"))


def settings(inputs: Inputs, **values: Any) -> Pretrain:
    places = {"frames": inputs.frames, "codes": inputs.codes, "vocab": inputs.vocab, "tokenizer": inputs.tokenizer}
    arch = {"arch.input_px": 32 * GRID, "arch.num_frames": 4, "schedule.batch_clips": 5, "schedule.shuffle_groups": 2}
    return Pretrain().override({**places, **arch, **values})


def frames_and_codes(
    inputs: Inputs, world: int = 1, **values: Any
) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """Frames and codes by epoch and clip, as the data loaders of pre-training give them to its workers."""
    task = PretrainTask(settings(inputs, **values))
    found = {}
    for rank in range(world):
        loader = task.train_loader(rank, world)
        steps = loader.order.num_steps
        for step, batch in enumerate(loader.batches(0, EPOCHS * steps)):
            for clip_id, frames, codes in zip(batch.clip_ids, batch.frames, batch.code_ids, strict=True):
                found[step // steps, clip_id] = (frames, codes)
    return found


def test_stored_codes_match_the_tokenizer_on_augmented_frames(inputs: Inputs) -> None:
    tokenizer = VideoTokenizer.from_pretrained(inputs.tokenizer)
    task = PretrainTask(settings(inputs))
    loader = task.train_loader(0, 1)
    augmented = set()
    for step, batch in enumerate(loader.batches(0, EPOCHS * loader.order.num_steps)):
        assert torch.equal(batch.code_ids, tokenizer.encode(batch.frames)), step  # bit for bit, in other batches
        augmented |= {
            (clip, frames.numpy().tobytes()) for clip, frames in zip(batch.clip_ids, batch.frames, strict=True)
        }
    assert len(augmented) > 16 * (EPOCHS - 1.5), "epochs show a clip in other ways"


def test_augmentation_does_not_depend_on_the_number_of_workers(inputs: Inputs) -> None:
    one, two = (
        frames_and_codes(inputs, **{"schedule.batch_clips": 6}),
        frames_and_codes(inputs, 2, **{"schedule.batch_clips": 6}),
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(a, b) for key in one for a, b in zip(one[key], two[key], strict=True))


def test_evaluation_uses_whole_frames(inputs: Inputs) -> None:
    task = PretrainTask(settings(inputs))
    loader, tokenizer = task.eval_loader(0, 1), VideoTokenizer.from_pretrained(inputs.tokenizer)
    assert loader is not None
    plain = PretrainTask(settings(inputs, **{"arch.num_frames": 8})).eval_loader(0, 1)
    assert plain is not None
    for batch, whole in zip(*(f.batches(0, f.order.num_steps) for f in (loader, plain)), strict=True):
        assert torch.equal(batch.frames, whole.frames[:, [0, 2, 4, 6]])  # of two, the earlier
        assert torch.equal(batch.code_ids, tokenizer.encode(batch.frames))


def test_jitter_changes_neither_codes_nor_masks(inputs: Inputs) -> None:
    plain, jittered = (PretrainTask(settings(inputs, **{"augment.jitter": j})).train_loader(0, 1) for j in (0.0, 0.4))
    for one, other in zip(plain.batches(0, 8), jittered.batches(0, 8), strict=True):
        assert other.jitter is not None
        assert other.jitter.shape == (len(other.clip_ids), 3)
        for name in ("frames", "code_ids", "mask", "input_ids", "negative_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_approximate_codes_agree_with_the_tokenizer_in_part(inputs: Inputs) -> None:
    tokenizer = VideoTokenizer.from_pretrained(inputs.tokenizer)
    crops = {"augment.approximate": True, "augment.crop.min_scale": 0.8, "augment.crop.flip_ratio": 0.0}
    loader = PretrainTask(settings(inputs, **crops)).train_loader(0, 1)
    same = [tokenizer.encode(batch.frames) == batch.code_ids for batch in loader.batches(0, 8)]
    assert 2 / NUM_CODES < float(torch.cat(same).float().mean()) < 1


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"views": 2}, "holds codes of 4 views per clip, not 2"),
        ({"arch.input_px": 64}, "4 x 4 codes per frame, the model has 2 x 2 regions"),
        ({"arch.num_frames": 3}, "8 frames per clip, the model takes 3, which does not divide it"),
    ],
)
def test_settings_that_do_not_fit_the_codes_are_rejected(inputs: Inputs, values: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ShardError, match=wanted) as caught:
        open_pairs(inputs, settings(inputs, **values))
    assert "\n" not in str(caught.value)


def test_labels_of_a_collapsed_tokenizer_are_rejected(inputs: Inputs, tmp_path: Path) -> None:
    codes = CodesManifest.load(inputs.codes)
    shutil.copytree(inputs.codes, tmp_path / "codes", ignore=shutil.ignore_patterns("_runs"))
    unused = [0] * (NUM_CODES - 1)
    replace(codes, uri=f"{tmp_path}/codes", histograms=codes.histograms | {"train": [500, *unused]}).save()
    with pytest.raises(CollapseError, match="codes, split train: the tokenizer has collapsed, it uses 1 of its 32"):
        open_pairs(replace(inputs, codes=f"{tmp_path}/codes"), settings(inputs))


def test_codes_that_do_not_fit_the_inputs_are_rejected(inputs: Inputs, tmp_path: Path) -> None:
    codes, frames = CodesManifest.load(inputs.codes), FrameManifest.load(inputs.frames)
    make_tokenizer(tmp_path / "tokenizer", frames, 1)
    more = store_frames(tmp_path / "frames", {"train": [[4, 2]]}, num_frames=8)
    without_runs = shutil.ignore_patterns("_runs")  # whose publications would be read instead
    shutil.copytree(inputs.codes, tmp_path / "schema", ignore=without_runs)
    place = tmp_path / "schema" / "manifest.json"
    place.write_text(place.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    shutil.copytree(inputs.codes, tmp_path / "resampler", ignore=without_runs)
    replace(codes, uri=f"{tmp_path}/resampler", view_spec=codes.view_spec | {"resampler": "pillow-bicubic-0"}).save()
    for others, wanted in (
        ({"tokenizer": f"{tmp_path}/tokenizer"}, f"holds codes of tokenizer {codes.tokenizer}, not of"),
        ({"frames": more.uri}, "has no codes of train-00000"),
        ({"codes": f"{tmp_path}/schema"}, "schema version 99"),
        ({"codes": f"{tmp_path}/resampler"}, "resampled by pillow-bicubic-0, here Pillow"),
        ({"codes": f"{tmp_path}/nothing"}, r"no finished codes of tokenizer .*\(there: none\)"),
    ):
        with pytest.raises(ShardError, match=wanted) as caught:
            open_pairs(replace(inputs, **others), settings(inputs))
        assert "\n" not in str(caught.value)


def test_wrong_model_to_start_from_is_noticed_before_inputs_are_built(tmp_path: Path) -> None:
    config = defaults("pretrain", str(SMALL)).override({"root": str(tmp_path / "run"), "init": str(tmp_path / "none")})
    with pytest.raises(CheckpointError, match="none"):
        pretrain(config)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_too_few_clips_and_the_assessment_come_before_a_tokenizer_is_trained(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "evilm")
    (tmp_path / "file").touch()
    arch = {"train_tokenizer.arch.input_px": 32 * GRID, "train_tokenizer.arch.patch_px": 32}
    config = settings(inputs, codes="", tokenizer="", root=str(tmp_path / "file" / "run"), **arch)
    with pytest.raises(ConfigError, match=r"lower batch_clips"):
        pretrain(config.override({"schedule.batch_clips": 1000, "schedule.tail": "drop"}))  # type: ignore[arg-type]
    assert "train clips" not in caplog.text
    with pytest.raises(EvilmError, match="file/run/tokenizer"):  # where it can't be
        pretrain(config)
    assert "train clips show that the workflow runs on your data" in caplog.text
