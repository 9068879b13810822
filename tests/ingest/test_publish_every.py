"""Manifests that are published while other shards are still being made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import ShardError, UsageError
from evilm.ingest.shard_videos import period, shard_videos
from evilm.shards import FrameManifest
from helpers.small_corpus import in_this_process, shard_config

_NUM_CLIPS = 20


def test_finished_shards_are_published_while_others_are_made(good_corpus: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "frames", list[FrameManifest]()

    def watched(todo: list[str], *rest: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(in_this_process(todo, *rest)):
            if number and number % 2 == 0:
                seen.append(FrameManifest.load(str(out)))
            yield row

    summary = shard_videos(shard_config(good_corpus, out, publish_every="2"), watched)
    assert [(len(each.shards), each.num_missing) for each in seen] == [(2, 3), (4, 1)]
    assert not {shard.file for shard in seen[0].shards} - {shard.file for shard in seen[1].shards}, "only added to"
    final = FrameManifest.load(str(out))
    assert (len(final.shards), final.num_missing, final.num_clips()) == (5, 0, 20)
    whole = shard_videos(shard_config(good_corpus, tmp_path / "whole", publish_every="0"), in_this_process)
    assert whole["fingerprint"] == summary["fingerprint"], "it leaves no trace"
    early = FrameManifest.load(f"{out}@{seen[0].fingerprint}")
    assert (early.num_clips(), early.uri) == (8, str(out))
    with pytest.raises(
        ShardError, match=r"no longer holds the frames with fingerprint 0000000000000000; use .* or restore"
    ):
        FrameManifest.load(f"{out}@{'0' * 16}")


@pytest.mark.parametrize(
    ("text", "expected"), [("200", (200, 0.0)), ("30m", (0, 1800.0)), ("2h", (0, 7200.0)), ("0", (0, 0.0))]
)
def test_period_is_a_number_of_shards_or_a_time(text: str, expected: tuple[int, float]) -> None:
    assert period(text) == expected


def test_invalid_period_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"--publish-every often: give a number of shards \(200\), minutes"):
        period("often")
