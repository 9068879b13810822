"""One LoggedModel of MLflow per published model, with the scores of its benchmarks, each linked to its data set.

mlflow.search_logged_models(
    order_by=[{"field_name": "metrics.accuracy", "ascending": False, "dataset_name": "msvd-qa-test"}]
)
"""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evilm.config.base import fingerprint
from evilm.config.stages import Benchmark
from evilm.tracking.experiment import STAGE, TASK
from evilm.tracking.lineage import MADE
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.run_file import read_run_file, write_run_file

if TYPE_CHECKING:
    from evilm.tracking.mlflow_run import TrackedRun

_QUOTED = ("'", '"', "\\")


def model_tags(run: "TrackedRun", summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that a LoggedModel is found by."""
    tags = {MADE: str(summary["fingerprint"]), STAGE: run.tags[STAGE], "evilm.out": run.out}
    return tags | ({TASK: str(summary["task"])} if summary.get("task") else {})


def log_reference(client: Any, run: "TrackedRun", run_id: str, summary: Mapping[str, Any]) -> str:
    """Log a published model without its files, which stay in the output folder; return the LoggedModel's id.

    `summary` is that of the training, with the model's `fingerprint`.
    """
    from mlflow.entities import LoggedModelOutput

    if found := find_model(client, str(summary["fingerprint"])):
        return found
    stage, tags = run.tags[STAGE], model_tags(run, summary)
    name = {"pretrain": "evilm", "train_tokenizer": "evilm-tokenizer"}.get(stage, f"evilm-{tags.get(TASK, stage)}")
    experiment = client.get_run(run_id).info.experiment_id
    model_id = str(client.create_logged_model(experiment, name, run_id, tags, model_type=stage).model_id)
    client.finalize_logged_model(model_id, "READY")
    step = int((summary.get("published") or {}).get("step", summary.get("steps", 0)))
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def find_model(client: Any, fingerprint_: str) -> str:
    """Return the id of the newest LoggedModel of a model in this store; '' if it has none."""
    if not fingerprint_ or any(sign in fingerprint_ for sign in _QUOTED):
        return ""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    wanted = f"tags.`{MADE}` = '{fingerprint_}'"
    found = client.search_logged_models(experiments, wanted, max_results=1, order_by=newest)
    return str(found[0].model_id) if found else ""


def scored_data(config: Benchmark, summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and digest of the data set of a benchmark; scores of the same digest can be compared.

    Scores on videos that the model may have been trained on have a data set of another name.
    """
    split, inputs, task = str(summary["split"]), summary["inputs"], summary.get("task")
    if task:
        marks = ["embedded"] * bool(summary.get("embedded")) + ["leaked"] * (summary.get("leak") is not False)
        return "-".join([str(task), split, *marks]), fingerprint([inputs["items"], inputs["frames"], split])
    facts = {name: summary.get(name) for name in ("split", "num_clips", "num_captions", "num_choices")}
    facts |= {"frames": inputs["frames"], "seed": config.seed, "max_clips": config.max_clips}
    return f"zero-shot-{split}", fingerprint(facts)


def log_scores(run: "TrackedRun", config: Benchmark, summary: Mapping[str, Any]) -> None:
    """Log the scores of a recorded benchmark, once, linked to the LoggedModel of its model and to its data set."""
    with suppress_tracking_errors("log the scores; the same command tries again"):
        from mlflow import MlflowClient
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric

        known, client = read_run_file(run.out, run.uri), MlflowClient(tracking_uri=run.uri)
        if "scored" in known:
            return
        model, run_id = str(summary["inputs"]["model"]), known["run_id"]
        model_id = find_model(client, model) or _add_unknown(client, run_id, model, str(summary.get("model", "")))
        name, digest = scored_data(config, summary)
        source = json.dumps({"uri": run.inputs.get("frames", ("", ""))[1]})
        data = DatasetInput(Dataset(name, digest, "local", source), [InputTag("mlflow.data.context", "evaluation")])
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)], datasets=[data])
        now, values = int(time.time() * 1000), {n: float(f["value"]) for n, f in dict(summary["metrics"]).items()}
        client.log_batch(run_id, [Metric(n, v, now, 0, model_id, name, digest) for n, v in values.items()])
        write_run_file(run.out, read_run_file(run.out, run.uri) | {"scored": model_id})


def _add_unknown(client: Any, run_id: str, model: str, place: str) -> str:
    """Log a model that was trained elsewhere, so that its scores can be compared."""
    experiment = client.get_run(run_id).info.experiment_id
    added = client.create_logged_model(experiment, "evilm", None, {MADE: model, "evilm.out": place})
    client.finalize_logged_model(added.model_id, "READY")
    return str(added.model_id)
