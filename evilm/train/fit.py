"""Ray Train around the loop: scaling, failures, storage, and one MLflow run from start to end."""

import logging
import time
from pathlib import Path
from typing import Any

from evilm import storage
from evilm.config.runs import Door
from evilm.config.train import ClusterConfig
from evilm.data.cluster import connect
from evilm.errors import ClusterError, EvilmError
from evilm.train.figure import draw_losses
from evilm.train.loop import WorkerSpec, train_worker
from evilm.train.tracking import METRICS_FILE, close_run, fail_run, open_run, tracking_uri

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


def fit(config: Any, door: str, task: str, out: str, inputs: dict[str, str]) -> dict[str, Any]:
    """Train `task` under Ray Train until it is done, through worker failures.

    Args:
        config: the door's settings.
        door: its name, also the MLflow experiment.
        task: `module:function` that builds the task in each worker.
        out: output folder, claimed by `open_output`.
        inputs: fingerprints of the inputs.

    Returns:
        The final metrics of train and val, steps and seconds.

    Raises:
        ClusterError: the training failed more often than `cluster.max_failures` allows, or for a reason of its own.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    began = time.monotonic()
    cluster: ClusterConfig = config.cluster
    connect(min_cpus=cluster.num_workers * cluster.cpus_per_worker)
    run_id = open_run(config, door, out, inputs)
    spec = WorkerSpec(
        task=task,
        settings=config.model_dump(mode="json") | {"out": out},
        out=out,
        run_id=run_id,
        tracking_uri=tracking_uri(config, out),
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=spec.__dict__,
        scaling_config=_scaling(cluster),
        run_config=_storage(out, cluster, config.schedule.keep_checkpoints),
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.train.ControllerError, ray.train.WorkerGroupError) as error:
        fail_run(config, out, run_id)
        raise ClusterError(f"training failed: {_reason(error)}; run the same command again to continue") from error
    returned = dict(result.return_value or {})
    if "error" in returned:
        fail_run(config, out, run_id)
        raise EvilmError(returned["error"])
    summary = returned | {"seconds": round(time.monotonic() - began, 1)}
    finish_tracking(config, out, run_id, summary)
    return summary


def finish_tracking(config: Door, out: str, run_id: str, summary: dict[str, Any]) -> None:
    """Draw the losses beside the metrics file, and close the MLflow run with them."""
    figures: dict[str, Path] = {}
    if storage.is_local(out):
        folder = Path(storage.absolute(out))
        figures["figures"] = draw_losses(folder / METRICS_FILE, folder / "losses.png")
    close_run(config, out, run_id, summary, figures)


def _scaling(cluster: ClusterConfig) -> Any:
    import ray.train

    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ray.train.ScalingConfig(
        num_workers=cluster.num_workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
    )


def _storage(out: str, cluster: ClusterConfig, keep: int) -> Any:
    """Checkpoints below the output folder; the same name again means: continue there."""
    import pyarrow.fs
    import ray.train

    fs, path = storage.resolve(storage.absolute(out))
    remote = (
        {} if storage.is_local(out) else {"storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}
    )
    return ray.train.RunConfig(
        name=CHECKPOINTS,
        storage_path=path,
        failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=keep),
        **remote,
    )


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; Ray wraps it several times."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]
