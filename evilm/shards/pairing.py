"""Pair frame shards with their codes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evilm.config.base import fingerprint
from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards.shard_manifests import MANIFEST, CodesManifest, FrameManifest


@dataclass(frozen=True)
class ShardPair:
    """A frame shard and the codes of the same clips."""

    frames_uri: str
    codes_uri: str
    num_clips: int
    row_groups: list[int]
    """Clips of each row group, the same in both files."""


def pair(
    frames: FrameManifest,
    codes: CodesManifest,
    split: str,
    expect_tokenizer: str = "",
    expect_grid: int = 0,
    expect_num_frames: int = 0,
) -> list[ShardPair]:
    """Pair each frame shard of a split with its codes; an `expect_*` that is not given is not checked.

    Raises:
        ShardError: codes of another tokenizer, another grid or number of frames, other frames, or missing ones.
    """
    again = f"run pipelines/precompute_codes.py with --frames {frames.uri}"
    if expect_tokenizer and codes.tokenizer != expect_tokenizer:
        raise ShardError(f"{codes.uri} holds codes of tokenizer {codes.tokenizer}, not of {expect_tokenizer}; {again}")
    if expect_grid and codes.grid != expect_grid:
        raise ShardError(
            f"{codes.uri} holds {codes.grid} x {codes.grid} codes per frame, "
            f"the model has {expect_grid} x {expect_grid} regions; use a tokenizer of that grid, or another input size"
        )
    if codes.num_frames != frames.num_frames:
        raise ShardError(
            f"{codes.uri} holds {codes.num_frames} coded frames per clip, {frames.uri} has {frames.num_frames}; {again}"
        )
    check_num_frames(frames, expect_num_frames or frames.num_frames)
    coded = {shard.frames_file: shard for shard in codes.shards}
    pairs = []
    for shard in frames.of_split(split):
        found = coded.get(shard.file)
        if found is None:
            raise ShardError(f"{codes.uri} has no codes of {shard.file}; {again}")
        if found.frames_sha256 != shard.sha256 or found.row_groups != shard.row_groups:
            raise ShardError(f"{codes.uri}/{found.file} was made from another {shard.file}; {again}")
        uris = storage.join(frames.uri, shard.file), storage.join(codes.uri, found.file)
        pairs.append(ShardPair(*uris, num_clips=shard.num_clips, row_groups=shard.row_groups))
    return pairs


def check_num_frames(frames: FrameManifest, num_frames: int) -> None:
    """See that the frames of a model can be picked from those that are stored.

    Raises:
        ShardError: their number does not divide the number of stored frames.
    """
    if frames.num_frames % num_frames:
        raise ShardError(
            f"{frames.uri} holds {frames.num_frames} frames per clip, the model takes {num_frames}, which does not "
            "divide it; set arch.num_frames to a divisor, or make other shards"
        )


def codes_folder(tokenizer_fingerprint: str, num_views: int, view_spec: Mapping[str, Any]) -> str:
    """Return the name of the folder that holds a tokenizer's codes of these views."""
    if num_views == 1:
        return tokenizer_fingerprint
    return f"{tokenizer_fingerprint}-v{num_views}-{fingerprint(dict(view_spec), 8)}"


def find_codes(codes_uri: str, tokenizer_fingerprint: str, num_views: int = 0, plain: bool = False) -> str:
    """Find the folder with one tokenizer's codes below `codes_uri`, or `codes_uri` if it is that folder.

    Args:
        codes_uri: the `--out` of precompute_codes, or one folder in it.
        num_views: views per clip that are wanted; 0 takes the most there are.
        plain: only the whole frames are wanted, which all codes hold; takes the smallest.

    Raises:
        ShardError: there are none, saying what there is; or several of as many views, drawn in different ways.
    """
    if storage.exists(storage.join(codes_uri, MANIFEST)):
        found = CodesManifest.load(codes_uri).num_views
        if num_views not in (0, found):
            raise ShardError(f"{codes_uri} holds codes of {found} views per clip, not {num_views}; name another folder")
        return codes_uri.rstrip("/")
    there = [n for n in storage.list_names(codes_uri) if storage.exists(storage.join(codes_uri, n, MANIFEST))]
    views = {name: int(found[2] or 1) for name in there if (found := _CODES_FOLDER.fullmatch(name))}
    views = {name: count for name, count in views.items() if name.split("-v")[0] == tokenizer_fingerprint}
    wanted = num_views or (min if plain else max)(views.values(), default=0)
    fitting = sorted(name for name, count in views.items() if count == wanted)
    if len(fitting) == 1 or (fitting and plain):
        return storage.join(codes_uri, fitting[0])
    if fitting:
        raise ShardError(
            f"{codes_uri} holds codes of {wanted} views drawn in {len(fitting)} ways ({', '.join(fitting)}); "
            f"name one of these folders, --codes {storage.join(codes_uri, fitting[0])}"
        )
    of_views = f" with {num_views} views per clip" if num_views else ""
    views_flag = f" --views {num_views}" if num_views > 1 else ""
    raise ShardError(
        f"{codes_uri} holds no finished codes of tokenizer {tokenizer_fingerprint}{of_views} "
        f"(there: {', '.join(there) or 'none'}); run pipelines/precompute_codes.py --out {codes_uri}{views_flag}"
    )


_CODES_FOLDER = re.compile(r"(.+?)(?:-v(\d+)-[0-9a-f]{8})?")
