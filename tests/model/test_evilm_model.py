"""The student: shapes, masking, padding, embeddings; saving and loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from evilm.errors import CheckpointError, ConfigError
from evilm.model.evilm_model import EViLMModel
from evilm.model.video_encoder import EdgeNeXt
from helpers.small_models import build_student, drop_digests, frames, words


def cls_of(student: EViLMModel, clip_frames: torch.Tensor) -> torch.Tensor:
    ids, padding = words(len(clip_frames))
    return student.decode(student.encode_video(clip_frames), student.encode_text(ids, padding), padding).cls


@torch.no_grad()
def test_shapes_and_order_of_regions():
    student = build_student()
    ids, padding = words()
    video, text = student.encode_video(frames()), student.encode_text(ids, padding)
    out = student.decode(video, text, padding)
    assert (out.cls.shape, out.words.shape, out.regions.shape) == ((2, 48), (2, 6, 48), (2, 12, 48))
    assert student.match_logits(out.cls).shape == (2, 2)
    assert student.mlm_logits(out.words).shape == (2, 6, 50)
    assert student.mvm_logits(out.regions).shape == (2, 12, 20)
    # blackening row 1, column 0 of frame 2 must move region 2 * 4 + 1 * 2 + 0 the most: frame-major, then row, column
    mask = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    mask[:, 2, 1, 0] = True
    change = (student.encode_video(frames(), mask) - video).abs().sum((0, 2))
    assert change.argmax() == 10
    assert (change[:8] == 0).all()


@torch.no_grad()
def test_video_only_or_text_only_can_be_decoded():
    student = build_student()
    ids, padding = words()
    video_only = student.decode(student.encode_video(frames()), None)
    assert video_only.cls.shape == (2, 48)
    assert video_only.words.shape == (2, 0, 48)
    text_only = student.decode(None, student.encode_text(ids, padding), padding)
    assert text_only.words.shape == (2, 6, 48)
    assert text_only.regions.shape == (2, 0, 48)


@torch.no_grad()
def test_frame_order_matters_only_with_a_temporal_embedding():
    shuffled = frames()[:, [2, 0, 1]]
    without = build_student(temporal_embedding=False)
    assert torch.allclose(cls_of(without, frames()), cls_of(without, shuffled), atol=1e-5)
    with_time = build_student(temporal_embedding=True)
    assert (cls_of(with_time, frames()) - cls_of(with_time, shuffled)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("stored_px", [64, 96, 150])
def test_masked_pixels_do_not_leak(stored_px):
    student = build_student()
    mask = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    mask[:, :, 0, 1] = True
    one, half = frames(px=stored_px), stored_px // 2
    other = one.clone()
    other[:, :, :half, half:] = frames(px=half, seed=1) if stored_px % 2 == 0 else 7
    assert torch.equal(student.encode_video(one, mask), student.encode_video(other, mask))
    assert not torch.equal(student.encode_video(one), student.encode_video(other))


@torch.no_grad()
def test_masked_pixels_are_black_before_normalisation():
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 1, 1] = True
    pixels = build_student().pixels(torch.full((1, 1, 64, 64, 3), 255, dtype=torch.uint8), mask)
    # black is (0 - mean) / std = -0.485 / 0.229, white (1 - 0.485) / 0.229 in the red channel
    assert torch.allclose(pixels[0, 0, 32:, 32:], torch.tensor(-0.485 / 0.229), atol=1e-5)
    assert torch.allclose(pixels[0, 0, :32], torch.tensor(0.515 / 0.229), atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing():
    student = build_student()
    ids, padding = words()
    longer = torch.cat([ids, torch.full((2, 5), 9)], 1)
    longer_padding = torch.cat([padding, torch.ones(2, 5, dtype=torch.bool)], 1)
    video = student.encode_video(frames())
    short = student.decode(video, student.encode_text(ids, padding), padding)
    long = student.decode(video, student.encode_text(longer, longer_padding), longer_padding)
    assert torch.allclose(short.cls, long.cls, atol=1e-5)
    assert torch.allclose(short.words, long.words[:, :6], atol=1e-5)
    assert torch.allclose(short.regions, long.regions, atol=1e-5)


@torch.no_grad()
def test_output_of_a_clip_does_not_depend_on_its_batch():
    student = build_student()
    batch = cls_of(student, frames())
    ids, padding = words()
    video = student.encode_video(frames()[1:])
    alone = student.decode(video, student.encode_text(ids[1:], padding[1:]), padding[1:]).cls
    assert torch.allclose(batch[1:], alone, atol=1e-5)


@torch.no_grad()
def test_explicit_attention_equals_fused_attention():
    student = build_student()
    fused = cls_of(student, frames())
    student.use_explicit_attention()
    assert torch.allclose(fused, cls_of(student, frames()), atol=1e-5)


def test_every_parameter_gets_a_gradient():
    student = build_student(spatial_embedding=True).train()
    ids, padding = words()
    out = student.decode(student.encode_video(frames()), student.encode_text(ids, padding), padding)
    loss = student.match_logits(out.cls).square().sum()
    loss = loss + student.mlm_logits(out.words).square().sum() + student.mvm_logits(out.regions).square().sum()
    loss.backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_save_and_load_are_bit_equal(tmp_path):
    student = build_student(spatial_embedding=True)
    student.save_pretrained(str(tmp_path / "model"))
    state = torch.random.get_rng_state()
    again = EViLMModel.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.config == student.config
    assert not again.training
    assert torch.equal(cls_of(student, frames()), cls_of(again, frames()))
    again.save_pretrained(str(tmp_path / "again"))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["versions"]["torch"] == torch.__version__


def test_weights_that_do_not_fit_are_rejected_in_one_line(tmp_path):
    folder = tmp_path / "model"
    build_student().save_pretrained(str(folder))
    weights = load_file(folder / "model.safetensors")
    weights["stray"] = weights.pop("tokens.weight")
    weights["match_head.match.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors")
    drop_digests(folder / "config.json")
    faults = "1 missing, e.g. tokens.weight; 1 unexpected, e.g. stray; 1 of another shape"
    with pytest.raises(CheckpointError, match=faults) as caught:
        EViLMModel.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged"):
        EViLMModel.from_pretrained(str(folder))
    with pytest.raises(CheckpointError, match="there is no config"):
        EViLMModel.from_pretrained(str(tmp_path))


def test_video_weights_are_loaded_from_a_local_file(tmp_path):
    torch.manual_seed(3)
    source = EdgeNeXt("edgenext_xx_small").backbone
    state = {**source.state_dict(), "head.fc.weight": torch.zeros(10, 168), "head.fc.bias": torch.zeros(10)}
    save_file(state, tmp_path / "backbone.safetensors")
    student = build_student(video_weights=str(tmp_path / "backbone.safetensors"))
    assert torch.equal(student.video_encoder.backbone.head.norm.weight, source.head.norm.weight)
    first = next(iter(source.state_dict()))
    assert torch.equal(student.video_encoder.backbone.state_dict()[first], source.state_dict()[first])
    with pytest.raises(CheckpointError, match="local safetensors file"):
        build_student(video_weights=str(tmp_path / "absent.safetensors"))


def test_wrong_frames_and_encoders_are_rejected():
    with pytest.raises(ConfigError, match="clips have 2 frames"):
        build_student().encode_video(frames(num_frames=2))
    with pytest.raises(ConfigError, match=r"'resnet1800': .*the paper uses edgenext_small"):
        build_student(video_encoder="resnet1800")
    with pytest.raises(ConfigError, match="edgenext_tiny"):
        build_student(video_encoder="edgenext_tiny")
