"""The same training twice: the second is rejected, or takes over from a machine that hangs."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from evilm.io import ownership, storage
from evilm.io.outputs import SUMMARY
from evilm.model.evilm_model import EViLMModel
from evilm.tracking.metrics_file import parse_points
from evilm.train.checkpoint_manager import newest_first
from helpers.commands import finish, start, wait_for
from helpers.mlflow_server import Server
from helpers.paths import SMALL
from helpers.workflow import Workflow

_EPOCHS = 500


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A real MLflow server."""
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.long
@pytest.mark.faults
def test_second_training_is_rejected_or_takes_over(
    small_workflow: Workflow, out_uri: str, tmp_path: Path, server: Server
) -> None:
    from mlflow import MlflowClient

    root, out = small_workflow[0], f"{out_uri}/model"
    flags = [f"--{name}={root / name}" for name in ("frames", "vocab", "tokenizer", "codes")]
    flags += ["--preset", str(SMALL), f"--out={out}", f"--schedule.epochs={_EPOCHS}", "--schedule.eval-clips=0"]
    flags += [f"--tracking.uri={server.uri}", "--tracking.no-log-model", "--schedule.checkpoint-every-steps=2"]

    def command(*more: str) -> subprocess.Popen[bytes]:
        return start("pretrain", *flags, *more, EVILM_HEARTBEAT_S="1")

    first = command()
    wait_for(lambda: len(newest_first(out)) > 1, first)
    again = command()
    said = again.communicate(timeout=300)[1].decode()
    assert again.returncode == 1
    assert said.splitlines()[-1].startswith(f"error: {out} is being written by process {first.pid} on ")
    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in processes:
        process.suspend()
    reached = int(newest_first(out)[0].split("_")[1].split("-")[0])
    second = command("--take-over", f"--schedule.max-steps={reached + 6}")
    wait_for(lambda: "00002.claim.json" in storage.list_names(f"{out}/_runs"), second)
    summary = finish(second)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    said = first.communicate(timeout=300)[1].decode()
    assert first.returncode == 1
    assert f"{out} was taken over by process {second.pid} on " in said
    assert summary["steps"] == reached + 6 == ownership.published(out, SUMMARY)["steps"]
    assert newest_first(out)[0].startswith(f"step_{reached + 6:08d}")
    points = parse_points(storage.read_bytes(f"{out}/metrics.jsonl"))
    steps = [point["step"] for point in points if "train/loss" in point["metrics"]]
    assert steps == list(range(1, reached + 7)), "each step once"
    EViLMModel.from_pretrained(out)
    run = MlflowClient(server.uri).get_run(json.loads(storage.read_bytes(f"{out}/mlflow.json"))["run_id"])
    assert run.info.status == "FINISHED", "the run that was taken over does not open it again, or fail it"
