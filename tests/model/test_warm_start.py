"""A model that starts from another one: which weights it takes, how those of another size are changed."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evilm.config.data import FramesConfig
from evilm.errors import CheckpointError, VocabError
from evilm.model.evilm_model import EViLMModel
from evilm.model.identity import OBJECTIVES_FILE, tokenizer_fingerprints
from evilm.model.inference import EViLM
from evilm.model.preprocess import Preprocessor
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.model.warm_start import has_codebook, start_model, start_tokenizer
from evilm.text.vocab import SPECIALS, Vocab
from helpers.small_models import student_config, tokenizer_config

OLD = Vocab([*SPECIALS, "ball", "red", "star", "left"])
NEW = Vocab(["left", *SPECIALS, "cube", "red", "green", "ball", "fog", "two"])  # "star" is gone, the order another
KNOWN = [(row, OLD.pieces.index(piece)) for row, piece in enumerate(NEW.pieces) if piece in OLD.pieces]
UNKNOWN = [row for row, piece in enumerate(NEW.pieces) if piece not in OLD.pieces]
_WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
_POSITIONS = "text_encoder.bert.embeddings.position_embeddings.weight"


def _student(vocab: Vocab = OLD, **changes: object) -> EViLMModel:
    """A student of this vocabulary, all of whose weights are random."""
    torch.manual_seed(7)
    student = EViLMModel(
        student_config(vocab_size=vocab.size, max_text_len=20, **({"spatial_embedding": True} | changes))
    )
    for parameter in student.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    return student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that learned the codes of the tokenizer `abc`."""
    folder = tmp_path_factory.mktemp("old") / "model"
    rules = Preprocessor(FramesConfig(num_frames=3, frame_px=64, resize="squash"), 3)
    EViLM(_student(), OLD, rules).save_pretrained(folder)
    (folder / OBJECTIVES_FILE).write_text(json.dumps({"tokenizer": "abc"}))
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer."""
    folder = str(tmp_path_factory.mktemp("old") / "tokenizer")
    torch.manual_seed(7)
    VideoTokenizer(tokenizer_config(vocab_size=OLD.size)).save_pretrained(folder)
    OLD.save(f"{folder}/vocab")
    return folder


def test_same_student_takes_every_weight(student: str) -> None:
    new, report = start_model(_student().config, student, OLD, "abc")
    old = EViLMModel.from_pretrained(student).state_dict()
    assert all(torch.equal(value, old[name]) for name, value in new.state_dict().items())
    assert (report.taken, report.resized, report.unused, report.fresh) == (len(old), [], [], [])
    assert str(report).endswith("resized: none; not used: none; started fresh: none")


def test_word_rows_follow_their_pieces_and_new_ones_the_seed(student: str) -> None:
    config = _student(NEW, text_positions=64).config
    torch.manual_seed(3)
    fresh = EViLMModel(config).state_dict()
    torch.manual_seed(3)
    new, report = start_model(config, student, NEW, "abc")
    old, state = EViLMModel.from_pretrained(student).state_dict(), new.state_dict()
    for name in (_WORDS, "mlm_head.bias"):
        assert all(torch.equal(state[name][row], old[name][before]) for row, before in KNOWN)
        assert torch.equal(state[name][UNKNOWN], fresh[name][UNKNOWN])
    assert torch.equal(state[_POSITIONS][:40], old[_POSITIONS])
    assert torch.equal(state[_POSITIONS][40:], fresh[_POSITIONS][40:])
    assert len(report.resized) == 3
    assert f"{_WORDS} (9, 32) to (12, 32)" in report.resized
    assert (report.unused, report.fresh) == ([], [])
    assert torch.equal(state["tokens.weight"], old["tokens.weight"])


def test_frame_and_grid_embeddings_are_resized(student: str) -> None:
    old = EViLMModel.from_pretrained(student)
    assert old.temporal_embedding is not None
    first, second, third = old.temporal_embedding.detach()
    new, report = start_model(_student(num_frames=6, input_px=128).config, student, OLD, "abc")
    assert new.temporal_embedding is not None
    between = torch.stack([
        first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second,
        0.75 * second + 0.25 * third, 0.25 * second + 0.75 * third, third,
    ])  # fmt: skip
    assert torch.allclose(new.temporal_embedding, between, atol=1e-6)
    old_map, new_map = (
        model.spatial_embedding.detach().T.view(48, *size)  # type: ignore[union-attr]
        for model, size in ((old, (2, 2)), (new, (4, 4)))
    )
    wanted = F.interpolate(old_map[None], (4, 4), mode="bicubic", antialias=True)[0]
    assert torch.allclose(new_map, wanted, atol=1e-5)
    assert {line.split()[0] for line in report.resized} == {"temporal_embedding", "spatial_embedding"}
    assert (report.unused, report.fresh) == ([], [])
    noise = torch.randint(0, 256, (1, 6, 128, 128, 3), dtype=torch.uint8)
    assert new.encode_video(noise).shape == (1, 6 * 16, 48)


def test_weights_of_another_meaning_are_reported_as_unused(student: str) -> None:
    config = _student(num_codes=20, decoder_heads=2, text_layers=1, spatial_embedding=False).config
    new, report = start_model(config, student, OLD, "another")
    old = EViLMModel.from_pretrained(student).state_dict()
    layer = "text_encoder.bert.encoder.layer.1.*"
    assert report.unused == ["decoder.*", "mvm_head.codes.*", "spatial_embedding", layer]
    assert report.fresh == ["decoder.*", "mvm_head.codes.*"]
    state = new.state_dict()
    assert not torch.equal(state["mvm_head.codes.weight"], old["mvm_head.codes.weight"])
    assert torch.equal(state["mvm_head.transform.0.weight"], old["mvm_head.transform.0.weight"])
    assert f"not used: {', '.join(report.unused)}; started fresh: decoder.*, mvm_head.codes.*" in str(report)


def test_unusable_start_models_are_rejected_in_one_line(student: str, tokenizer: str, tmp_path: Path) -> None:
    config = _student().config
    with pytest.raises(CheckpointError, match="holds a video tokenizer, not an E-ViLM model; name the folder of an"):
        start_model(config, tokenizer, OLD, "abc")
    with pytest.raises(
        CheckpointError, match="holds an E-ViLM model, not a video tokenizer; name the folder of a video"
    ):
        start_tokenizer(tokenizer_config(), student, OLD)
    with pytest.raises(CheckpointError, match="holds no E-ViLM model"):
        start_model(config, str(tmp_path), OLD, "abc")
    other = _student(video_encoder="edgenext_x_small", text_dim=64, dim=24, text_layers=1)
    with pytest.raises(CheckpointError, match=r"no weight matrix of .* fits this model"):
        start_model(other.config.model_copy(update={"num_codes": 5}), student, OLD, "another")
    _student().save_pretrained(str(tmp_path / "bare"))
    with pytest.raises(VocabError, match="no vocabulary at"):
        start_model(config, str(tmp_path / "bare"), OLD, "abc")
    NEW.save(tmp_path / "bare" / "vocab")
    with pytest.raises(CheckpointError, match="has 12 pieces, the model 9"):
        start_model(config, str(tmp_path / "bare"), OLD, "abc")


def test_tokenizer_takes_codebook_words_and_positions(tokenizer: str) -> None:
    config = tokenizer_config({"update": "ema"}, vocab_size=NEW.size, num_frames=6, input_px=128)
    new, report = start_tokenizer(config, tokenizer, NEW)
    old, state = VideoTokenizer.from_pretrained(tokenizer).state_dict(), new.state_dict()
    assert has_codebook(report)
    assert torch.equal(state["quantizer.codebook"], old["quantizer.codebook"])
    assert torch.allclose(state["quantizer.mean_sum"], F.normalize(old["quantizer.codebook"], dim=-1))
    assert torch.equal(
        state["encoder.blocks.blocks.0.attention.qkv.weight"], old["encoder.blocks.blocks.0.attention.qkv.weight"]
    )
    for row, before in KNOWN:
        assert torch.equal(state["decoder.head.weight"][row], old["decoder.head.weight"][before])
    assert (report.unused, report.fresh) == ([], [])
    cells = old["decoder.positions"].view(3, 2, 2, -1).permute(3, 0, 1, 2)
    bigger = F.interpolate(cells.flatten(0, 1)[None], (4, 4), mode="bicubic", antialias=True)[0].unflatten(0, (-1, 3))
    wanted = F.interpolate(bigger.flatten(2).transpose(1, 2).flatten(0, 1)[None], 6, mode="linear")[0]
    wanted = wanted.view(24, 16, 6).permute(2, 1, 0).reshape(-1, 24)
    assert torch.allclose(state["decoder.positions"], wanted, atol=1e-5)


def test_codebook_of_another_size_starts_fresh(tokenizer: str) -> None:
    _, report = start_tokenizer(tokenizer_config({"num_codes": 32}, vocab_size=OLD.size), tokenizer, OLD)
    assert not has_codebook(report)
    assert (report.unused, report.fresh) == (["quantizer.codebook"], ["quantizer.codebook"])


def test_missing_decoder_starts_fresh(tokenizer: str, tmp_path: Path) -> None:
    import shutil

    both = tokenizer_fingerprints(tokenizer, "init")
    assert both.keys() == {"init", "init_decoder"}
    folder = shutil.copytree(tokenizer, tmp_path / "labels")
    (folder / "decoder.safetensors").unlink()
    assert tokenizer_fingerprints(str(folder), "init") == {"init": both["init"]}
    _, report = start_tokenizer(tokenizer_config(vocab_size=OLD.size), str(folder), OLD)
    assert (report.unused, report.fresh) == ([], ["decoder.*"])
