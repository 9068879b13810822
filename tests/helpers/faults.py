"""Real pre-training that breaks at a chosen step, by a plan beside its output; each fault happens once.

Faults strike between two batches of the data loader of one worker, which then waits until the signal has arrived, so
that no machine is too fast or too slow for a test.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from evilm.config.presets import defaults
from evilm.config.stages import Pretrain
from evilm.dataloader.loader import DataLoader
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.model.losses import LossSum
from evilm.objectives.pretraining_objective import PretrainObjective
from evilm.shards import FrameManifest, read_group
from evilm.tasks.pretrain import PretrainTask
from evilm.train import preemption, trainer
from evilm.train.launch import fit
from helpers.paths import SMALL
from helpers.workflow import Workflow


def train(
    workflow: Workflow,
    out: Path | str,
    *faults: tuple[int, int, str],
    nan_at: str = "",
    **values: Any,
) -> dict[str, Any]:
    """Pre-train on the inputs of a finished small workflow, with faults: one epoch of 16 steps of 4 clips.

    Each step is cut into two micro-batches, for two workers or for one after the other.

    Args:
        workflow: root and summary.
        out: output folder.
        faults: (first micro-batch of a worker, step before which it breaks, how: a name in `_FAULTS`).
        nan_at: clip at which the loss is not a number.
        values: settings, dotted; `workers` for their number.
    """
    root, summary = workflow
    places = {name: str(root / name) for name in ("frames", "vocab", "tokenizer")}
    places["codes"] = str(root / "codes" / summary["inputs"]["tokenizer"])
    workers = values.pop("workers", 1)
    schedule = {
        "epochs": 1,
        "batch_clips": 4,
        "checkpoint_every_steps": 3,
        "eval_clips": 8,
        "gradient_accumulation_steps": 2 // workers,
    }
    settings = {f"schedule.{name}": value for name, value in schedule.items() | {("audit", True)}}
    settings |= {
        "tracking.log_model": False,
        "cluster.cpus_per_worker": 1,
        "cluster.num_workers": workers,
        "out": str(out),
        "root": str(root),
    }
    config = defaults("pretrain", str(SMALL)).override(settings | places | values)
    plan = {"driver": os.getpid(), "nan_at": nan_at, "faults": [list(fault) for fault in faults]}
    plan_file = _plan_file(config)
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    plan_file.write_text(json.dumps(plan))
    for left in plan_file.parent.glob(f"{plan_file.name}.*"):
        left.unlink()
    with Output(config, str(out), summary["inputs"]) as output:
        return fit(config, "pretrain", "helpers.faults:build_task", output)


def build_task(settings: dict[str, Any]) -> "FaultyTask":
    """The task in a worker."""
    return FaultyTask(Pretrain.model_validate(settings))


class FaultyTask(PretrainTask):
    """Pre-training with a plan of faults."""

    def __init__(self, settings: Pretrain) -> None:
        super().__init__(settings)
        self._plan_file = _plan_file(settings)
        self._plan = json.loads(self._plan_file.read_text())

    def objective(self) -> Any:
        nan_at = self._plan.get("nan_at")
        if not nan_at:
            return super().objective()
        student, _ = self.start()
        return _NaNObjective(nan_at, student, self.settings.objectives, self.settings.schedule.eval_pool_clips)

    def train_loader(self, rank: int, world: int) -> DataLoader:
        return _FaultyLoader(super().train_loader(rank, world), lambda step: self._strike(rank, step))

    def _strike(self, part: int, step: int) -> None:
        for index, (at_part, at_step, what) in enumerate(self._plan["faults"]):
            done = Path(f"{self._plan_file}.{index}")
            if (part, step) == (at_part, at_step) and not done.exists():
                done.touch()
                _FAULTS[what](self._plan | {"file": str(done)})


class _FaultyLoader(DataLoader):
    def __init__(self, loader: DataLoader, before: Callable[[int], None]) -> None:
        """Take over another loader, which is not used any more."""
        vars(self).update(vars(loader))
        self.before = before

    def batches(self, start_step: int, end_step: int) -> Iterator[Any]:
        """The same batches, with something happening before the first one of some step.

        Nothing happens while rank 0 estimates chance from the first batches alone.
        """
        per_step = len(getattr(self.order, "mine", "x"))
        trains = end_step > trainer._CHANCE_BATCHES * per_step
        for number, batch in enumerate(super().batches(start_step, end_step), start=start_step):
            if trains and number % per_step == 0:
                self.before(number // per_step)
            yield batch


class _NaNObjective(PretrainObjective):
    def __init__(self, nan_at: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.nan_at = nan_at

    def forward(self, batch: Any) -> dict[str, LossSum]:
        """The same losses, but for one clip."""
        losses = super().forward(batch)
        if self.training and self.nan_at in batch.clip_ids:
            losses["mvm"] = losses["mvm"]._replace(total=losses["mvm"].total * torch.nan)
        return losses


def _kill(_: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate(_: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    _wait(preemption._terminated.is_set)


def _terminate_driver(plan: dict[str, Any]) -> None:
    _interrupt_driver(plan, signal.SIGTERM)


def _interrupt_driver(plan: dict[str, Any], how: int = signal.SIGINT) -> None:
    os.kill(plan["driver"], how)
    _wait(lambda: all(thread.name != "stop" for thread in threading.enumerate()))


def _wait_for_test(plan: dict[str, Any]) -> None:
    """Say that this worker has come here, and wait for the test's word, or for the end."""
    import ray

    Path(f"{plan['file']}.here").write_text(ray.get_runtime_context().get_node_id())
    _wait(Path(f"{plan['file']}.go").exists)


def _wait_for_notice(plan: dict[str, Any]) -> None:
    """Wait until Ray has told this worker that a node will be taken away, and until it is time to look for that."""
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    Path(f"{plan['file']}.here").write_text(ray.get_runtime_context().get_node_id())
    _wait(lambda: get_train_context().preemption_context.preemption_info is not None)
    time.sleep(preemption._LOOK_S + 0.2)


_FAULTS = {
    "notice": _wait_for_notice,
    "wait": _wait_for_test,
    "kill": _kill,
    "terminate": _terminate,
    "interrupt driver": _interrupt_driver,
    "terminate driver": _terminate_driver,
}


def _wait(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline, "what the test does did not arrive"
        time.sleep(0.02)


def _plan_file(settings: Pretrain) -> Path:
    """Beside the output; for one that is not on a disk, beside the workflow that it is made from."""
    out = settings.out if storage.is_local(settings.out) else f"{settings.root}-{settings.out.replace('/', '-')}"
    return Path(f"{out}.faults.json")


def assert_close(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]], rel: float = 2e-3) -> float:
    """Hold the `losses` of two trainings against each other; the greatest difference of a loss, relative."""
    import pytest

    assert one.keys() == other.keys()
    worst = 0.0
    for step, metrics in one.items():
        for name, value in metrics.items():
            assert other[step][name] == pytest.approx(value, rel=rel, abs=1e-6), (step, name)
            if name.endswith("loss"):
                worst = max(worst, abs(other[step][name] / value - 1))
    return worst


def all_clips(workflow: Workflow) -> list[str]:
    """The clips of the train split."""
    frames = FrameManifest.load(str(workflow[0] / "frames"))
    return [
        str(clip)
        for shard in frames.of_split("train")
        for group in range(len(shard.row_groups))
        for clip in read_group(storage.join(frames.uri, shard.file), group, ["clip_id"])["clip_id"].to_pylist()
    ]


def some_clip(workflow: Workflow) -> str:
    """One of them."""
    return all_clips(workflow)[0]
