"""The video tokenizer: codes, fingerprint, saving, CLIP."""

import json

import pytest
import torch

from evilm.errors import CheckpointError, ConfigError
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from helpers.small_models import build_tokenizer, drop_digests, frames, tokenizer_config


def test_encode_agrees_with_forward():
    tokenizer = build_tokenizer()
    out = tokenizer(frames())
    assert out.word_logits.shape == (2, 11)
    assert out.vectors.shape == (2, 12, 8)
    assert torch.allclose(out.vectors.norm(dim=-1), torch.ones(2, 12), atol=1e-5)
    before = tokenizer.quantizer.usage.clone()
    code_ids = tokenizer.encode(frames())
    assert code_ids.dtype == torch.int64
    assert torch.equal(code_ids, out.code_ids)
    assert tokenizer.training
    assert torch.equal(tokenizer.quantizer.usage, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(frames()), code_ids)
    with torch.no_grad():
        assert torch.allclose(tokenizer.word_logits(code_ids), out.word_logits, atol=1e-5)


def test_codes_follow_frame_order_and_depend_on_their_frame_only():
    tokenizer = build_tokenizer()
    order = [2, 0, 1]
    codes = tokenizer.encode(frames()).view(2, 3, 4)
    assert torch.equal(tokenizer.encode(frames()[:, order]).view(2, 3, 4), codes[:, order])
    # a ViT without blocks sees one patch per region: change the last patch, only the last code's vector moves
    changed = frames()
    changed[:, 2, 32:, 32:] = 0
    moved = (tokenizer.vectors(changed) != tokenizer.vectors(frames())).any(-1)
    assert not moved[:, :8].any()
    assert moved[:, 11].all()


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_every_parameter_gets_a_gradient(update):
    tokenizer = build_tokenizer(codebook={"update": update})
    out = tokenizer(frames())
    (out.word_logits.square().sum() + out.codebook_loss * int(update == "gradient") + out.commitment_loss).backward()
    learned = {name: parameter for name, parameter in tokenizer.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in learned.items() if parameter.grad is None] == []
    assert ("quantizer.codebook" in learned) == (update == "gradient")


def test_initial_word_probabilities_are_low():
    assert 0.05 < build_tokenizer()(frames()).word_logits.sigmoid().mean().item() < 0.25


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_saved_tokenizer_encodes_the_same(tmp_path, update):
    tokenizer = build_tokenizer(codebook={"update": update})
    tokenizer(frames())  # usage and moving means are no part of the artifact
    tokenizer.save_pretrained(str(tmp_path))
    again = VideoTokenizer.from_pretrained(str(tmp_path))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.encode(frames()), tokenizer.encode(frames()))
    assert torch.equal(again(frames()).word_logits, tokenizer.eval()(frames()).word_logits)
    (tmp_path / "decoder.safetensors").unlink()
    bare = VideoTokenizer.from_pretrained(str(tmp_path))
    assert bare.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(bare.encode(frames()), tokenizer.encode(frames()))
    with pytest.raises(CheckpointError, match="without decoder"):
        bare(frames())


def test_ema_codebook_is_saved(tmp_path):
    tokenizer = build_tokenizer(codebook={"update": "ema", "ema_decay": 0.5})
    before = tokenizer.quantizer.codebook.clone()
    for _ in range(3):
        tokenizer(frames())
        tokenizer.quantizer.move_means()
    assert not torch.equal(tokenizer.quantizer.codebook, before)
    tokenizer.save_pretrained(str(tmp_path))
    codebook = VideoTokenizer.from_pretrained(str(tmp_path)).quantizer.codebook
    assert torch.equal(codebook, tokenizer.quantizer.codebook)


