"""The small workflow, finished once for all tests: settings of trainings on its inputs, and what they logged."""

import shutil
from pathlib import Path
from typing import Any

from evilm.config.presets import defaults
from evilm.config.stages import Finetune, Pretrain
from evilm.tracking.metrics_file import read_points
from helpers.paths import SMALL

Workflow = tuple[Path, dict[str, Any]]
"""Its root, and the summary of its pre-training."""


def small_pretrain(root: Path, **values: Any) -> Pretrain:
    """Return settings of the small pre-training on the inputs under `root`; `values` are dotted."""
    config = defaults("pretrain", str(SMALL)).override({"root": str(root)} | values)
    assert isinstance(config, Pretrain)
    return config


TUNE_STEPS = 12


def small_finetune(root: Path, task: str = "msvd-qa", **values: Any) -> Finetune:
    """Return settings of a short fine-tuning under `root`; `values` are dotted."""
    given = {"root": str(root), "task": task, "schedule.max_steps": TUNE_STEPS, "schedule.eval_every_epochs": 0.25}
    config = defaults("finetune", str(SMALL)).override(given | values)
    assert isinstance(config, Finetune)
    return config


def copy_workflow(root: Path, copied: Path) -> Path:
    """Copy the root of the small workflow, to write into; without its MLflow store, which other tests write to."""
    return shutil.copytree(root, copied, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))


def losses(out: Path) -> dict[int, dict[str, float]]:
    """Read all that was logged of the train split for each step, but times."""
    return _logged(out, "train/")


def losses_and_scores(out: Path) -> dict[int, dict[str, float]]:
    """Read all that was logged for each step, but times."""
    return _logged(out, "train/", "val/")


def _logged(out: Path, *prefixes: str) -> dict[int, dict[str, float]]:
    points: dict[int, dict[str, float]] = {}
    for point in read_points(out / "metrics.jsonl"):
        kept = {n: v for n, v in point["metrics"].items() if n.startswith(prefixes)}
        if kept:
            points.setdefault(point["step"], {}).update(kept)
    return points
