"""Settings of training: optimizer, objectives, data loader, checkpoints, cluster, tracking."""

import math
import os
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evilm.config.base import Config


class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay (Sec. 4.1: AdamW, 1e-4, weight decay 0.01)."""

    lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate."""
    lr_batch_clips: int = Field(default=0, ge=0)
    """Clips per step that `lr` is meant for. With another number of them the learning rate is
    lr x sqrt(schedule.batch_clips / lr_batch_clips). 0 takes `lr` as it is."""
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
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a running mean of the weights, which is then what is evaluated and published; 0 keeps none."""


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
    negatives: Literal["random", "hard"] = "random"
    """Caption that a clip is held against in matching: any other of the step, or one that shares many of its words."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectivesConfig":
        if not (self.mlm_weight or self.vtm_weight or self.mvm_weight):
            raise ValueError(
                "objectives.mlm_weight, vtm_weight and mvm_weight are all 0, which leaves nothing to learn; "
                "give one of them a weight above 0"
            )
        return self


class CropConfig(Config):
    """Random crops and flips of the stored frames, resized back to their size; one for all frames of a clip."""

    min_scale: float = Field(default=0.5, gt=0, le=1)
    """Smallest share of the frame's area that a crop keeps."""
    max_ratio: float = Field(default=4 / 3, ge=1, le=4)
    """Width over height of the widest crop; the tallest is its inverse."""
    flip_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of crops that are mirrored, left to right."""
    flip_words: tuple[str, ...] = (
        "left", "right", "leftmost", "rightmost", "leftward", "rightward", "leftwards", "rightwards", "lefthand",
        "righthand", "clockwise", "counterclockwise", "anticlockwise",
    )  # fmt: skip
    """A clip whose caption has one of these words (lower case) is never mirrored: the caption would become false."""
    seed: int = 0
    """Seed of the crops."""


class AugmentConfig(Config):
    """Augmentation of pre-training, on top of the views that the codes were made for."""

    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation vary by up to this share, per clip and epoch; the student's frames alone."""
    approximate: bool = False
    """Draw a new crop each epoch and take the nearest code of the whole frame: cheaper than stored views, not exact."""
    crop: CropConfig = CropConfig()
    """The crops of `approximate`; exact ones are chosen when codes are made (precompute_codes --views, --augment)."""

    @model_validator(mode="after")
    def _crop_is_used(self) -> "AugmentConfig":
        if self.crop != CropConfig() and not self.approximate:
            raise ValueError(
                "augment.crop is for augment.approximate alone; exact crops are chosen when codes are made, "
                "with precompute_codes --views 4 --augment.*"
            )
        return self


class ScheduleConfig(Config):
    """Length of a training, batch size, and how often to evaluate and save."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the train split (Sec. 4.1: 20; the tokenizer 10)."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many steps; 0 runs all epochs. The learning-rate schedule always spans all epochs, so the same
    command with more steps continues a finished training as if it had never ended."""
    batch_clips: int = Field(default=256, ge=0)
    """Clips per step over all workers, at most (see `tail`); cluster.num_workers x gradient_accumulation_steps must
    divide it. 0 leaves it to worker_clips."""
    worker_clips: int = Field(default=0, ge=0)
    """Clips that a worker computes at a time, instead of batch_clips, which then is
    worker_clips x cluster.num_workers x gradient_accumulation_steps. 0 leaves it to batch_clips."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per worker and step; more of them need less memory. With fewer workers than cluster.num_workers
    each takes more micro-batches: step, losses and memory stay the same."""
    tail: Literal["even", "pad", "drop"] = "even"
    """Where batch_clips does not divide the clips of an epoch. even: its steps are smaller, all alike but for one clip,
    and no clip is seen twice or missed; pad: its last step repeats the epoch's first clips, so that all steps have one
    size; drop: its last clips are left out."""
    shuffle_groups: int = Field(default=16, ge=1)
    """Row groups mixed with each other when an epoch is put in order."""
    eval_every_epochs: float = Field(default=1, gt=0)
    """Epochs between two evaluations on the val split, also parts of one; the last step is always evaluated."""
    eval_at_steps: tuple[int, ...] = ()
    """Further steps after which the val split is evaluated."""
    eval_clips: int = Field(default=1024, ge=0)
    """At most this many clips of the val split per evaluation; 0 turns it off."""
    eval_pool_clips: int = Field(default=0, ge=0)
    """Clips per pool in which unmasked captions and clips of the val split are matched for `match_auc`; each clip is
    decoded with every caption of its pool. 0 leaves it out."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    keep_best: str = "loss"
    """Metric of the val split whose best checkpoint is kept besides: low is good for names that end in loss, high for
    others; '' keeps the newest alone."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite: end the run, or leave out this step's update and count it."""
    audit: bool = False
    """Write down which clips each step consumed, below `audit/` of the output; `python benchmarks/audit.py OUT`
    says from it whether each epoch saw each clip once."""
    log_every_steps: int = Field(default=20, ge=1)
    """Steps between two metric points, and between two lines on the console where these take longer than 5 s."""
    panel_every_steps: int = Field(default=0, ge=0)
    """Steps between two panels, pictures of what the model makes of a few held-out clips; 0 draws one at the end."""
    seed: int = 0
    """Seed of initial weights, order, masks, negatives and dropout."""

    @model_validator(mode="after")
    def _one_batch_size(self) -> "ScheduleConfig":
        batch, worker = self.batch_clips, self.worker_clips
        if bool(batch) == bool(worker):
            raise ValueError(
                f"schedule.batch_clips = {batch} and schedule.worker_clips = {worker}; set exactly one to 0"
            )
        if batch == 1:
            raise ValueError("schedule.batch_clips = 1; use 2 or more, a clip is matched with another one's caption")
        return self