def test_fingerprint_covers_only_what_decides_codes():
    tokenizer = build_tokenizer()
    fingerprint = tokenizer.fingerprint()
    assert build_tokenizer().fingerprint() == fingerprint
    assert build_tokenizer(seed=1).fingerprint() != fingerprint
    with torch.no_grad():
        assert tokenizer.decoder is not None
        tokenizer.decoder.head.bias += 1
        tokenizer.quantizer.usage += 1
        assert tokenizer.fingerprint() == fingerprint
        tokenizer.quantizer.codebook[3, 2] += 1e-3
    assert tokenizer.fingerprint() != fingerprint


def test_mixed_files_of_two_tokenizers_are_rejected(tmp_path):
    build_tokenizer().save_pretrained(str(tmp_path / "one"))
    build_tokenizer(seed=1).save_pretrained(str(tmp_path / "two"))
    (tmp_path / "one" / "tokenizer.safetensors").write_bytes((tmp_path / "two" / "tokenizer.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.safetensors has another SHA-256 than when the model was saved"
    ):
        VideoTokenizer.from_pretrained(str(tmp_path / "one"))
    drop_digests(tmp_path / "one" / "config.json")
    with pytest.raises(CheckpointError, match="mixed up"):
        VideoTokenizer.from_pretrained(str(tmp_path / "one"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small CLIP vision tower with random weights: 64 px, so its position table is 2 x 2."""
    from transformers import CLIPVisionConfig, CLIPVisionModel  # here, since collecting the tests should be fast

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    shape = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=32,
    )
    CLIPVisionModel(shape).save_pretrained(folder)
    return folder


def test_clip_encoder_is_resized_to_another_input(clip_folder, tmp_path):
    tokenizer = build_tokenizer(encoder_weights=str(clip_folder), input_px=128)
    out = tokenizer(frames(px=128))
    assert out.code_ids.shape == (2, 3 * 16)
    (out.word_logits.square().sum() + out.codebook_loss + out.commitment_loss).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []
    tokenizer.save_pretrained(str(tmp_path))
    # the config still names a folder that need not exist where the tokenizer is used
    content = json.loads((tmp_path / "config.json").read_text())
    content["encoder_weights"] = "gone"
    (tmp_path / "config.json").write_text(json.dumps(content))
    again = VideoTokenizer.from_pretrained(str(tmp_path))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.encode(frames(px=128)), tokenizer.encode(frames(px=128)))


def test_clip_weights_are_loaded_from_disk(clip_folder):
    from transformers import CLIPVisionModel

    source = CLIPVisionModel.from_pretrained(clip_folder)
    tokenizer = build_tokenizer(encoder_weights=str(clip_folder))
    pixels = tokenizer.pixels(frames(1, 1))
    with torch.no_grad():
        expected = source.post_layernorm(source(pixel_values=pixels).last_hidden_state[:, 1:])
        assert torch.allclose(tokenizer.encoder(pixels), expected, atol=1e-5)


def test_unusable_clip_is_rejected(clip_folder, tmp_path):
    with pytest.raises(ConfigError, match="set patch_px = 32"):
        build_tokenizer(encoder_weights=str(clip_folder), patch_px=16)
    with pytest.raises(CheckpointError, match="can't be loaded as a CLIP vision model") as caught:
        build_tokenizer(encoder_weights=str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_codes_do_not_depend_on_other_clips_or_frames() -> None:
    for px, codes in ((32, 16), (64, 500)):
        tokenizer = VideoTokenizer(tokenizer_config({"num_codes": codes}, input_px=px)).eval()
        clips = frames(23, 4, px)
        together = tokenizer.encode(clips)
        for size in (1, 2, 3, 7):
            assert torch.equal(torch.cat([tokenizer.encode(part) for part in clips.split(size)]), together), (px, size)
        picked = tokenizer.encode(clips[:, [0, 3]]).view(23, 2, -1)
        assert torch.equal(picked, together.view(23, 4, -1)[:, [0, 3]])
        assert torch.equal(tokenizer.encode(clips.flip(0)).flip(0), together)
    assert tokenizer.encode(clips[:0]).shape == (0, 16)
