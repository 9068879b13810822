"""Load batches of items for downstream tasks, each with the frames of its clip.

Items refer to clips by id, so a video is stored once for any number of questions. They are ordered by the row groups of
their clips, and those take the place of row groups in the samplers: reading stays sequential, an epoch sees each item
once, and a step decodes a clip once for all its items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8

from evilm.dataloader.clip_reader import ClipAugmentation, show
from evilm.dataloader.loader import DataLoader, Key
from evilm.dataloader.sampler import EvalSampler, Step, TrainSampler
from evilm.errors import ConfigError, ShardError
from evilm.io import storage
from evilm.items.item_tables import ItemsManifest
from evilm.seeds import clip_rng, draw_captions
from evilm.shards import Footers, FrameManifest, ShardPair, Side, open_side

BatchT = TypeVar("BatchT")
_TRIES = 100  # draws for each negative


@dataclass(frozen=True)
class ItemRows:
    """The items of one step that a worker gets, before collation."""

    epoch: int
    item_ids: list[str]
    clip_ids: list[str]
    """Clip of each item."""
    texts: list[str]
    """Question or caption of each item."""
    options: list[list[str]]
    """Options of a multiple-choice item; for retrieval, captions of other clips drawn for this epoch."""
    labels: Int[np.ndarray, " item"]
    """-1 where the answer has no label."""
    frames: UInt8[np.ndarray, "clip frame row col 3"]
    """Frames of the distinct clips."""
    clip_of: Int[np.ndarray, " item"]
    """Index in `frames` of each item's clip."""
    first_item: int
    """Index of the first of these items within the global step."""
    step_items: int
    """Items of the global step, over all micro-batches and workers."""


class ClipIndex:
    """Index of all clips of a folder of frame shards: shard, row group and row by clip id."""

    def __init__(self, frames: FrameManifest) -> None:
        """Read the ids of all clips."""
        self.pairs: list[ShardPair] = []
        self.place_of: dict[str, tuple[int, int, int]] = {}
        """Shard, row group and row by clip id."""
        footers: list[Footers] = []
        if not frames.splits:
            raise ShardError(f"{frames.uri} has no clips; run pipelines/shard_videos.py")
        for split in frames.splits:
            shards, side = frames.of_split(split), open_side(frames, split)
            footers.append(side.footers)
            clip_ids, _ = side.captions.take(np.arange(sum(shard.num_clips for shard in shards)))
            places = (
                (number, group, row)
                for number, shard in enumerate(shards, start=len(self.pairs))
                for group, size in enumerate(shard.row_groups)
                for row in range(size)
            )
            self.place_of |= dict(zip(clip_ids, places, strict=True))
            self.pairs += [
                ShardPair(storage.join(frames.uri, shard.file), "", shard.num_clips, shard.row_groups)
                for shard in shards
            ]
            self.captions = side.captions
        self.footers = Footers.join(footers)