class WorkerConfig(Config):
    """Resources of each worker on a Ray cluster."""

    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs per worker, also its number of torch threads on CPU."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs per worker; 0 computes on the CPU, also where GPUs are visible. Several training workers need whole GPUs."""
    max_failures: int = Field(default=3, ge=-1)
    """Worker failures tolerated per run (per shard in Ray Data jobs), such as unannounced node losses; -1: no limit."""

    @property
    def uses_gpus(self) -> bool:
        """Return whether models go to GPUs, by `gpus_per_worker`, unless GPUs are simulated (a count, no hardware)."""
        return self.gpus_per_worker > 0 and not simulates_gpus()


class PoolConfig(WorkerConfig):
    """Ray resources of tasks and actors that make shards. No shard depends on it."""

    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Maximum number of tasks or actors at a time; auto: as many as the cluster can hold, more when it grows."""
    memory_gb: float = Field(default=1.0, ge=0)
    """Memory that each worker reserves in Ray, GiB, so that no machine gets more workers than it can hold; 0: none."""


class ClusterConfig(WorkerConfig):
    """Ray resources of a training.

    `precision` changes numbers; another number of workers changes only the order of sums.
    """

    num_workers: int = Field(default=1, ge=1)
    """Training workers, or the most tasks/actors at a time."""
    min_workers: int = Field(default=0, ge=0)
    """Train on with as few workers as this while nodes are missing, and with more when they are back; 0 waits for
    num_workers."""
    resize_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks for nodes that came back, where min_workers is set."""
    max_preemptions: int = Field(default=-1, ge=-1)
    """Losses of nodes that Ray had announced survived per run, which count as no failures; -1 without end."""
    preemption_grace_s: float = Field(default=0.0, ge=0)
    """Seconds that workers on other nodes are left past the announced loss of a node, for a checkpoint whose upload
    takes longer than the notice; 0 restarts them at once."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs, fp32 on CPUs (most of which compute bf16 10 times slower)."""
    collective_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a worker waits for the others in NCCL or gloo before it gives up, and the training starts again from
    the last checkpoint."""
    loader_threads: int = Field(default=0, ge=0)
    """Threads of a training worker that read and decode batches beside the step; 0: one less than its CPUs, at least
    two."""
    fused: bool = False
    """AdamW in one kernel; the same sums, rounded in another order. On GPUs always."""
    channels_last: bool = False
    """Weights of convolutions stored channels last, as frames are; faster on GPUs with tensor cores."""
    compile: bool = False
    """torch.compile the model; needs a C++ compiler on the workers, and minutes at the start."""

    @property
    def num_loader_threads(self) -> int:
        """`loader_threads`, or as many as a worker's CPUs allow: decoding uses whole cores, as it holds no lock."""
        return self.loader_threads or max(2, int(self.cpus_per_worker) - 1)


def simulates_gpus() -> bool:
    """Return whether Ray's GPUs are a resource count without hardware: in tests, and on `cluster/local.py`."""
    return os.environ.get("EVILM_PRETEND_GPUS") == "1"


class TrackingConfig(Config):
    """MLflow. An empty uri means MLFLOW_TRACKING_URI, else a sqlite store beside the run."""

    uri: str = ""
    """Tracking server or store."""
    run_name: str = ""
    """Name of the run; '' names it after the command and the config."""
    experiment: str = ""
    """Experiment that a training's run is filed under; '' is the command's name."""
    parent: str = ""
    """Id of the run that this one is shown below."""
    enabled: bool = True
    """False leaves only the metrics file in the output folder."""
    log_model: bool = True
    """Log the finished model to the run, and register it as `evilm` where the server has a registry."""


