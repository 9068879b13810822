"""The best or the last step of a training is published; checkpoints load as models."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evilm
from evilm.errors import CheckpointError, ConfigError
from evilm.model.identity import model_fingerprint
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.tasks.pretrain import pretrain
from evilm.tasks.training_run import TrainingRun
from evilm.train.checkpoint_manager import newest_first
from helpers.workflow import Workflow, small_pretrain

pytestmark = pytest.mark.long
# Of the val split's codes, so all evaluations have the same value, and the first one is the best.
_FIRST = {"schedule.max_steps": 8, "schedule.keep_best": "mvm_chance", "optim.ema_decay": 0.5}
_NOISE = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def first_is_best(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A pre-training of 8 steps, evaluated at steps 4 and 8, that has published step 4. Copy it, don't change it."""
    out = tmp_path_factory.mktemp("best") / "model"
    return out, pretrain(small_pretrain(small_workflow[0], out=str(out), export="best", **_FIRST))


def test_export_publishes_the_best_or_the_last_step(
    small_workflow: Workflow, first_is_best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, (made, best) = small_workflow[0], first_is_best
    assert best["steps"] == 8
    assert best["published"] == {"export": "best", "step": 4, "checkpoint": "step_00000004-001"}
    out = shutil.copytree(made.parent, tmp_path / "run") / "model"
    card = (out / "README.md").read_text()
    assert "after 4 steps of up to 16 clips each, the best of 8 by `mvm_chance`" in card
    kept = {p: p.stat().st_mtime_ns for p in (out / "checkpoints").rglob("*") if p.is_file()}
    weights = {"best": (out / "model.safetensors").read_bytes()}
    for export, step in (("last", 8), ("best", 4)):
        config = small_pretrain(root, out=str(out), export=export, **_FIRST)
        summary = pretrain(config)
        assert (summary["published"]["export"], summary["published"]["step"]) == (export, step)
        state = json.loads((out / "checkpoints" / summary["published"]["checkpoint"] / "state.json").read_text())
        assert summary["val"] == state["val"], "the figures are those of the published step"
        assert summary["fingerprint"] == model_fingerprint(str(out))
        weights.setdefault(export, (out / "model.safetensors").read_bytes())
        assert (out / "model.safetensors").read_bytes() == weights[export]
        assert pretrain(config)["reused"] is True
    assert weights["best"] != weights["last"]
    assert summary["fingerprint"] == best["fingerprint"]
    assert kept == {p: p.stat().st_mtime_ns for p in (out / "checkpoints").rglob("*") if p.is_file()}
    assert (out / "README.md").read_text() == card


def test_missing_checkpoint_of_the_exported_step_is_named(
    small_workflow: Workflow, first_is_best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(first_is_best[0].parent, tmp_path / "run") / "model"
    shutil.rmtree(out / "checkpoints" / "step_00000008-001")
    with pytest.raises(CheckpointError, match=r"--export last: the checkpoint of step 8 is not in .* any more"):
        pretrain(small_pretrain(small_workflow[0], out=str(out), export="last", **_FIRST))
    assert json.loads((out / "summary.json").read_text())["published"]["step"] == 4, "nothing was changed"


def test_best_step_by_another_metric_is_rejected(
    small_workflow: Workflow, first_is_best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = shutil.copytree(first_is_best[0].parent, tmp_path / "run") / "model"
    config = small_pretrain(small_workflow[0], out=str(out), export="best", **_FIRST | {"schedule.keep_best": "loss"})
    with pytest.raises(ConfigError, match=r"best step of .* was chosen by mvm_chance, not by loss"):
        pretrain(config)


def test_kept_checkpoints_load_as_models(small_workflow: Workflow, first_is_best: tuple[Path, dict[str, Any]]) -> None:
    out, best = first_is_best
    names = newest_first(str(out))
    assert names == ["step_00000008-001", "step_00000004-001"]
    videos, captions = list(_NOISE), ["a red ball", "a star"]
    scores = [evilm.EViLM.from_pretrained(out / "checkpoints" / name).match(videos, captions) for name in names]
    published = evilm.EViLM.from_pretrained(out).match(videos, captions)
    assert np.array_equal(scores[1], published)
    assert not np.array_equal(scores[0], published)
    assert model_fingerprint(str(out / "checkpoints" / names[1])) == best["fingerprint"]
    suffixes = {p.suffix for p in (out / "checkpoints").glob("step_*/**/*") if p.is_file()}
    assert suffixes == {".safetensors", ".json", ".txt"}, "nothing is pickled"


def test_kept_tokenizer_checkpoints_load_as_tokenizers(small_workflow: Workflow) -> None:
    root, _ = small_workflow
    place = root / "tokenizer" / "checkpoints"
    newest, *others = newest_first(str(root / "tokenizer"))
    tokenizer = VideoTokenizer.from_pretrained(str(place / newest))
    published = VideoTokenizer.from_pretrained(str(root / "tokenizer"))
    assert tokenizer.fingerprint() == published.fingerprint()
    assert others
    assert all(VideoTokenizer.from_pretrained(str(place / name)).decoder is not None for name in others)


def test_damaged_or_foreign_checkpoint_is_rejected_in_one_line(
    small_workflow: Workflow, first_is_best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root = small_workflow[0]
    newest = newest_first(str(root / "tokenizer"))[0]
    with pytest.raises(CheckpointError, match="it holds a video tokenizer, not an E-ViLM model") as raised:
        evilm.EViLM.from_pretrained(root / "tokenizer" / "checkpoints" / newest)
    assert "\n" not in str(raised.value)
    damaged = shutil.copytree(first_is_best[0] / "checkpoints" / "step_00000008-001", tmp_path / "damaged")
    data = (damaged / "ema.safetensors").read_bytes()
    (damaged / "ema.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"ema\.safetensors has another SHA-256 than when it was written"):
        evilm.EViLM.from_pretrained(damaged)
    (damaged / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing; use another checkpoint"):
        evilm.EViLM.from_pretrained(damaged)


def test_exporting_the_best_step_needs_evaluations(
    small_workflow: Workflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = small_workflow
    for name, value in (("eval_clips", 0), ("keep_best", "")):
        with pytest.raises(ConfigError, match=f"needs evaluations, but schedule.{name} = {value!r}; use --export last"):
            small_pretrain(root, out=str(tmp_path / "model"), export="best", **{f"schedule.{name}": value})
    config = small_pretrain(root, out=str(tmp_path / "model"), export="best")
    training = TrainingRun(config, "pretrain", "", str(tmp_path / "model"), {}, evilm.EViLM.from_pretrained, dict)
    with pytest.raises(ConfigError, match="clips has nothing of the split val; use --export last"):
        training.open("clips", 64, 0)
    assert not (tmp_path / "model").exists()
    last = dataclasses.replace(training, config=config.override({"export": "last"}))
    with last.open("clips", 64, 0):
        assert "has nothing of the split val: nothing is evaluated, and the last step is published" in caplog.text