class ItemTable:
    """Items of a split, sorted by where their clips are stored."""

    def __init__(
        self, items: ItemsManifest, split: str, clips: ClipIndex, draw: bool = False, num_negatives: int = 0
    ) -> None:
        """Read a split.

        Args:
            split: train, val or test.
            draw: make one item of all texts of a clip, of which an epoch shows one.
            num_negatives: texts of other clips that an epoch draws beside it.

        Raises:
            ShardError: the split is empty, or a clip has no frames.
        """
        table, self.draw, self.num_negatives = items.read(split), draw, num_negatives
        if draw:
            table = _grouped(table)
        clip_ids = table["clip_id"].to_pylist()
        if lost := [clip for clip in clip_ids if clip not in clips.place_of]:
            raise ShardError(
                f"{len(lost)} items of {items.uri}, split {split}, are about clips without frames, such as {lost[0]}; "
                "build the items again with --frames of these shards"
            )
        if not clip_ids:
            raise ShardError(
                f"{items.uri} has no item with frames in split {split}; build the items again with --frames"
            )
        places = np.array([clips.place_of[clip] for clip in clip_ids], dtype=np.int64)
        order = np.lexsort(places.T[::-1])
        self.places = places[order]
        self.table = table.take(pa.array(order)).combine_chunks()
        keys, sizes = np.unique(self.places[:, :2], axis=0, return_counts=True)
        self.keys: list[Key] = [(int(shard), int(group)) for shard, group in keys]
        self.groups = [[int(size)] for size in sizes]
        """Items of each row group that has any."""

    def __len__(self) -> int:
        return len(self.table)

    def draw_texts(self, numbers: Int[np.ndarray, " item"], seed: int, epoch: int) -> tuple[list[str], list[list[str]]]:
        """Draw for each item one of its clip's texts, and texts of other clips, by (seed, epoch, clip id)."""
        own = self._texts(numbers)
        clip_ids = self.table["clip_id"].take(pa.array(numbers)).to_pylist()
        texts = draw_captions(seed, epoch, clip_ids, own)
        if not self.num_negatives:
            return texts, [[] for _ in texts]
        found = []
        for clip_id, right in zip(clip_ids, own, strict=True):
            rng, negatives = clip_rng("negative texts", seed, epoch, clip_id), list[str]()
            for _ in range(_TRIES * self.num_negatives):
                (others,) = self._texts(rng.integers(len(self), size=1))
                text = others[int(rng.integers(len(others)))]
                if text not in right and text not in negatives:
                    negatives.append(text)
                if len(negatives) == self.num_negatives:
                    break
            else:
                raise ConfigError(
                    f"head.num_negatives = {self.num_negatives}, but there are hardly any captions that are not of "
                    f"clip {clip_id}; lower it"
                )
            found.append(negatives)
        return texts, found

    def _texts(self, numbers: Int[np.ndarray, " item"]) -> list[list[str]]:
        return self.table["options"].take(pa.array(numbers)).to_pylist()


def _grouped(table: pa.Table) -> pa.Table:
    """Make one row per clip, with all its texts as options."""
    found = table.group_by("clip_id", use_threads=False).aggregate([("text", "list"), ("type", "first")])
    columns = {
        "item_id": found["clip_id"],
        "clip_id": found["clip_id"],
        "text": pa.array([""] * len(found)),
        "options": found["text_list"],
        "answer": pa.array([""] * len(found)),
        "label": pa.array([-1] * len(found), pa.int32()),
        "type": found["type_first"],
    }
    return pa.table(columns)


class ItemLoader(DataLoader[BatchT]):
    """Batches of items of one worker, from any step on."""

    def __init__(
        self,
        items: ItemTable,
        clips: ClipIndex,
        order: TrainSampler | EvalSampler,
        collate: Callable[[ItemRows], BatchT],
        augmentation: ClipAugmentation,
        threads: int = 2,
    ) -> None:
        """Load the items of a split; `collate` runs in a background thread."""
        side = Side(clips.captions, clips.footers)
        super().__init__(clips.pairs, order, collate, augmentation, threads + 1, threads, side)  # type: ignore[arg-type]
        self._items = items

    def _read(self, step: Step) -> ItemRows:  # type: ignore[override]
        """Return the items of this worker's slice of a step, with the frames of their clips."""
        numbers = step.numbers[step.mine]
        rows = self._items.table.take(pa.array(numbers))
        if self._items.draw:
            texts, options = self._items.draw_texts(numbers, self._augmentation.seed, step.epoch)
        else:
            texts, options = rows["text"].to_pylist(), rows["options"].to_pylist()
        places, clip_of = np.unique(self._items.places[numbers], axis=0, return_inverse=True)
        until: dict[Key, int] = {}
        for (shard, group, _), last in zip(self._items.places[numbers], step.until[step.mine], strict=True):
            key = int(shard), int(group)
            until[key] = max(int(last), until.get(key, 0))
        groups = self._load(until)
        shown = [(groups[int(shard), int(group)], int(row)) for shard, group, row in places]
        frames, _ = show(self._augmentation, shown, step.epoch, self._buffers.take)
        return ItemRows(
            epoch=step.epoch,
            item_ids=rows["item_id"].to_pylist(),
            clip_ids=rows["clip_id"].to_pylist(),
            texts=texts,
            options=options,
            labels=rows["label"].to_numpy().astype(np.int64),
            frames=frames,
            clip_of=clip_of.reshape(-1),
            first_item=range(*step.mine.indices(len(step.numbers))).start,
            step_items=len(step.numbers),
        )
