"""Ray Train around the loop: scaling, failures, storage, and one MLflow run from start to end."""

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evilm.cluster import connect
from evilm.config.resources import ClusterConfig
from evilm.console import announce
from evilm.errors import ClusterError, EvilmError, NonFiniteError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.io.text_table import count_of
from evilm.shards import pinned
from evilm.tracking.loss_figure import draw_losses
from evilm.tracking.metrics_file import METRICS_FILE
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.mlflow_run import TrackedRun, close_run, describe_run, end_on_error, is_kept, open_run
from evilm.tracking.mlflow_uploader import MlflowUploader
from evilm.train import preemption
from evilm.train.attempts import attempts
from evilm.train.checkpoint_manager import CHECKPOINTS, forget_registry
from evilm.train.task import WorkerSpec
from evilm.train.trainer import train_worker

logger = logging.getLogger(__name__)


def fit(
    config: Any,
    stage: str,
    task: str,
    output: Output,
    made: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Train `task` under Ray Train until it is done, through worker failures.

    Args:
        task: name in `TASKS` of what builds the task in each worker.
        output: the folder of the model, claimed.
        made: gets the result of the training once the model is written, and returns more fields of the summary.

    Returns:
        The summary: the fields of `made`, the final metrics of train and val, steps and seconds.

    Raises:
        ClusterError: the training failed more often than `cluster.max_failures` allows, or for a reason of its own.
        OwnershipError: another run has taken the folder over.
        Stopped: somebody asked for an end by SIGINT or SIGTERM; the last step done is kept.
    """
    import ray.train

    began, out, inputs = time.monotonic(), output.out, output.inputs
    cluster: ClusterConfig = config.cluster
    connect(min_cpus=cluster.num_workers * cluster.cpus_per_worker)
    run = open_run(config, stage, out, inputs, output.run)
    with end_on_error(run), _announce_start(cluster, out):
        output.check()
        settings = config.model_dump(mode="json") | {"out": out} | _pins(config, inputs)
        forget_registry(out)
        trainer = _trainer(WorkerSpec(task=task, settings=settings, out=out, run=output.run, tracked=run), cluster)
        try:
            returned = preemption.run_until_asked(lambda: dict(trainer.fit().return_value or {}), out, output.run)
        except (ray.train.TrainingFailedError, ray.train.ControllerError, ray.train.WorkerGroupError) as error:
            output.check()
            raise ClusterError(f"training failed: {_reason(error)}; run the same command again to continue") from error
        output.check()
        if "error" in returned:
            raise (NonFiniteError if returned.get("not_finite") else EvilmError)(returned["error"])
        summary = returned | made(returned) | {"seconds": round(time.monotonic() - began, 1)}
    finish_tracking(config, run, summary)
    return summary


def _trainer(spec: WorkerSpec, cluster: ClusterConfig) -> Any:
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        train_worker,
        train_loop_config=spec.__dict__,
        torch_config=preemption.torch_config(cluster),
        scaling_config=_scaling(cluster),
        run_config=_storage(spec.out, cluster),
    )


def _announce_start(cluster: ClusterConfig, out: str) -> AbstractContextManager[None]:
    """Log every ten seconds that workers are being waited for, until they begin."""
    before = len(attempts(out))
    number, kind = (cluster.gpus_per_worker, "GPU") if cluster.gpus_per_worker else (cluster.cpus_per_worker, "CPU")
    what = f"waiting for {count_of(cluster.num_workers, 'training worker')} with {number:g} {kind}{'s'[: number != 1]}"
    return announce(what, lambda: len(attempts(out)) > before)


def finish_tracking(config: Any, run: TrackedRun | None, summary: dict[str, Any]) -> None:
    """Send what is left of the metrics, draw the losses beside them, and close the MLflow run.

    A run that lacks metrics stays open, for the same command to bring them (`catch_up`).
    """
    out = run.out if run else storage.absolute(config.out)
    metrics, figure = storage.join(out, METRICS_FILE), storage.join(out, "losses.png")
    again = "send all metrics; the same command sends them, once the server answers"
    with end_on_error(run), suppress_tracking_errors(again):
        with tempfile.TemporaryDirectory(prefix="evilm-") as folder:  # the uploader notes beside it what it has sent
            path = Path(metrics) if storage.is_local(metrics) else Path(folder) / METRICS_FILE
            if storage.exists(metrics):
                if not storage.is_local(metrics):
                    storage.get_file(metrics, str(path))
                MlflowUploader(run, path).ship()
                storage.write_bytes(figure, draw_losses(path))
        close_run(run, config, summary, {"figures": [figure] if storage.exists(figure) else []})


def catch_up(config: Any, stage: str, out: str, summary: dict[str, Any]) -> None:
    """Bring a finished training to MLflow that could not be brought there while it ran; nothing where it is there."""
    run = describe_run(config, stage, out, dict(summary.get("inputs", {})))
    if run and not is_kept(run):
        finish_tracking(config, run, summary)


def _scaling(cluster: ClusterConfig) -> Any:
    import ray.train

    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    elastic = 0 < cluster.min_workers < cluster.num_workers
    return ray.train.ScalingConfig(
        num_workers=(cluster.min_workers, cluster.num_workers) if elastic else cluster.num_workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=cluster.resize_every_s,
    )


def _storage(out: str, cluster: ClusterConfig) -> Any:
    """Configure checkpoints below the output folder; Ray keeps all, as `CheckpointManager` decides which are kept."""
    import pyarrow.fs
    import ray.train

    fs, path = storage.resolve(storage.absolute(out))
    remote = (
        {} if storage.is_local(out) else {"storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}
    )
    return ray.train.RunConfig(
        name=CHECKPOINTS,
        storage_path=path,
        logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # for the console; Ray's log files have all
        failure_config=ray.train.FailureConfig(
            max_failures=cluster.max_failures,
            max_preemption_failures=cluster.max_preemptions,
            preemption_grace_s=cluster.preemption_grace_s,
            # Rank 0 alone writes checkpoints, so in that time none lacks what a worker that is gone had of it.
            relax_collectives_on_preemption=cluster.preemption_grace_s > 0,
        ),
        **remote,
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line; Ray wraps it several times."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]


def _pins(config: Any, inputs: dict[str, str]) -> dict[str, str]:
    """Pin the current shards, for workers that start after more were added."""
    places = {name: getattr(config, name) for name in ("frames", "codes") if getattr(config, name, "")}
    return {name: pinned(place, inputs[name]) for name, place in places.items() if name in inputs}