class TrainConfig(Config):
    """Settings that both trainings share, that of the tokenizer and of the model."""

    init: str = ""
    """Model to start from, a published one or a checkpoint; vocabulary, grid and frames may be others than its own, and
    what does not fit starts fresh and is named. '' starts from fresh weights."""
    export: Literal["last", "best"] = "last"
    """Step that is published: the last one, or the best kept one by schedule.keep_best. On a finished training the
    other one is published from its checkpoint, without training."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    cluster: ClusterConfig = ClusterConfig()
    profile_steps: str = ""
    """Trace the first worker with torch.profiler in steps A to B - 1, as A:B; the trace goes to `profile/` in the
    output. Later steps are slower than those of a start: 20:25 is a good choice."""

    def with_precision(self) -> Self:
        """Return these settings with `cluster.precision` as it will be computed, never auto: it is part of what the
        result is, so it must not depend on the machine that asks.
        """
        precision = self.cluster.precision
        if precision == "auto":
            precision = "bf16" if self.cluster.uses_gpus else "fp32"
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={"precision": precision})})

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`, counted from 0; empty where none are."""
        first, _, end = self.profile_steps.partition(":")
        return range(int(first), int(end)) if end else range(0)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step: one or more for each of the wanted workers, also while some are missing."""
        return self.cluster.num_workers * self.schedule.gradient_accumulation_steps

    @property
    def micro_batch_clips(self) -> int:
        """The most clips that a worker computes at a time."""
        return self.schedule.batch_clips // self.num_micro_batches

    def resolved(self) -> Self:
        """Return the settings with the batch size and the learning rate that follow from the number of workers.

        AdamW divides gradients by their own size, so noise of the gradient, which falls with the root of the batch
        size, is kept by a learning rate that rises with it (Malladi et al. 2022, arXiv:2205.10287; SGD's rule is
        linear). The wanted number of workers counts, so workers that come and go change nothing.

        Raises:
            ConfigError: the batch size that follows is not possible.
        """
        optim, schedule = self.optim, self.schedule
        if not (schedule.worker_clips or optim.lr_batch_clips):
            return self
        batch = schedule.batch_clips or schedule.worker_clips * self.num_micro_batches
        lr = optim.lr * math.sqrt(batch / optim.lr_batch_clips) if optim.lr_batch_clips else optim.lr
        sizes = {"schedule.batch_clips": batch, "schedule.worker_clips": 0}
        return self.override(sizes | {"optim.lr": lr, "optim.lr_batch_clips": 0})

    @model_validator(mode="after")
    def _best_is_known(self) -> "TrainConfig":
        for name in ("eval_clips", "keep_best"):
            if self.export == "best" and not (value := getattr(self.schedule, name)):
                raise ValueError(
                    f"export = 'best' needs evaluations, but schedule.{name} = {value!r}; use --export last"
                )
        return self

    @model_validator(mode="after")
    def _workers_divide(self) -> "TrainConfig":
        batch, workers, num_micro_batches = self.schedule.batch_clips, self.cluster.num_workers, self.num_micro_batches
        if batch % num_micro_batches:
            factors = f"cluster.num_workers = {workers}"
            if self.schedule.gradient_accumulation_steps > 1:
                factors += f" x schedule.gradient_accumulation_steps = {self.schedule.gradient_accumulation_steps}"
            raise ValueError(
                f"schedule.batch_clips = {batch} is not a multiple of {factors}; "
                f"use {num_micro_batches * max(1, round(batch / num_micro_batches))}, or another number of workers"
            )
        gpus = self.cluster.gpus_per_worker
        if workers > 1 and gpus % 1:
            raise ValueError(
                f"cluster.gpus_per_worker = {gpus:g} with cluster.num_workers = {workers}: NCCL refuses two workers on "
                "one GPU; use a whole number of GPUs per worker, or one worker"
            )
        if self.profile_steps and not (re.fullmatch(r"\d+:\d+", self.profile_steps) and self.profiled):
            raise ValueError(f"profile_steps = {self.profile_steps!r}: use A:B with A below B, such as 20:25")
        if self.cluster.min_workers > workers:
            raise ValueError(
                f"cluster.min_workers = {self.cluster.min_workers} is more than cluster.num_workers = {workers}; "
                f"use 0 to {workers}"
            )
        return self
