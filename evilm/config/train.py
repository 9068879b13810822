"""Settings of training: optimizer, objectives, feed, checkpoints, cluster, tracking."""

from typing import Literal

from pydantic import Field, model_validator

from evilm.config.base import Config


class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay (Sec. 4.1: AdamW, 1e-4, weight decay 0.01)."""

    lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; biases and normalisations are exempt."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps with a rising learning rate."""
    final_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end over `lr`."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""


class ObjectivesConfig(Config):
    """The three pre-training objectives, Eq. 8."""

    mlm_ratio: float = Field(default=0.15, ge=0, lt=1)
    """Share of words hidden from the model; at least one per caption."""
    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Share of regions hidden from the model, the same count in each frame."""
    mask_shape: Literal["block", "tube", "random"] = "block"
    """block: rectangles per frame (the paper); tube: the same in every frame; random: single regions."""
    mlm_weight: float = Field(default=1.0, ge=0)
    """Weight of masked language modelling."""
    vtm_weight: float = Field(default=1.0, ge=0)
    """Weight of video-text matching."""
    mvm_weight: float = Field(default=1.0, ge=0)
    """Weight of masked video modelling."""


class ScheduleConfig(Config):
    """How long, how much at a time, how often to look and to save."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the train split (Sec. 4.1: 20; the tokenizer 10)."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many steps; 0 runs all epochs. The learning-rate schedule always spans all epochs."""
    batch_clips: int = Field(default=256, ge=2)
    """Clips per step over all workers; the number of workers must divide it."""
    tail: Literal["drop", "pad"] = "pad"
    """The last step of an epoch, where clips are too few: repeat the epoch's first clips, or leave it out."""
    shuffle_groups: int = Field(default=16, ge=1)
    """Row groups mixed with each other when an epoch is put in order."""
    eval_every_epochs: int = Field(default=1, ge=1)
    """Epochs between two evaluations on the val split; the last epoch is always evaluated."""
    eval_clips: int = Field(default=1024, ge=0)
    """At most this many clips of the val split per evaluation; 0 turns it off."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    log_every_steps: int = Field(default=20, ge=1)
    """Steps between two log lines and metric points."""
    seed: int = 0
    """Seed of initial weights, order, masks, negatives and dropout."""


class ClusterConfig(Config):
    """What is asked of Ray.

    `precision` changes numbers; so does another number of workers: in the order of sums, in dropout (drawn per worker)
    and in the regions that a tokenizer's codebook starts on and is revived with. Data, masks and negatives stay.
    """

    num_workers: int = Field(default=1, ge=1)
    """Training workers, or the most tasks/actors at a time in the Ray Data doors."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs per worker, also its number of torch threads on CPU."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs per worker; 0 trains on CPU."""
    max_failures: int = Field(default=3, ge=-1)
    """Worker failures (a lost spot node) survived per run; -1 without end."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs and CPUs with units for it, fp32 elsewhere (there bf16 is 10 times slower)."""


class TrackingConfig(Config):
    """MLflow. An empty uri means MLFLOW_TRACKING_URI, else a sqlite store beside the run."""

    uri: str = ""
    """Tracking server or store."""
    run_name: str = ""
    """Name of the run; '' names it after the door and the config."""
    enabled: bool = True
    """False leaves only the metrics file in the output folder."""


class TrainConfig(Config):
    """What the two trainings, tokenizer and student, have in common."""

    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _workers_divide(self) -> "TrainConfig":
        batch, workers = self.schedule.batch_clips, self.cluster.num_workers
        if batch % workers:
            raise ValueError(
                f"schedule.batch_clips = {batch} is not a multiple of cluster.num_workers = {workers}; "
                f"use {workers * max(1, round(batch / workers))}, or another number of workers"
            )
        return self
