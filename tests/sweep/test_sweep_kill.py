"""A whole sweep as its own process, killed in the middle and started again."""

import json
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from evilm.config.command_line import parse
from evilm.config.presets import defaults
from evilm.sweep.run_sweep import sweep
from evilm.tasks.pretrain import pretrain
from evilm.train.attempts import attempts
from helpers.commands import kill, start, wait_for
from helpers.gates import Gate
from helpers.paths import SMALL
from helpers.workflow import Workflow

# Two minutes on idle cores; much slack for busy ones.
pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.timeout(1500)]


@pytest.fixture
def frames(small_workflow: Workflow, s3_bucket: str) -> str:
    """The frames of the small workflow in the store, whose answers a gate can withhold."""
    s3fs.S3FileSystem().put(f"{small_workflow[0]}/frames/", f"{s3_bucket}/frames/", recursive=True)
    return f"{s3_bucket}/frames"


def test_killed_sweep_continues_and_its_best_preset_repeats_the_model(
    small_workflow: Workflow, frames: str, store_gate: Gate, tmp_path: Path
) -> None:
    root, _ = small_workflow
    places = [f"--frames={frames}", *(f"--{name}={root / name}" for name in ("vocab", "tokenizer", "codes"))]
    out, store = tmp_path / "sweep", f"sqlite:///{tmp_path / 'tracked.db'}"
    command = ["--preset", str(SMALL), *places, "--out", str(out), "--tracking.uri", store, "--seeds", "1"]
    command += ["--values", "0.25,0.5,0.75", "--concurrent", "1", "--reduction", "2"]
    command += ["--schedule.epochs", "4", "--schedule.checkpoint-every-steps", "2", "--cluster.cpus-per-worker", "1"]
    stage = "../tune/masking_ratio"

    trials = out / "trials"

    def in_the_middle() -> bool:
        """A trial has reached the first rung, and another one has a checkpoint."""
        ended = {path.parent for path in trials.glob("*/summary.json")}
        begun = {path.parents[1] for path in trials.glob("*/checkpoints/step_*-*")}
        return bool(ended) and bool(begun - ended)

    store_gate.shut(".parquet", once=in_the_middle)
    process = start(stage, *command)
    wait_for(store_gate.holds, process, timeout_s=900)
    second = start(stage, *command)  # the same sweep, submitted twice
    _, said = second.communicate(timeout=300)
    assert second.returncode == 1
    assert f"error: {out} is being written by process {process.pid} on " in said.decode()
    kill(process, and_workers=True)
    store_gate.open()
    ended = {path.parent: path.with_name("metrics.jsonl").read_bytes() for path in trials.glob("*/summary.json")}
    begun = {path.parents[1] for path in trials.glob("*/checkpoints/step_*-*")} - ended.keys()
    assert not (out / "summary.json").exists()

    process = start(stage, *command)
    said, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors.decode()[-3000:]
    summary = json.loads(said.decode().splitlines()[-1])
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["trials"] == {"done": 1, "stopped": 2, "failed": 0}
    assert summary["best"]["values"].keys() == {"objectives.mask_ratio"}
    _check_rungs(json.loads((out / "results.json").read_text())["settings"], killed=begun)
    assert all((trial / "metrics.jsonl").read_bytes().startswith(before) for trial, before in ended.items()), "reused"
    assert "match_auc" in errors.decode()
    assert all((out / name).stat().st_size for name in ("results.csv", "results.json", "sweep.png", "best.yaml"))
    _check_tracking(store, out, summary)

    assert sweep(parse("masking_ratio", command)) == summary | {"reused": True}
    _check_preset(summary, tmp_path / "model")


def _check_rungs(settings: list[dict[str, Any]], killed: set[Path]) -> None:
    """Three settings ran to the first rung, the best two of them to the second, and the best one of those to the end.

    Each rung was one start; a trial that was killed may have one more, from a checkpoint.
    """
    trials = [setting["trials"][0] for setting in settings]
    scores = [{e["step"]: e["match_auc"] for e in trial["evaluations"]} for trial in trials]
    assert [max(steps) for steps in scores] == [16, 8, 4], "the best first"
    assert scores[0][8] >= scores[1][8]
    assert scores[1][4] >= scores[2][4] <= scores[0][4]
    for trial, rungs in zip(trials, ([0, 4, 8], [0, 4], [0]), strict=True):
        begun = [each.start_step for each in attempts(trial["out"])]
        if Path(trial["out"]) in killed and begun != rungs:
            assert begun.pop(1) >= 2, "went on from a checkpoint, not from the start"
        assert begun == rungs


