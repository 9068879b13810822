"""Assess a pre-training before it starts: its data and steps, and what is too small for a useful model."""

import logging

import torch

from evilm.config.stages import Pretrain
from evilm.shards import FrameManifest
from evilm.tasks.training_run import num_steps

logger = logging.getLogger(__name__)

_MIN_CLIPS, _MIN_STEPS = 1000, 500
"""The embedded corpus, which is far simpler than real videos, is learned from about this many clips and steps."""
_SMALL_PX, _MANY_CLIPS = 128, 10_000


def log_assessment(config: Pretrain, frames: FrameManifest) -> None:
    """Log the size of a training, and a warning for each reason to expect little of it."""
    logger.info("%s", summarize(config, frames))
    for line in advise(config, frames, torch.cuda.device_count()):
        logger.warning("%s", line)


def summarize(config: Pretrain, frames: FrameManifest) -> str:
    """Describe data and steps in one line."""
    clips = ", ".join(f"{count:,} {split}" for split, count in frames.splits.items())
    steps, schedule = num_steps(config, frames.num_clips("train")), config.schedule
    shape = {"squash": ", squashed to a square", "crop": ", cropped to a square"}.get(
        str(frames.sampling.get("resize")), ""
    )
    return (
        f"clips: {clips}; {config.arch.num_frames} frames of {config.arch.input_px} px{shape}; {steps:,} steps of "
        f"{schedule.batch_clips} clips in {schedule.epochs} epochs"
    )


def advise(config: Pretrain, frames: FrameManifest, num_gpus: int) -> list[str]:
    """Return what to change for a better model, a line each; nothing if there is no reason.

    `num_gpus` are those of this machine.
    """
    num_clips, lines = frames.num_clips("train"), []
    steps = num_steps(config, num_clips)
    if num_clips < _MIN_CLIPS:
        lines.append(
            f"{num_clips:,} train clips show that the workflow runs on your data, but are too few for a useful model, "
            f"which takes at least {_MANY_CLIPS:,}; --init MODEL starts from a pre-trained one"
        )
    if steps < _MIN_STEPS:
        epochs = -(-_MIN_STEPS * config.schedule.epochs // steps)
        lines.append(
            f"{steps:,} steps are few: expect accuracies near chance; --schedule.epochs {epochs} makes {_MIN_STEPS}, "
            "with --overwrite where the training has begun"
        )
    if num_clips >= _MANY_CLIPS and frames.frame_px < _SMALL_PX:
        lines.append(
            f"frames of {frames.frame_px} px lose detail of real videos; --preset gpu has 256 px, for all stages: name "
            "another --root with it"
        )
    if num_gpus and not config.cluster.gpus_per_worker:
        lines.append(
            f"this machine has {num_gpus} GPUs, which this training does not use; --preset gpu does, or "
            f"--cluster.gpus-per-worker 1 with --cluster.num-workers {num_gpus}"
        )
    return lines
