"""The assessment before a pre-training names its size and what is too small."""

from typing import Any

from evilm.config.presets import defaults
from evilm.config.stages import Pretrain
from evilm.shards import FrameManifest
from evilm.shards.shard_manifests import ShardInfo
from evilm.tasks.assessment import advise, summarize


def manifest(frame_px: int = 96, **clips: int) -> FrameManifest:
    shards = [ShardInfo(f"{split}.parquet", split, count, 1, "", [count]) for split, count in clips.items()]
    return FrameManifest("frames", "plan", 4, frame_px, shards, {"resize": "squash"}, sum(clips.values()), {})


def config(**changes: Any) -> Pretrain:
    settings = defaults("pretrain", "tiny").override(changes)
    assert isinstance(settings, Pretrain)
    return settings


def test_summary_names_clips_pixels_and_steps() -> None:
    assert summarize(config(), manifest(train=59, val=3)) == (
        "clips: 59 train, 3 val; 4 frames of 96 px, squashed to a square; 16 steps of 32 clips in 8 epochs"
    )


def test_few_clips_and_steps_are_told_with_what_helps() -> None:
    clips, steps = advise(config(), manifest(train=59), num_gpus=0)
    assert clips.startswith("59 train clips show that the workflow runs on your data, but are too few")
    assert steps == "16 steps are few: expect accuracies near chance; --schedule.epochs 250 makes 500, " + (
        "with --overwrite where the training has begun"
    )


def test_the_embedded_corpus_needs_no_advice() -> None:
    assert advise(config(), manifest(train=2000, val=160), num_gpus=0) == []


def test_small_frames_and_unused_gpus_are_told() -> None:
    pixels, gpus = advise(config(), manifest(train=20_000), num_gpus=2)
    assert "frames of 96 px lose detail" in pixels
    assert "this machine has 2 GPUs, which this training does not use; --preset gpu does" in gpus
    assert len(advise(config(**{"cluster.gpus_per_worker": 1}), manifest(256, train=20_000), num_gpus=2)) == 0