def _check_tracking(store: str, out: Path, summary: dict[str, Any]) -> None:
    """One parent that holds the space, and a run below it for each trial, however it ended."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert parent.data.params["space.objectives.mask_ratio"] == "[0.25, 0.5, 0.75]"
    assert parent.info.status == "FINISHED"
    assert parent.info.run_id == json.loads((out / "mlflow.json").read_text())["run_id"]
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "figure")} == {"figure/sweep.png"}
    states = {(run.data.tags["evilm.trial.state"], run.info.status) for run in children}
    assert states == {("done", "FINISHED"), ("stopped", "KILLED")}
    best = next(run for run in children if run.info.run_name == Path(summary["best"]["trial"]).name)
    assert best.data.metrics["val/match_auc"] == pytest.approx(summary["best"]["mean"])


def _check_preset(summary: dict[str, Any], out: Path) -> None:
    preset, best = summary["files"]["preset"], summary["best"]
    assert yaml.safe_load(Path(preset).read_text())["pretrain"]["objectives"]["mask_ratio"] in (0.25, 0.5, 0.75)
    config = defaults("pretrain", preset).override(best["inputs"] | {"out": str(out), "tracking.enabled": False})
    assert pretrain(config)["val"]["match_auc"] == best["mean"]  # type: ignore[arg-type]
    same = [(folder / "model.safetensors").read_bytes() for folder in (out, Path(best["trial"]))]
    assert same[0] == same[1]


@pytest.mark.parametrize("stage", ["codebook_size", "focal_loss"])
def test_sweep_killed_while_building_shared_inputs_builds_each_once(
    stage: str, small_workflow: Workflow, frames: str, store_gate: Gate, tmp_path: Path
) -> None:
    """codebook_size is killed in the middle of its second tokenizer, focal_loss in the middle of its second codes."""
    root, _ = small_workflow
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    swept = {"codebook_size": "codebook.num_codes: [16, 32]", "focal_loss": "focal.gamma_negative: [1, 2]"}[stage]
    space.write_text(f"train_tokenizer.arch.{swept}\n")
    command = ["--preset", str(SMALL), f"--frames={frames}", f"--vocab={root / 'vocab'}", "--root", str(tmp_path)]
    command += ["--out", str(out), "--space", str(space), "--seeds", "1", "--stopping", "none", "--concurrent", "1"]
    command += ["--tracking.no-enabled", "--schedule.epochs", "1", "--cluster.cpus-per-worker", "1"]
    command += ["--set", "train_tokenizer.schedule.checkpoint_every_steps=2"]
    command += ["--set", "precompute_codes.batch_clips=1"]
    begun = "tokenizer/checkpoints/step_*-*" if stage == "codebook_size" else "codes/*/commits/*.json"

    def second() -> Path | None:
        """The folder of the second value, once the part that is to be broken off has begun."""
        ended = {path.parents[1] for path in out.glob("shared/*/codes/summary.json")}
        at_work = {path for path in out.glob("shared/*") if any(path.glob(begun))} - ended
        return next(iter(at_work), None) if len(ended) == 1 else None

    store_gate.shut(".parquet", once=lambda: second() is not None)
    process = start(f"../tune/{stage}", *command)
    wait_for(store_gate.holds, process, timeout_s=600)
    kill(process, and_workers=True)
    store_gate.open()
    broken = second()
    assert broken
    (whole,) = [path for path in (out / "shared").iterdir() if path != broken]
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert not (broken / begun.split("/")[0] / "summary.json").exists()

    process = start(f"../tune/{stage}", *command)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]
    assert json.loads(said.decode().splitlines()[-1])["trials"]["done"] == 2
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before, "used as it was"
    shared = sorted(str(path) for path in (out / "shared").iterdir())
    assert [len(list(Path(path).glob("codes/*/manifest.json"))) for path in shared] == [1, 1]
    inputs = [json.loads(path.read_text())["inputs"] for path in (out / "trials").glob("*/summary.json")]
    assert len({given["tokenizer"] for given in inputs}) == len({given["codes"] for given in inputs}) == 2
    starts = attempts(str(broken / "tokenizer"))
    if stage == "codebook_size":
        assert [each.start_step > 0 for each in starts] == [False, True], "from a checkpoint"
    else:
        assert len(starts) == 1
    assert not list(tmp_path.glob("tokenizer*")), "nothing of one value at the place of all"
