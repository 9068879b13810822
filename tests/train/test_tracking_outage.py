"""A training whose MLflow server is not there, comes, is killed and comes back: no step and no metric is lost."""

import json
import threading
from pathlib import Path

import pytest

from evilm.train.attempts import attempts
from helpers.faults import train
from helpers.mlflow_server import Server, wait_for
from helpers.workflow import Workflow, losses


@pytest.mark.long
@pytest.mark.faults
def test_mlflow_outages_lose_no_metric(small_workflow: Workflow, unbroken: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out, server = tmp_path / "model", Server(tmp_path)
    told: list[int] = []

    def sent() -> int:
        files = list(out.glob("metrics.jsonl.*.sent"))
        return int(files[0].read_text() or 0) if files else 0

    def play() -> None:
        """The server's part, while the training waits before its steps 5 and 11."""
        at = [Path(f"{out}.faults.json.{fault}") for fault in range(2)]
        wait_for(Path(f"{at[0]}.here").exists)
        assert not (out / "mlflow.json").exists()
        server.start()
        wait_for(lambda: sent() == (out / "metrics.jsonl").stat().st_size)
        server.kill()
        Path(f"{at[0]}.go").touch()
        wait_for(Path(f"{at[1]}.here").exists)
        told.append(sent())
        server.start()
        Path(f"{at[1]}.go").touch()

    player = threading.Thread(target=play, daemon=True)
    player.start()
    try:
        settings = {"tracking.uri": server.uri, "tracking.log_model": False}
        train(small_workflow, out, (0, 4, "wait"), (0, 10, "wait"), **settings)
        player.join()
        assert told, "the server came and went as planned"
        assert told[0] < (out / "metrics.jsonl").stat().st_size
        client = MlflowClient(tracking_uri=server.uri)
        run = client.get_run(json.loads((out / "mlflow.json").read_text())["run_id"])
        assert run.info.status == "FINISHED"
        assert len(attempts(str(out))) == 1, "no failure"
        assert losses(out) == losses(unbroken), "no step lost"
        for name in ("loss", "mlm_loss", "vtm_loss", "mvm_loss", "mvm_accuracy", "grad_norm", "lr"):
            points = client.get_metric_history(run.info.run_id, f"train/{name}")
            assert [(p.step, p.value) for p in points] == [
                (step, values[f"train/{name}"]) for step, values in losses(unbroken).items()
            ]
        assert run.data.params["schedule.batch_clips"] == "4"
        assert run.inputs
        assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"frames", "codes", "vocab", "tokenizer"}
    finally:
        server.kill()
