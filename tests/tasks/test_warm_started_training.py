"""Trainings that start from another model."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from evilm.config.presets import defaults
from evilm.config.stages import BuildVocab, TrainTokenizer
from evilm.errors import CheckpointError, ConfigError
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.tasks.pretrain import pretrain
from evilm.tasks.train_tokenizer import train_tokenizer
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import build_vocab
from evilm.train.checkpoint_manager import newest_first
from helpers.paths import SMALL
from helpers.workflow import Workflow, losses, small_pretrain

pytestmark = pytest.mark.long


def _pretrain(root: Path, out: Path, init: Path, **values: Any) -> dict[str, Any]:
    settings = {"schedule.max_steps": 2, "tracking.log_model": False}
    return pretrain(small_pretrain(root, out=str(out), init=str(init), **settings | values))


@pytest.fixture(scope="module")
def started(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two steps of a pre-training from the finished small one, and its summary. Read it only."""
    root, out = small_workflow[0], tmp_path_factory.mktemp("init") / "model"
    return out, _pretrain(root, out, root / "model")


def test_warm_started_pretraining_begins_near_the_losses_of_its_model(
    small_workflow: Workflow, started: Workflow
) -> None:
    root, source = small_workflow
    out, summary = started
    assert summary["inputs"] == source["inputs"] | {"init": source["fingerprint"]}
    taken = len(EViLMModel.from_pretrained(str(root / "model")).state_dict())
    model = {"model": str(root / "model"), "taken": taken, "resized": [], "unused": [], "fresh": []}
    assert summary["init"] == model
    first, fresh, end = losses(out)[1], losses(root / "model")[1], losses(root / "model")[20]
    for name in ("train/mvm_loss", "train/mlm_loss"):
        assert abs(first[name] - end[name]) < abs(first[name] - fresh[name]), "the first step is like the last one's"
    card = (out / "README.md").read_text()
    assert "started from the model `model` (input `init`)" in card
    assert f"| init | `{source['fingerprint']}` |" in card


def test_checkpoint_and_its_published_model_start_the_same_training(
    small_workflow: Workflow, started: Workflow, tmp_path: Path
) -> None:
    root, (out, summary) = small_workflow[0], started
    newest = root / "model" / "checkpoints" / newest_first(str(root / "model"))[0]
    other = _pretrain(root, tmp_path / "model", newest)
    assert other["inputs"] == summary["inputs"]
    assert other["fingerprint"] == summary["fingerprint"]
    assert losses(tmp_path / "model") == losses(out)


def test_other_init_model_is_another_training(small_workflow: Workflow, started: Workflow) -> None:
    root, (out, _) = small_workflow[0], started
    with pytest.raises(ConfigError, match=r"was made with other settings .*init: "):
        _pretrain(root, out, root / "model" / "checkpoints" / newest_first(str(root / "model"))[1])
    with pytest.raises(ConfigError, match=r"--init .* is inside --out .*; choose another --out"):
        _pretrain(root, out, out, overwrite=True)
    assert (out / "summary.json").exists()
    with pytest.raises(CheckpointError, match="holds a video tokenizer, not an E-ViLM model; name the folder of an"):
        _pretrain(root, out, root / "tokenizer")


def test_warm_start_resizes_words_and_frames(
    small_workflow: Workflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = small_workflow
    vocab = defaults("build_vocab", str(SMALL)).override(
        {"manifest": str(root / "corpus" / "manifest.csv"), "out": str(tmp_path / "vocab"), "words.train_size": 340}
    )
    assert isinstance(vocab, BuildVocab)
    build_vocab(vocab)
    old, new = Vocab.load(root / "vocab"), Vocab.load(tmp_path / "vocab")
    assert new.size > old.size
    grown = {"vocab": str(tmp_path / "vocab"), "arch.num_frames": 2, "train_tokenizer.arch.num_frames": 4}
    with caplog.at_level(logging.INFO, "evilm"):
        summary = _pretrain(root, tmp_path / "model", root / "model", tokenizer=str(root / "tokenizer"), **grown)
    (line,) = [record.getMessage() for record in caplog.records if "weights start from" in record.getMessage()]
    assert "not used: none; started fresh: none" in line
    assert "temporal_embedding (4, 32) to (2, 32)" in line
    assert summary["init"]["resized"][0].startswith("temporal_embedding") or len(summary["init"]["resized"]) == 3
    model = EViLMModel.from_pretrained(str(tmp_path / "model"))
    assert (model.config.vocab_size, model.config.num_frames) == (new.size, 2)


def test_warm_started_tokenizer_keeps_the_codebook(small_workflow: Workflow, tmp_path: Path) -> None:
    root, source = small_workflow
    places = {"frames": str(root / "frames"), "vocab": str(root / "vocab"), "out": str(tmp_path / "tokenizer")}
    settings = {"schedule.max_steps": 1, "optim.lr": 1e-9, "arch.codebook.revive_below": 0.0}
    config = defaults("train_tokenizer", str(SMALL)).override(places | settings | {"init": str(root / "tokenizer")})
    assert isinstance(config, TrainTokenizer)
    assert config.arch.codebook.init == "kmeans", "which would overwrite it"
    summary = train_tokenizer(config)
    assert summary["inputs"]["init"] == source["inputs"]["tokenizer"]
    assert set(summary["inputs"]) == {"frames", "vocab", "init", "init_decoder"}
    assert (summary["init"]["unused"], summary["init"]["fresh"]) == ([], [])
    old, new = (VideoTokenizer.from_pretrained(str(p)) for p in (root / "tokenizer", tmp_path / "tokenizer"))
    assert torch.allclose(old.quantizer.codebook, new.quantizer.codebook, atol=1e-6)
    with pytest.raises(CheckpointError, match="holds a 'evilm'; installed video tokenizers are evilm_tokenizer"):
        train_tokenizer(config.model_copy(update={"init": str(root / "model")}))
