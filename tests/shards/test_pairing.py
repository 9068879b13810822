"""Frame shards with their codes: found, paired, and rejected where they do not belong together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import ShardError
from evilm.shards import (
    find_codes,
    pair,
)
from helpers.stored_frames import stand_in_codes, store_frames

SIZES = {"train": [[2, 1], [2, 1]]}
"""Two shards of three clips in two row groups."""


def test_pair_joins_frames_with_their_codes(tmp_path: Path) -> None:
    frames = store_frames(tmp_path / "frames", SIZES)
    codes = stand_in_codes(tmp_path / "codes", frames)
    pairs = pair(frames, codes, "train", expect_tokenizer="tok", expect_grid=2, expect_num_frames=4)
    assert [(item.num_clips, item.row_groups) for item in pairs] == [(3, [2, 1]), (3, [2, 1])]
    assert pairs[1].frames_uri == f"{tmp_path}/frames/{frames.shards[1].file}"
    assert pairs[1].codes_uri == f"{tmp_path}/codes/tok/{frames.shards[1].file}"
    assert pair(frames, codes, "val") == []


def test_pair_rejects_codes_that_do_not_fit(tmp_path: Path) -> None:
    frames = store_frames(tmp_path / "frames", SIZES)
    codes = stand_in_codes(tmp_path / "codes", frames)
    expectations: list[tuple[dict[str, Any], str]] = [
        ({"expect_tokenizer": "other"}, "codes of tokenizer tok, not of other"),
        ({"expect_grid": 8}, "2 x 2 codes per frame, the model has 8 x 8"),
        ({"expect_num_frames": 8}, "4 frames per clip, the model takes 8, which does not divide it"),
    ]
    for expected, message in expectations:
        with pytest.raises(ShardError, match=message):
            pair(frames, codes, "train", **expected)
    assert pair(replace(frames, num_rows=7, shards=frames.shards[:1]), codes, "train"), "codes of more shards"
    with pytest.raises(ShardError, match=f"no codes of {frames.shards[1].file}"):
        pair(frames, replace(codes, shards=codes.shards[:1]), "train")
    swapped = [replace(codes.shards[0], frames_sha256="11"), codes.shards[1]]
    with pytest.raises(ShardError, match="made from another train-00000"):
        pair(frames, replace(codes, shards=swapped), "train")


def test_find_codes_names_what_is_there(tmp_path: Path) -> None:
    frames = store_frames(tmp_path / "frames", SIZES)
    codes = stand_in_codes(tmp_path / "codes", frames)
    assert find_codes(str(tmp_path / "codes"), "tok") == codes.uri
    with pytest.raises(ShardError, match=r"no finished codes of tokenizer new \(there: tok\)"):
        find_codes(str(tmp_path / "codes"), "new")
    with pytest.raises(ShardError, match=r"\(there: none\)"):
        find_codes(str(tmp_path / "nothing"), "new")
