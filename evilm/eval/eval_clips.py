"""Choose the clips of a split that are scored, and find them in their shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards import CodesManifest, FrameManifest, ShardPair, pair, read_group

_YES = ("true", "1", "yes")


@dataclass(frozen=True)
class EvalClip:
    """A clip to score and its place in the shards."""

    clip_id: str
    caption: str
    heldout: bool | None
    """True if it holds a combination never seen in training; None if the manifest does not say."""
    shard: int
    group: int
    row: int


@dataclass(frozen=True)
class ClipBlock:
    """Clips of one row group that are read and scored together; the same blocks for any number of workers."""

    pair: ShardPair
    group: int
    rows: list[int]
    places: list[int]
    """Index of each clip among all that are scored."""


def open_shards(frames: FrameManifest, split: str, codes: CodesManifest | None = None) -> list[ShardPair]:
    """Return the frame shards of a split, with their codes where they are given.

    Raises:
        ShardError: the split has no clips, or the codes belong to other frames.
    """
    if not frames.num_clips(split):
        there = ", ".join(f"{name} ({count})" for name, count in frames.splits.items()) or "no split"
        raise ShardError(
            f"{frames.uri} has no clips of split {split!r}; it has {there}. Score one of these with --split, or set "
            f"videos aside when sharding, into another folder: --{split}-share 0.1 of shard_videos"
        )
    if codes is not None:
        return pair(frames, codes, split)
    return [
        ShardPair(storage.join(frames.uri, shard.file), "", shard.num_clips, shard.row_groups)
        for shard in frames.of_split(split)
    ]


def choose_clips(pairs: Sequence[ShardPair], max_clips: int, seed: int) -> list[EvalClip]:
    """Choose at most `max_clips` clips, in an order that depends only on the seed and the clip ids.

    Raises:
        ShardError: fewer than two clips, which leave nothing to choose from.
    """
    clips: list[EvalClip] = []
    for shard, files in enumerate(pairs):
        for group in range(len(files.row_groups)):
            table = read_group(files.frames_uri, group, ["clip_id", "captions", "extra"])
            columns = (table[name].to_pylist() for name in ("clip_id", "captions", "extra"))
            for row, (clip_id, (caption, *_), extra) in enumerate(zip(*columns, strict=True)):
                flag = dict(extra or ()).get("heldout")
                heldout = None if flag is None else flag.strip().lower() in _YES
                clips.append(EvalClip(clip_id, caption, heldout, shard, group, row))
    if len(clips) < 2:
        raise ShardError(
            f"{len(clips)} clip in the split; scoring needs at least two: score another --split, or set more videos "
            "aside when sharding, into another folder, with --test-share of shard_videos"
        )
    return sorted(clips, key=lambda clip: _place(seed, clip.clip_id))[:max_clips]


def make_blocks(pairs: Sequence[ShardPair], clips: Sequence[EvalClip], block_clips: int) -> list[ClipBlock]:
    """Group the chosen clips by row group, at most `block_clips` at a time."""
    by_group: dict[tuple[int, int], list[int]] = {}
    for place, clip in enumerate(clips):
        by_group.setdefault((clip.shard, clip.group), []).append(place)
    blocks = []
    for shard, group in sorted(by_group):
        places = sorted(by_group[shard, group], key=lambda place: clips[place].row)
        for start in range(0, len(places), block_clips):
            part = places[start : start + block_clips]
            blocks.append(ClipBlock(pairs[shard], group, [clips[place].row for place in part], part))
    return blocks


def _place(seed: int, clip_id: str) -> bytes:
    return hashlib.blake2b(f"benchmark\0{seed}\0{clip_id}".encode(), digest_size=16).digest()
