"""Training on frame shards while others are still being made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import kill, start, wait_for
from faults import SMALL
from gates import Gate
from sharding import in_this_process

from evilm.config.presets import defaults
from evilm.config.stages import ShardVideos, TrainTokenizer
from evilm.errors import HaltedError
from evilm.ingest.shard_videos import shard_videos
from evilm.shards import FrameManifest
from evilm.tasks.train_tokenizer import train_tokenizer
from evilm.tracking.metrics_file import read_points

pytestmark = pytest.mark.long


def _three_shards(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
    """Make three shards, then die."""
    yield from in_this_process(todo[:3], *rest)
    raise HaltedError("killed")


def test_a_training_goes_on_with_the_publication_it_began_on(
    small_workflow: tuple[Path, dict[str, Any]], s3_bucket: str, store_gate: Gate, tmp_path: Path
) -> None:
    corpus, vocab, frames = small_workflow[0] / "corpus", str(small_workflow[0] / "vocab"), f"{s3_bucket}/frames"
    shards: Any = ShardVideos(manifest=str(corpus / "manifest.csv"), videos=str(corpus / "videos"), out=frames)
    sizes = {"frame_px": 64, "resize": "squash", "shard_clips": 16, "row_group_clips": 8}
    shards = shards.override({f"sampling.{name}": value for name, value in sizes.items()})
    with pytest.raises(HaltedError):
        shard_videos(shards.override({"publish_every": "1"}), _three_shards)
    partial = FrameManifest.load(frames)
    assert (len(partial.shards), partial.num_missing > 0) == (3, True)

    def settings(frames: str, out: Path) -> TrainTokenizer:
        config = defaults("train_tokenizer", str(SMALL)).override({"frames": frames, "vocab": vocab, "out": str(out)})
        assert isinstance(config, TrainTokenizer)
        return config.override({"arch.codebook.min_usage": 0, "schedule.epochs": 4, "tracking.enabled": False})

    out = tmp_path / "tokenizer"
    store_gate.shut(
        ".parquet", once=lambda: max((p["step"] for p in read_points(out / "metrics.jsonl")), default=0) > 3
    )
    flags = [f"--frames={frames}", f"--vocab={vocab}", f"--out={out}", "--schedule.epochs=4"]
    process = start(
        "train_tokenizer", "--preset", str(SMALL), *flags, "--arch.codebook.min-usage=0", "--tracking.no-enabled"
    )
    wait_for(store_gate.holds, process)
    kill(process, and_workers=True)
    store_gate.open()
    assert shard_videos(shards, in_this_process)["num_clips"] > partial.num_clips()
    summary = train_tokenizer(settings(frames, out))
    assert summary["clips"] == partial.splits
    assert summary["inputs"]["frames"] == partial.fingerprint
    train_tokenizer(settings(f"{frames}@{partial.fingerprint}", tmp_path / "unbroken"))
    names = ("tokenizer.safetensors", "decoder.safetensors")
    assert [(out / n).read_bytes() for n in names] == [(tmp_path / "unbroken" / n).read_bytes() for n in names]
