"""Settings of training: optimizer, objectives, augmentation, schedule, checkpoints."""

import math
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental
from evilm.config.resources import ClusterConfig


class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay (Sec. 4.1: AdamW, 1e-4, weight decay 0.01)."""

    lr: Common[float] = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    lr_batch_clips: Incidental[int] = Field(default=0, ge=0)
    """Clips per step that lr is meant for; at another batch size the learning rate is
    lr x sqrt(schedule.batch_clips / lr_batch_clips). 0 uses lr as it is."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; biases and normalisation layers are exempt."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps, 0 to 1, in which the learning rate rises linearly."""
    final_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    """Final learning rate as a share of lr."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are clipped; 0 turns clipping off."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of a moving average of the weights, which is then evaluated and published; 0: no average."""


class ObjectivesConfig(Config):
    """The three pre-training objectives, Eq. 8."""

    mlm_ratio: float = Field(default=0.15, ge=0, lt=1)
    """Share of word pieces to mask, 0 to 1; at least one per caption."""
    mask_ratio: Common[float] = Field(default=0.4, gt=0, lt=1)
    """Share of regions to mask, between 0 and 1; the same number in each frame (Sec. 4.1: 0.4)."""
    mask_shape: Common[Literal["block", "tube", "random"]] = "block"
    """block: rectangles in each frame (the paper); tube: the same ones in all frames; random: single regions."""
    mlm_weight: float = Field(default=1.0, ge=0)
    """Weight of masked language modelling."""
    vtm_weight: float = Field(default=1.0, ge=0)
    """Weight of video-text matching."""
    mvm_weight: float = Field(default=1.0, ge=0)
    """Weight of masked video modelling."""
    negatives: Literal["random", "hard"] = "random"
    """Wrong caption in video-text matching: that of any other clip of the step, or one that shares many words."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectivesConfig":
        if not (self.mlm_weight or self.vtm_weight or self.mvm_weight):
            raise ValueError(
                "mlm_weight, vtm_weight and mvm_weight are all 0, which leaves nothing to learn; "
                "give one of them a weight above 0"
            )
        return self


class CropConfig(Config):
    """Random crops and flips of the stored frames, resized back to their size; one for all frames of a clip."""

    min_scale: float = Field(default=0.5, gt=0, le=1)
    """Smallest share of the frame's area that a crop keeps, 0 to 1."""
    max_ratio: float = Field(default=4 / 3, ge=1, le=4)
    """Width / height of the widest crop; the tallest crop has the inverse."""
    flip_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of crops that are mirrored left to right, 0 to 1."""
    flip_words: tuple[str, ...] = (
        "left", "right", "leftmost", "rightmost", "leftward", "rightward", "leftwards", "rightwards", "lefthand",
        "righthand", "clockwise", "counterclockwise", "anticlockwise",
    )  # fmt: skip
    """Words (lower case) with which a caption keeps its clip from being mirrored, as it would become false."""
    seed: int = 0
    """Seed of the crops."""


class AugmentConfig(Config):
    """Augmentation of pre-training, on top of the views that the codes were made for."""

    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation, drawn per clip and epoch; model input only."""
    approximate: bool = False
    """Draw a new crop each epoch and use the nearest codes of the whole frame: cheaper than stored views, not exact."""
    crop: CropConfig = CropConfig()
    """Crops of `approximate`; exact ones are chosen when codes are made (precompute_codes --views, --augment.*)."""

    @model_validator(mode="after")
    def _crop_is_used(self) -> "AugmentConfig":
        if self.crop != CropConfig() and not self.approximate:
            raise ValueError(
                "crop is only for augment.approximate; exact crops are chosen when codes are made, "
                "with precompute_codes --views 4 --augment.*"
            )
        return self


