"""Run the whole workflow in one call: the functions of all commands in order, each with its own resources."""

import logging
import time
from typing import Any

from evilm.config.stages import Benchmark, Pretrain, Report, RunAll
from evilm.errors import ConfigError, ShardError
from evilm.eval.benchmark import benchmark
from evilm.eval.report import report
from evilm.io import storage
from evilm.io.outputs import SUMMARY
from evilm.tasks.pretrain import pretrain
from evilm.tracking.track_run import track

logger = logging.getLogger(__name__)


def run_all(config: RunAll) -> dict[str, Any]:
    """Go from videos to scores: build missing inputs, pre-train, score, and print a table. Finished outputs are reused.

    Each stage requests the resources of its own section (`shard_videos.cluster`, `cluster`, `benchmark.cluster`),
    so an autoscaling cluster starts GPU nodes only when the tokenizer is trained.

    Returns:
        The summary: state and seconds of each stage, the model's and the benchmark's main figures.

    Raises:
        ConfigError, ShardError, ClusterError: raised by a stage; the same command continues from that stage.
    """
    began = time.monotonic()
    out = storage.absolute(config.out or storage.join(config.root, "all"))
    model = pretrain(_pretrain_settings(config))
    place = storage.absolute(storage.join(config.root, "model"))  # the summary of a moved root names the old one
    scores = _score(config, place)
    stages = report(Report(root=config.root))
    summary = {
        "out": out,
        "root": stages["root"],
        "model": {name: model.get(name) for name in ("parameters", "steps", "val", "inputs")} | {"out": place},
        "metrics": {name: figure["value"] for name, figure in scores["metrics"].items()},
        "num_clips": scores["num_clips"],
        "stages": stages["stages"],
        "reused": bool(model.get("reused") and scores.get("reused")),
        "seconds": round(time.monotonic() - began, 1),
    }
    storage.write_json(storage.join(out, SUMMARY), summary)
    return summary


def _pretrain_settings(config: RunAll) -> Pretrain:
    """Build the settings that `pretrain` would get from the same flags, except --out: the model is under the root."""
    return Pretrain.model_validate(config.model_dump(include=set(Pretrain.model_fields)) | {"out": ""})


def _score(config: RunAll, model: str) -> dict[str, Any]:
    """Score the model zero-shot on the frames of its training."""
    given = config.benchmark
    settings = dict(given) | {
        "root": config.root,
        "model": model,
        "frames": given.frames or config.frames,
        "codes": given.codes or config.codes,
        "overwrite": config.overwrite,
        "take_over": config.take_over,
        "tracking": config.tracking.model_copy(update={"run_name": ""}),
    }
    try:
        return track("benchmark", benchmark, Benchmark.model_validate(settings))
    except (ConfigError, ShardError) as error:
        raise type(error)(f"benchmark: {error} (here its settings are --set benchmark.NAME=VALUE)") from None
