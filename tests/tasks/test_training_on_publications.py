"""Training on frame shards while others are still being made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilm.config.presets import defaults
from evilm.config.stages import Pretrain, ShardVideos
from evilm.errors import HaltedError
from evilm.ingest.shard_videos import shard_videos
from evilm.shards import FrameManifest
from evilm.tasks.pretrain import pretrain
from helpers.paths import SMALL
from helpers.small_corpus import in_this_process

pytestmark = pytest.mark.long


def _three_shards(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
    """Make three shards, then die."""
    yield from in_this_process(todo[:3], *rest)
    raise HaltedError("killed")


def test_a_training_goes_on_with_the_publication_it_began_on(
    small_workflow: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    corpus, frames = small_workflow[0] / "corpus", str(tmp_path / "frames")
    shards: Any = ShardVideos(manifest=str(corpus / "manifest.csv"), videos=str(corpus / "videos"), out=frames)
    sizes = {"frame_px": 64, "resize": "squash", "shard_clips": 16, "row_group_clips": 8}
    shards = shards.override({f"sampling.{name}": value for name, value in sizes.items()})
    with pytest.raises(HaltedError):
        shard_videos(shards.override({"publish_every": "1"}), _three_shards)
    partial = FrameManifest.load(frames)
    assert (len(partial.shards), partial.num_missing > 0) == (3, True)

    def train(root: Path, frames: str, steps: int) -> dict[str, Any]:
        places = {name: str(small_workflow[0] / name) for name in ("vocab", "tokenizer")}
        places |= {"frames": frames, "root": str(root), "out": str(root / "model")}
        settings: dict[str, Any] = {"schedule.batch_clips": 8, "schedule.max_steps": steps, "tracking.enabled": False}
        config = defaults("pretrain", str(SMALL)).override(places | settings)
        assert isinstance(config, Pretrain)
        return pretrain(config)

    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    assert train(killed, frames, 3)["steps"] == 3
    (killed / "model" / "summary.json").unlink()  # as where the command was killed after its newest checkpoint
    assert shard_videos(shards, in_this_process)["num_clips"] > partial.num_clips()
    summary = train(killed, frames, 6)
    assert (summary["steps"], summary["clips"]) == (6, partial.splits)
    assert summary["inputs"]["frames"] == partial.fingerprint
    assert train(unbroken, f"{frames}@{partial.fingerprint}", 6)["fingerprint"] == summary["fingerprint"]
    weights = [(root / "model" / "model.safetensors").read_bytes() for root in (killed, unbroken)]
    assert weights[0] == weights[1]