class ScheduleConfig(Config):
    """Length of a training, batch size, and how often to evaluate and save."""

    epochs: Common[int] = Field(default=20, ge=1)
    """Passes over the train split (Sec. 4.1: 20; tokenizer 10)."""
    max_steps: Common[Incidental[int]] = Field(default=0, ge=0)
    """Stop after this many steps; 0 runs all epochs. The learning-rate schedule always spans all epochs, so the same
    command with more steps continues a finished training as if it had never stopped."""
    batch_clips: Common[int] = Field(default=256, ge=0)
    """Clips per step over all workers, at most (see schedule.tail in --help-all); a multiple of
    cluster.num_workers x gradient_accumulation_steps. 0 uses worker_clips instead."""
    worker_clips: Incidental[int] = Field(default=0, ge=0)
    """Clips per worker and micro-batch, in place of batch_clips, which then is
    worker_clips x cluster.num_workers x gradient_accumulation_steps. 0 uses batch_clips instead."""
    gradient_accumulation_steps: Common[Incidental[int]] = Field(default=1, ge=1)
    """Micro-batches per worker and step; more of them need less memory. If workers are missing, each of the others
    computes more micro-batches: step, losses and memory stay the same."""
    tail: Literal["even", "pad", "drop"] = "even"
    """Treatment of an epoch whose clips batch_clips does not divide. even: slightly smaller steps, equal to within one
    clip, and each clip once; pad: the last step is filled with the epoch's first clips; drop: the last clips are
    skipped."""
    shuffle_groups: int = Field(default=16, ge=1)
    """Row groups that are shuffled together when the order of an epoch is drawn."""
    eval_every_epochs: Common[Incidental[float]] = Field(default=1, gt=0)
    """Epochs, also fractions, between two evaluations on the val split; the last step is always evaluated."""
    eval_at_steps: Incidental[tuple[int, ...]] = ()
    """Additional steps after which the val split is evaluated."""
    eval_clips: Incidental[int] = Field(default=1024, ge=0)
    """Largest number of val clips per evaluation; 0 turns evaluation off."""
    eval_pool_clips: Incidental[int] = Field(default=0, ge=0)
    """Clips per pool in which all unmasked val captions and clips are matched with each other for match_auc; the cost
    grows with the pool. 0 skips it."""
    checkpoint_every_steps: Common[Incidental[int]] = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: Incidental[int] = Field(default=2, ge=1)
    """Newest checkpoints to keep."""
    keep_best: Incidental[str] = "loss"
    """Val metric whose best checkpoint is also kept: low is good for names that end in loss, high for others; '' keeps
    only the newest."""
    patience: Incidental[int] = Field(default=0, ge=0)
    """End after this many evaluations without a better one than before, by keep_best; 0 never ends early."""
    nonfinite: Incidental[Literal["stop", "skip"]] = "stop"
    """Reaction to a step whose loss or gradient is NaN or infinite: end the run, or skip and count its update."""
    audit: Incidental[bool] = False
    """Record the clips of each step in audit/ of the output; `python benchmarks/audit.py OUT` then checks that each
    epoch saw each clip once."""
    log_every_steps: Incidental[int] = Field(default=20, ge=1)
    """Steps between two metric points, and between two console lines if that takes longer than 5 s."""
    panel_every_steps: Incidental[int] = Field(default=0, ge=0)
    """Steps between two panels, pictures of predictions on a few val clips; 0 draws one at the end."""
    seed: Common[int] = 0
    """Seed of initial weights, order, masks, negatives and dropout."""

    @model_validator(mode="after")
    def _one_batch_size(self) -> "ScheduleConfig":
        batch, worker = self.batch_clips, self.worker_clips
        if bool(batch) == bool(worker):
            raise ValueError(f"batch_clips = {batch} and worker_clips = {worker}; set exactly one to 0")
        if batch == 1:
            raise ValueError("batch_clips = 1; use 2 or more, a clip is matched with the caption of another")
        return self


class TrainConfig(Config):
    """Settings that both trainings share, of the tokenizer and of the model."""

    init: Common[Incidental[str]] = ""
    """Model or checkpoint to start from; vocabulary, grid and frames may differ, and weights that do not fit are
    initialised randomly and logged. '' starts from random weights."""
    export: Incidental[Literal["last", "best"]] = "last"
    """Step to publish: the last, or the best by schedule.keep_best. On a finished training, the other one is published
    from its checkpoint, without training."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    cluster: ClusterConfig = ClusterConfig()
    profile_steps: Incidental[str] = ""
    """Trace steps A to B - 1 of the first worker with torch.profiler, as A:B such as 20:25; the trace goes to profile/
    of the output."""

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the result is, resolved."""
        return super(TrainConfig, self.resolved().with_precision()).identity

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
        """Return the steps of `profile_steps`, counted from 0; empty if there are none."""
        first, _, end = self.profile_steps.partition(":")
        return range(int(first), int(end)) if end else range(0)

    @property
    def num_micro_batches(self) -> int:
        """Return the micro-batches per step: one or more per configured worker, also while some are missing."""
        return self.cluster.num_workers * self.schedule.gradient_accumulation_steps

    @property
    def micro_batch_clips(self) -> int:
        """Return the most clips that a worker computes at a time."""
        return self.schedule.batch_clips // self.num_micro_batches

    def resolved(self) -> Self:
        """Return the settings with the batch size and the learning rate that follow from the number of workers.

        AdamW divides gradients by their own size, so noise of the gradient, which falls with the root of the batch
        size, is kept by a learning rate that rises with it (Malladi et al. 2022, arXiv:2205.10287; SGD's rule is
        linear). The wanted number of workers counts, so workers that come and go change nothing.

        Raises:
            ConfigError: the batch size that follows is not possible.
        """
        changes = self._resolved_values()
        return self.override(changes) if changes else self

    def _resolved_values(self) -> dict[str, Any]:
        """Return the settings that `resolved` changes, by dotted name."""
        optim, schedule = self.optim, self.schedule
        if not (schedule.worker_clips or optim.lr_batch_clips):
            return {}
        batch = schedule.batch_clips or schedule.worker_clips * self.num_micro_batches
        lr = optim.lr * math.sqrt(batch / optim.lr_batch_clips) if optim.lr_batch_clips else optim.lr
        sizes = {"schedule.batch_clips": batch, "schedule.worker_clips": 0}
        return sizes | {"optim.lr": lr, "optim.lr_batch_clips": 0}

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
