"""Settings of the workers on a Ray cluster."""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from evilm.config.base import Common, Config, Incidental


def simulates_gpus() -> bool:
    """Return whether Ray's GPUs are a resource count without hardware: in tests, and on `cluster/local.py`."""
    return os.environ.get("EVILM_PRETEND_GPUS") == "1"


class TaskConfig(Config):
    """Ray tasks; no result depends on them."""

    num_workers: Common[Incidental[int]] = Field(default=1, ge=1)
    """Largest number of simultaneous tasks."""

    @property
    def identity(self) -> dict[str, Any]:
        """Return what outputs have recorded of this section from the start, when it had the settings of a training."""
        return {"precision": "auto"}


class CpuConfig(Config):
    """CPUs of each worker on a Ray cluster."""

    cpus_per_worker: Common[Incidental[float]] = Field(default=1.0, gt=0)
    """CPUs per worker; on CPUs also its number of torch threads."""


class WorkerConfig(CpuConfig):
    """CPUs and GPUs of each worker on a Ray cluster."""

    gpus_per_worker: Common[Incidental[float]] = Field(default=0.0, ge=0)
    """GPUs per worker: 1, or a share below 1; 0 computes on the CPU even if GPUs are visible. Two or more training
    workers need whole GPUs."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_one_or_a_share(cls, gpus: float) -> float:
        if gpus > 1:
            raise ValueError("a worker computes on one GPU; use 1, and as many workers (num_workers) as GPUs")
        return gpus

    @property
    def uses_gpus(self) -> bool:
        """Return whether models go to GPUs, by `gpus_per_worker`, unless GPUs are simulated (a count, no hardware)."""
        return self.gpus_per_worker > 0 and not simulates_gpus()


class ScorerConfig(TaskConfig, WorkerConfig):
    """Ray actors that score clips; no score depends on their number."""


class PoolConfig(CpuConfig):
    """Ray tasks that make shards. No shard depends on them."""

    num_workers: Common[Incidental[Annotated[int, Field(ge=1)] | Literal["auto"]]] = "auto"
    """Largest number of simultaneous tasks or actors; auto: as many as the cluster can hold, more when it grows."""
    memory_gb: Incidental[float] = Field(default=1.0, ge=0)
    """GiB of memory that each worker reserves in Ray, so that no machine gets more workers than fit; 0: none."""
    max_failures: Incidental[int] = Field(default=3, ge=-1)
    """Times that the process working on a shard may die before the run fails; -1: no limit."""


class ActorPoolConfig(PoolConfig, WorkerConfig):
    """Ray actors that hold a model and make shards. No shard depends on them."""


class ClusterConfig(WorkerConfig):
    """Ray workers of a training.

    `precision` changes numbers; another number of workers changes only the order of sums.
    """

    num_workers: Common[Incidental[int]] = Field(default=1, ge=1)
    """Training workers."""
    max_failures: Incidental[int] = Field(default=3, ge=-1)
    """Worker failures tolerated per run, such as unannounced node losses; -1: no limit."""
    min_workers: Incidental[int] = Field(default=0, ge=0)
    """Continue training with as few workers as this while nodes are missing, and with more when they return; 0 waits
    for num_workers."""
    resize_every_s: Incidental[float] = Field(default=60.0, gt=0)
    """Seconds between two checks for returned nodes, if min_workers is set."""
    max_preemptions: Incidental[int] = Field(default=-1, ge=-1)
    """Announced node losses (preemptions) tolerated per run, which do not count as failures; -1: no limit."""
    preemption_grace_s: Incidental[float] = Field(default=0.0, ge=0)
    """Seconds that workers on other nodes continue after an announced node loss, for a checkpoint whose upload takes
    longer than the notice; 0 restarts them at once."""
    precision: Common[Literal["auto", "fp32", "bf16"]] = "auto"
    """auto: bf16 autocast on GPUs, fp32 on CPUs (most of which compute bf16 10 times slower)."""
    collective_timeout_s: Incidental[float] = Field(default=1800.0, gt=0, le=7 * 86400)
    """Seconds that a worker waits for the others in NCCL or gloo; then the training restarts from the last
    checkpoint."""
    loader_threads: Incidental[int] = Field(default=0, ge=0)
    """Threads per training worker that read and decode batches during the step; 0: one less than its CPUs, at least
    two."""
    fused: Incidental[bool] = False
    """Run AdamW in one kernel: the same sums, rounded in another order. Always on with GPUs."""
    channels_last: Incidental[bool] = False
    """Store convolution weights channels last, as frames are: faster on GPUs with tensor cores."""
    compile: Incidental[bool] = False
    """Compile the model with torch.compile; needs a C++ compiler on the workers, and minutes at the start."""

    @property
    def num_loader_threads(self) -> int:
        """Return `loader_threads`, or as many as the CPUs of a worker allow: decoding holds no lock, so uses cores."""
        return self.loader_threads or max(2, int(self.cpus_per_worker) - 1)
