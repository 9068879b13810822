"""A finished training that is continued with more steps, and what may change between its starts."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import ConfigError
from evilm.tasks.pretrain import pretrain
from evilm.train.checkpoint_manager import newest_first
from helpers.workflow import Workflow, losses, small_pretrain


@pytest.fixture(scope="module")
def seven_steps(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a pre-training of 7 of the 20 steps, never evaluated. Copy it, don't change it."""
    root, out = small_workflow[0], tmp_path_factory.mktemp("seven") / "model"
    summary = pretrain(small_pretrain(root, out=str(out), **{"schedule.max_steps": 7, "schedule.eval_clips": 0}))
    assert summary["steps"] == 7
    assert not summary["val"]
    return out


@pytest.fixture
def out(seven_steps: Path, tmp_path: Path) -> Path:
    """A copy of the training of 7 steps."""
    shutil.copytree(seven_steps.parent, tmp_path / "run")
    return tmp_path / "run" / "model"


@pytest.mark.long
def test_continued_training_equals_an_uninterrupted_one(
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
    steps = [pretrain(small_pretrain(root, out=str(out), **values))["steps"] for values in stops]
    assert steps == [7, 9, 20]
    assert losses(out) == losses(root / "model"), "neither the stops nor the evaluations change a step"
    assert (out / "model.safetensors").read_bytes() == (root / "model" / "model.safetensors").read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["val"] == unbroken["val"]
    assert summary["fingerprint"] == unbroken["fingerprint"]
    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("evilm").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FINISHED"
    assert run.data.tags["evilm.made"] == unbroken["fingerprint"]
    assert len(client.get_metric_history(run.info.run_id, "train/mvm_loss")) == 20
    versions = client.search_model_versions("name='evilm'")
    assert len(versions) == 3, "each end publishes its model"


@pytest.mark.long
def test_fewer_steps_than_trained_reuse_the_output(
    small_workflow: Workflow, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = small_workflow
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and "mlflow" not in p.name}
    with caplog.at_level(logging.INFO, "evilm"):
        summary = pretrain(small_pretrain(root, out=str(out), **{"schedule.max_steps": 5}))
    assert (summary["steps"], summary["reused"]) == (7, True)
    assert f"{out} ended at step 7, beyond the requested 5" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.long
def test_training_without_checkpoints_cannot_be_continued(small_workflow: Workflow, out: Path) -> None:
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ConfigError, match=r"can't be continued to step 20: .*checkpoints is empty") as raised:
        pretrain(small_pretrain(small_workflow[0], out=str(out)))
    assert "\n" not in str(raised.value)
    assert (out / "summary.json").exists(), "nothing was changed"


@pytest.mark.long
def test_lost_weights_are_written_again_from_the_checkpoint(small_workflow: Workflow, out: Path) -> None:
    config = small_pretrain(small_workflow[0], out=str(out), **{"schedule.max_steps": 7, "schedule.eval_clips": 0})
    weights = out / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert not pretrain(config).get("reused")
    assert weights.read_bytes() == before
    weights.unlink()
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ConfigError, match=r"has lost model\.safetensors, and .*checkpoints is empty; .*--overwrite"):
        pretrain(config)
    with pytest.raises(ConfigError, match="has lost"):  # it was given up
        pretrain(config)


@pytest.mark.long
def test_training_interrupted_after_its_last_step_is_evaluated_and_published(
    small_workflow: Workflow, out: Path
) -> None:
    (out / "summary.json").unlink()  # as if it was interrupted there
    state = {p: json.loads(p.read_text()) for p in (out / "checkpoints").glob("step_00000007-*/state.json")}
    ((place, kept),) = state.items()
    _rewrite(place, kept | {"ended": -1})
    summary = pretrain(small_pretrain(small_workflow[0], out=str(out), **{"schedule.max_steps": 6}))
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
