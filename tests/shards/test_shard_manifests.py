"""Manifests of frame shards and of codes: round trip, fingerprint, and what is rejected."""

from dataclasses import replace
from pathlib import Path

import pytest

from evilm.errors import ShardError
from evilm.shards import (
    MANIFEST,
    CodesManifest,
    FrameManifest,
)
from helpers.stored_frames import stand_in_codes, store_frames

SIZES = {"train": [[2, 1], [2, 1]]}
"""Two shards of three clips in two row groups."""


def test_manifest_round_trip(tmp_path: Path) -> None:
    manifest = store_frames(tmp_path / "a", SIZES)
    back = FrameManifest.load(str(tmp_path / "a"))
    assert back == manifest
    assert back.fingerprint == manifest.fingerprint
    assert store_frames(tmp_path / "b", SIZES).fingerprint == manifest.fingerprint  # not of the place
    assert replace(manifest, shards=manifest.shards[:1]).fingerprint != manifest.fingerprint
    assert (back.num_clips("train"), back.num_clips("val"), back.splits) == (6, 0, {"train": 6})
    assert [shard.file[:12] for shard in back.of_split("train")] == ["train-00000-", "train-00001-"]


def test_unfinished_changed_or_old_manifests_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no finished frames at .* run pipelines/shard_videos\.py"):
        FrameManifest.load(str(tmp_path))
    store_frames(tmp_path, SIZES)
    with pytest.raises(ShardError, match="'frames'"):
        CodesManifest.load(str(tmp_path))
    place = tmp_path / MANIFEST
    text = place.read_text()
    place.write_text(text.replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$") as caught:
        FrameManifest.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    place.write_text(text.replace('"num_rows": 6', '"num_rows": 7'))
    with pytest.raises(ShardError, match="changed after it was written"):
        FrameManifest.load(str(tmp_path))
    place.write_text(text[:50])
    with pytest.raises(ShardError, match="not valid JSON"):
        FrameManifest.load(str(tmp_path))


def test_codes_manifest_round_trip(tmp_path: Path) -> None:
    codes = stand_in_codes(tmp_path / "codes", store_frames(tmp_path / "frames", SIZES))
    assert CodesManifest.load(codes.uri) == codes
    assert codes.code_usage == {"train": 0.5}
    assert codes.codes_per_clip == 16
