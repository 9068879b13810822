"""A finished training that is continued with more steps, and what may change between its starts."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from faults import SMALL, losses

from evilm.config.presets import defaults
from evilm.config.stages import Pretrain, Sweep, TrainTokenizer
from evilm.config.training import ScheduleConfig
from evilm.errors import ConfigError
from evilm.tasks.pretrain import pretrain
from evilm.train.checkpoint_manager import newest_first
from evilm.train.progress import Progress
from evilm.train.validation import note_best

Workflow = tuple[Path, dict[str, Any]]


def _config(root: Path, out: Path, **values: Any) -> Pretrain:
    """The small pre-training on the inputs of a finished workflow."""
    config = defaults("pretrain", str(SMALL)).override({"root": str(root), "out": str(out)} | values)
    assert isinstance(config, Pretrain)
    return config


@pytest.fixture(scope="module")
def seven_steps(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a pre-training of 7 of the 20 steps, never evaluated. Copy it, don't change it."""
    root, out = small_workflow[0], tmp_path_factory.mktemp("seven") / "model"
    summary = pretrain(_config(root, out, **{"schedule.max_steps": 7, "schedule.eval_clips": 0}))
    assert summary["steps"] == 7
    assert not summary["val"]
    return out


@pytest.fixture
def out(seven_steps: Path, tmp_path: Path) -> Path:
    """A copy of the training of 7 steps."""
    shutil.copytree(seven_steps.parent, tmp_path / "run")
    return tmp_path / "run" / "model"


@pytest.mark.long
def test_a_continued_training_equals_an_unbroken_one(
    small_workflow: Workflow, seven_steps: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    root, unbroken = small_workflow
    out = tmp_path / "run" / "model"  # the run's own MLflow store lies beside it
    stops: list[dict[str, Any]] = [
        {"schedule.max_steps": 7, "schedule.eval_clips": 0},
        {"schedule.max_steps": 9, "schedule.eval_clips": 4, "schedule.eval_every_epochs": 0.25},
        {},
    ]
    steps = [pretrain(_config(root, out, **values))["steps"] for values in stops]
    assert steps == [7, 9, 20]
    assert losses(out) == losses(root / "model"), "neither the stops nor the evaluations change a step"
    assert (out / "model.safetensors").read_bytes() == (root / "model" / "model.safetensors").read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["val"] == unbroken["val"]
    assert summary["fingerprint"] == unbroken["fingerprint"]
    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pretrain").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["summary/steps"] == 20
    assert run.data.tags["evilm.made"] == unbroken["fingerprint"]
    assert len(client.get_metric_history(run.info.run_id, "train/mvm_loss")) == 20
    versions = client.search_model_versions("name='evilm'")
    assert len(versions) == 3, "each end publishes its model"


@pytest.mark.long
def test_fewer_steps_reuse_what_was_trained(
    small_workflow: Workflow, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = small_workflow
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and "mlflow" not in p.name}
    monkeypatch.setattr(logging.getLogger("evilm"), "propagate", True)
    with caplog.at_level(logging.INFO, "evilm"):
        summary = pretrain(_config(root, out, **{"schedule.max_steps": 5}))
    assert (summary["steps"], summary["reused"]) == (7, True)
    assert f"{out} ended at step 7, beyond the 5 asked for" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.long
def test_a_training_without_checkpoints_is_not_trained_again_from_the_start(
    small_workflow: Workflow, out: Path
) -> None:
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ConfigError, match=r"can't be continued to step 20: .*checkpoints is empty") as raised:
        pretrain(_config(small_workflow[0], out))
    assert "\n" not in str(raised.value)
    assert (out / "summary.json").exists(), "nothing was changed"


@pytest.mark.long
def test_an_unfinished_training_behind_the_last_step_is_evaluated_and_published(
    small_workflow: Workflow, out: Path
) -> None:
    (out / "summary.json").unlink()  # as if it was interrupted there
    state = {p: json.loads(p.read_text()) for p in (out / "checkpoints").glob("step_00000007-*/state.json")}
    ((place, kept),) = state.items()
    _rewrite(place, kept | {"ended": -1})
    summary = pretrain(_config(small_workflow[0], out, **{"schedule.max_steps": 6}))
    assert summary["steps"] == 7
    assert summary["val"]["loss"] > 0
    assert summary["best"]["checkpoint"] == newest_first(str(out))[0] == "step_00000007-002"


def _rewrite(place: Path, state: dict[str, Any]) -> None:
    """Change the state of a checkpoint, with its digest."""
    import hashlib

    text = json.dumps(state, sort_keys=True)
    place.write_text(text)
    digests = json.loads((place.parent / "digests.json").read_text())
    digests["files"]["state.json"] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    (place.parent / "digests.json").write_text(json.dumps(digests))


class _Feed:
    wait_s = 0.0


def test_a_point_at_the_last_step_leaves_the_next_one_as_it_is() -> None:
    unbroken, stopped = Progress(9, 4, 0), Progress(3, 4, 0)
    loader: Any = _Feed()
    for progress in (unbroken, stopped):
        for loss in (1.0, 2.0, 6.0):
            progress.add({"loss": loss})
    assert stopped.flush(3, loader, keep=True)["loss"] == 3.0
    continued = Progress(9, 4, 3, json.loads(json.dumps(stopped.state)))
    for progress in (unbroken, continued):
        progress.add({"loss": 11.0})
    assert continued.flush(4, loader)["loss"] == unbroken.flush(4, loader)["loss"] == 5.0
    assert continued.state == {"sums": {}, "count": 0}


def test_the_best_is_by_one_metric_over_the_same_clips() -> None:
    schedule = ScheduleConfig(eval_clips=8)
    first = note_best({}, {"loss": 2.0, "match_auc": 0.6}, schedule, 4, 1)
    assert (first["checkpoint"], first["value"], first["step"]) == ("step_00000004-001", 2.0, 4)
    assert note_best(first, {"loss": 3.0}, schedule, 8, 1) == {}
    assert note_best(first, {"loss": 1.0}, schedule, 8, 2)["checkpoint"] == "step_00000008-002"
    more_clips = schedule.model_copy(update={"eval_clips": 16})
    assert note_best(first, {"loss": 3.0}, more_clips, 8, 1)["value"] == 3.0
    other = schedule.model_copy(update={"keep_best": "match_auc"})
    assert note_best(first, {"loss": 3.0, "match_auc": 0.5}, other, 8, 1)["value"] == 0.5


def test_identity_leaves_out_how_far_a_training_goes() -> None:
    length = {"schedule.max_steps": 7, "schedule.eval_clips": 0, "schedule.eval_every_epochs": 0.5}
    for config in (Pretrain(), TrainTokenizer()):
        assert config.override(length).identity == config.identity
        assert config.override({"schedule.epochs": 3}).identity != config.identity
    assert Sweep().override(length).identity != Sweep().identity, "trials are compared by their evaluations"
